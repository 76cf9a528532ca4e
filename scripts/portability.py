"""Train the same network from the same seed on every array library found, and compare."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cli import Parser, run, whole_number
from runs import add_data_options, class_count, load_dataset

import nnxp
from nnxp.data import Batches
from nnxp.devices import DTYPES
from nnxp.files import write_atomically

DEVICES = ["cpu", "cuda", "torch:cpu", "torch:cuda", "torch:mps", "jax:cpu", "jax:cuda",
           "strict:device1"]  # fmt: skip

# Two libraries add in different orders, so each step differs by a few units in the last place,
# which the steps amplify. Where the network is smooth (tanh), the difference is to first order
# proportional to the unit roundoff, so from float64 to float32 it grows by 2^29; ten times that
# leaves room for luck in single sums. ReLU is not smooth: of some 5 million inputs to a ReLU in 600
# steps a few lie within float32's rounding of 0, and one that is 0 here and positive there moves
# the gradient by a finite amount. Its float32 difference is therefore shown and not bounded; in
# float64 such an input is 10^9 times rarer.
ACTIVATIONS = ("relu", "tanh")
# Compared are the losses of all steps with either activation, and the parameters with each.
MEASURES = ("losses", *ACTIVATIONS)
# JAX holds no float64 by itself, and multiplies float32 in fewer bits on GPUs.
JAX_SETTINGS = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
FLOAT64_BOUND = 1e-9
FLOAT32_GROWTH = 10 * 2.0**29


def main() -> int:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--steps", type=whole_number, default=600, help="(default: 600)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there too")
    parser.add_argument("--worker", nargs=3, metavar=("DEVICE", "DTYPE", "FILE"),
                        help=argparse.SUPPRESS)  # fmt: skip
    args = parser.parse_args()
    if args.worker:
        train(*args.worker, args)
        return 0
    load_dataset(args.dataset, args.data_dir)  # an error here is one line, not one a worker
    rows, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for spec in DEVICES:
            for dtype in DTYPES:
                file = Path(folder) / f"{spec.replace(':', '-')}-{dtype}.npz"
                result = in_own_process(spec, dtype, file)
                if "error" in result:
                    missing.append(f"{spec}, {dtype}: {result['error']}")
                    continue
                numpys = Path(folder) / f"cpu-{dtype}.npz"
                rows.append(result | {m: largest_difference(file, numpys, m) for m in MEASURES})
                print(line(rows[-1]), flush=True)
    table = "\n".join([line(None), "|---" * 9 + "|", *map(line, rows)])
    if args.out:
        write_atomically(args.out, f"{table}\n".encode())
    for reason in dict.fromkeys(missing):
        print(f"not run: {reason}")
    failures = [text for row in rows for text in judge(row, rows)]
    for text in failures:
        print(text, file=sys.stderr)
    return 1 if failures else 0


def in_own_process(spec: str, dtype: str, file: Path) -> dict[str, Any]:
    """Train in a process of its own, so that no library's settings or threads meet another's."""
    result = subprocess.run(
        [sys.executable, *sys.argv, "--worker", spec, dtype, file],
        env=os.environ | JAX_SETTINGS, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise nnxp.NnxpError(f"training on {spec} in {dtype} failed, see above")
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def train(spec: str, dtype: str, file: str, args: argparse.Namespace) -> None:
    """Train with each activation, save what is compared, and print the first one's figures."""
    _, train, test, _ = load_dataset(args.dataset, args.data_dir)
    arrays, figures = {}, []
    for activation in ACTIVATIONS:
        rng = np.random.default_rng(0)
        try:
            device = nnxp.device(spec)
            network = nnxp.ThreeLayerNet(
                train.inputs.shape[1], 50, 30, class_count(train, test),
                rng=rng, activation=activation, dtype=dtype, device=device,
            )  # fmt: skip
        except (nnxp.DeviceError, nnxp.InputError) as error:
            print(json.dumps({"error": str(error)}))
            return
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(learning_rate=0.1))
        batches = Batches(train, 100, device=device, dtype=dtype, rng=rng)
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        start = time.perf_counter()
        steps = [trainer.step(*batch) for batch in itertools.islice(endless, args.steps)]
        losses = device.to_host(device.xp.stack(steps))
        figures.append(
            {
                "spec": device.spec,
                "description": device.description,
                "dtype": dtype,
                "loss": float(losses[-1]),
                "seconds": time.perf_counter() - start,
                "accuracy": trainer.evaluate(test).accuracy,
            }
        )
        arrays[f"losses {activation}"] = losses
        arrays |= {
            f"{activation} {name}": device.to_host(x) for name, x in network.parameters().items()
        }
    np.savez(file, **arrays)
    print(json.dumps(figures[0]))


def largest_difference(file: Path, numpys: Path, measure: str) -> float:
    """Return the largest difference in an array of the measure, relative to its largest entry."""
    with np.load(file) as theirs, np.load(numpys) as ours:
        return max(
            float(np.abs(theirs[name] - ours[name]).max() / np.abs(ours[name]).max())
            for name in ours
            if name.startswith(measure)
        )


def judge(row: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Tell what is wrong with a row."""
    if row["dtype"] == "float64":
        bounds = dict.fromkeys(MEASURES, FLOAT64_BOUND)
    else:
        double = [r for r in rows if r["spec"] == row["spec"] and r["dtype"] == "float64"]
        bounds = {"tanh": FLOAT32_GROWTH * double[0]["tanh"]} if double else {}
    for measure, bound in bounds.items():
        if not row[measure] <= bound:
            yield (
                f"{row['spec']} in {row['dtype']} differs from NumPy by {row[measure]:.1e} "
                f"({measure}), more than {bound:.1e}"
            )


def line(row: dict[str, Any] | None) -> str:
    """Return a row of the table, or its head."""
    if row is None:
        return (
            "| device | library | dtype | final loss | differs from NumPy, losses | relu "
            "| tanh | test accuracy | seconds |"
        )
    return (
        f"| `{row['spec']}` | {row['description']} | {row['dtype']} | {row['loss']:.6f} "
        f"| {row['losses']:.1e} | {row['relu']:.1e} | {row['tanh']:.1e} "
        f"| {row['accuracy']:.4f} | {row['seconds']:.2f} |"
    )


if __name__ == "__main__":
    run(main)
