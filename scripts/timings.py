"""Timings: microseconds of nnxp's operations in one checkout, as JSON for compare_commits.py.

nnxp is imported from the given folder, and peers.py from the folder of this script.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import peers

STEPS = {"small": 200, "wide": 40, "deep": 25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)  # not cli.Parser, which imports nnxp
    parser.add_argument("folder", help="the checkout whose nnxp is timed")
    parser.add_argument("--quick", action="store_true", help="few steps, to try the script")
    args = parser.parse_args()
    sys.path.insert(0, args.folder)
    seconds = 0.001 if args.quick else 0.05
    rng = np.random.default_rng(0)
    times = {}
    for network, steps in STEPS.items():
        for optimizer in ("SGD", "Adam"):
            task = peers.TASKS[network]._replace(optimizer=optimizer)
            examples = peers.random_examples(rng, (2 if args.quick else steps) * task.batch_size)
            peer = peers.Nnxp(task, *examples, capture=True)
            times[f"{network}, {optimizer}, step"] = peers.step_time(peer)
        for rows in (1, 100):
            x = rng.random((rows, 784), np.float32)
            times[f"{network}, predict {rows}"] = peers.predict_time(peer, x, seconds)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
