"""Train the same network with the same seed on every installed array library, and compare."""

from __future__ import annotations

from cli import Parser, file_path, print_failures, run, run_worker, whole_number

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from runs import add_data_options, load_dataset

import nnxp
from nnxp.data import Batches
from nnxp.devices import DTYPES
from nnxp.files import write_atomically

DEVICES = ["cpu", "cuda", "torch:cpu", "torch:cuda", "torch:mps", "jax:cpu", "jax:cuda",
           "strict:device1"]  # fmt: skip

# Libraries add in different orders, so each step differs by a few units in the last place, and
# later steps amplify the differences. With tanh, which is smooth, the difference is to first order
# proportional to the unit roundoff, so it is 2^29 times larger in float32 than in float64. The
# bound is ten times that, since single sums vary. ReLU is not smooth: of about 5 million inputs to
# a ReLU in 600 steps, a few are within float32's rounding error of 0. If such an input is 0 in one
# library and positive in the other, the gradient changes by a finite amount. So the float32
# difference with ReLU has no bound; in float64 such inputs are 10^9 times rarer.
ACTIVATIONS = ("relu", "tanh")
# The losses of all steps with both activations, and the parameters with each activation.
MEASURES = ("losses", *ACTIVATIONS)
# By default, JAX has no float64, and multiplies float32 on GPUs in lower precision.
JAX_SETTINGS = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
FLOAT64_BOUND = 1e-9
FLOAT32_GROWTH = 10 * 2.0**29
HEADINGS = (
    "| device | library | dtype | final loss | difference from NumPy: losses | parameters, relu "
    "| parameters, tanh | validation accuracy | seconds |"
)


def main() -> int:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--steps", type=whole_number, default=600, help="training steps (default: 600)"
    )
    parser.add_argument(
        "--out", type=file_path, metavar="FILE.md", help="also write the table to this file"
    )
    parser.add_argument("--worker", nargs=3, metavar=("DEVICE", "DTYPE", "FILE"),
                        help=argparse.SUPPRESS)  # fmt: skip
    args = parser.parse_args()
    if args.worker:
        train(*args.worker, args)
        return 0
    load_dataset(args.dataset, args.data_dir)  # raise an error here, not in each worker
    rows, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for spec in DEVICES:
            for dtype in DTYPES:
                file = Path(folder) / f"{spec.replace(':', '-')}-{dtype}.npz"
                result = train_in_process(spec, dtype, file)
                if "error" in result:
                    missing.append(f"{spec}, {dtype}: {result['error']}")
                    continue
                numpys = Path(folder) / f"cpu-{dtype}.npz"
                rows.append(result | {m: largest_difference(file, numpys, m) for m in MEASURES})
                print(table_row(rows[-1]), flush=True)
    table = "\n".join([HEADINGS, "|---" * 9 + "|", *map(table_row, rows)])
    if args.out:
        write_atomically(args.out, f"{table}\n".encode())
    for reason in dict.fromkeys(missing):
        print(f"not run: {reason}")
    return print_failures([text for row in rows for text in check_row(row, rows)])


def train_in_process(spec: str, dtype: str, file: Path) -> dict[str, Any]:
    """Train in a separate process, so that libraries share no settings and no threads."""
    command = [sys.executable, *sys.argv, "--worker", spec, dtype, file]
    failure = f"training on {spec} in {dtype} failed"
    result: dict[str, Any] = run_worker(command, os.environ | JAX_SETTINGS, failure)
    return result


def train(spec: str, dtype: str, file: str, args: argparse.Namespace) -> None:
    """Train with each activation, save losses and parameters, and print the result of the first."""
    data = load_dataset(args.dataset, args.data_dir)
    arrays, results = {}, []
    for activation in ACTIVATIONS:
        rng = np.random.default_rng(0)
        try:
            device = nnxp.device(spec)
            network = nnxp.ThreeLayerNet(
                *data.widths([50, 30]), rng=rng, activation=activation, dtype=dtype, device=device,
            )  # fmt: skip
        except (nnxp.DeviceError, nnxp.InputError) as error:
            print(json.dumps({"error": str(error)}))
            return
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(learning_rate=0.1))
        batches = Batches(data.train, 100, device=device, dtype=dtype, rng=rng)
        repeated = itertools.chain.from_iterable(itertools.repeat(batches))
        start = time.perf_counter()
        steps = [trainer.step(*batch) for batch in itertools.islice(repeated, args.steps)]
        losses = device.to_host(device.xp.stack(steps))
        results.append(
            {
                "spec": device.spec,
                "description": device.description,
                "dtype": dtype,
                "loss": float(losses[-1]),
                "seconds": time.perf_counter() - start,
                "accuracy": trainer.evaluate(data.test).accuracy,
            }
        )
        arrays[f"losses {activation}"] = losses
        arrays |= {
            f"{activation} {name}": device.to_host(x) for name, x in network.parameters().items()
        }
    np.savez(file, **arrays)
    print(json.dumps(results[0]))


def largest_difference(file: Path, numpys: Path, measure: str) -> float:
    """Return the largest difference from NumPy in a measure, relative to the largest entry."""
    with np.load(file) as arrays, np.load(numpys) as expected:
        return max(
            float(np.abs(arrays[name] - expected[name]).max() / np.abs(expected[name]).max())
            for name in expected
            if name.startswith(measure)
        )


def check_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return a message for each difference from NumPy that exceeds its bound."""
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


def table_row(row: dict[str, Any]) -> str:
    return (
        f"| `{row['spec']}` | {row['description']} | {row['dtype']} | {row['loss']:.6f} "
        f"| {row['losses']:.1e} | {row['relu']:.1e} | {row['tanh']:.1e} "
        f"| {row['accuracy']:.4f} | {row['seconds']:.2f} |"
    )


if __name__ == "__main__":
    run(main)
