"""Timings: microseconds of the nnxp in one checkout, printed as JSON for compare_commits.py.

``python timings.py FOLDER [quick]`` imports nnxp from FOLDER, and peers.py from its own folder.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import peers

STEPS = {"small": 200, "wide": 40, "deep": 25}


def main() -> None:
    folder, *quick = sys.argv[1:]
    sys.path.insert(0, folder)
    seconds = 0.001 if quick else 0.05
    rng = np.random.default_rng(0)
    times = {}
    for network, steps in STEPS.items():
        for optimizer in ("SGD", "Adam"):
            task = peers.TASKS[network]._replace(optimizer=optimizer)
            examples = peers.random_examples(rng, (2 if quick else steps) * task.batch_size)
            peer = peers.PEERS["nnxp"](task, *examples)
            times[f"{network}, {optimizer}, step"] = peers.step_time(peer)
        for rows in (1, 100):
            x = rng.random((rows, 784), np.float32)
            times[f"{network}, predict {rows}"] = peers.predict_time(peer, x, seconds)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
