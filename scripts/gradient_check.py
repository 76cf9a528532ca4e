"""Check backpropagation against differences, for every parameter: how close, and how fast."""

from __future__ import annotations

import time

import numpy as np
from cli import Parser, run, whole_number
from runs import add_data_options, class_count, load_dataset

import nnxp


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--examples", type=whole_number, default=3, help="(default: 3)")
    args = parser.parse_args()
    name, train, test, _ = load_dataset(args.dataset, args.data_dir)
    device = nnxp.device("cpu")
    rng = np.random.default_rng(0)
    network = nnxp.ThreeLayerNet(
        train.inputs.shape[1], 50, 30, class_count(train, test),
        rng=rng, dtype="float64", device=device,
    )  # fmt: skip
    loss = nnxp.SoftmaxWithLoss()
    inputs = device.asarray(train.inputs[: args.examples] / 255)
    labels = device.asarray(train.labels[: args.examples])

    start = time.perf_counter()
    repeats = 100
    for _ in range(repeats):
        loss.forward(network.forward(inputs, training=True), labels)
        network.backward(loss.backward())
    exact_seconds = (time.perf_counter() - start) / repeats
    start = time.perf_counter()
    errors = nnxp.check_gradients(network, loss, inputs, labels)
    numerical_seconds = time.perf_counter() - start

    print(f"{name}, {len(inputs)} examples, {network!r}, float64")
    print("gradient  shape        largest difference / largest entry")
    for key, error in errors.items():
        shape = inputs.shape if key == "inputs" else network.parameters()[key].shape
        print(f"{key:<8}  {shape!s:<11}  {error:.1e}")
    ratio = numerical_seconds / exact_seconds
    print(
        f"backpropagation {exact_seconds * 1e3:.3f} ms, differences {numerical_seconds:.2f} s; "
        f"{ratio:,.0f} times as long"
    )


if __name__ == "__main__":
    run(main)
