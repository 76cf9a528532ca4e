"""Compare backpropagation with numerical gradients for every parameter: errors and times."""

from __future__ import annotations

from cli import Parser, run, whole_number

import time

import numpy as np
from runs import add_data_options, load_dataset

import nnxp


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--examples", type=whole_number, default=3, help="examples in the batch (default: 3)"
    )
    args = parser.parse_args()
    data = load_dataset(args.dataset, args.data_dir)
    device = nnxp.device("cpu")
    rng = np.random.default_rng(0)
    network = nnxp.ThreeLayerNet(
        *data.widths([50, 30]), rng=rng, dtype="float64", device=device
    )  # fmt: skip
    loss = nnxp.SoftmaxWithLoss()
    inputs = device.asarray(data.train.inputs[: args.examples] / 255)
    labels = device.asarray(data.train.labels[: args.examples])

    start = time.perf_counter()
    repeats = 100
    for _ in range(repeats):
        loss.forward(network.forward(inputs, training=True), labels)
        network.backward(loss.backward())
    backward_seconds = (time.perf_counter() - start) / repeats
    start = time.perf_counter()
    errors = nnxp.check_gradients(network, loss, inputs, labels)
    numerical_seconds = time.perf_counter() - start

    print(f"{data.name}, {len(inputs)} examples, {network!r}, float64")
    print("gradient  shape        largest difference / largest entry")
    for key, error in errors.items():
        shape = inputs.shape if key == "inputs" else network.parameters()[key].shape
        print(f"{key:<8}  {shape!s:<11}  {error:.1e}")
    ratio = numerical_seconds / backward_seconds
    print(
        f"backpropagation {backward_seconds * 1e3:.3f} ms, numerical {numerical_seconds:.2f} s, "
        f"{ratio:,.0f} times as long"
    )


if __name__ == "__main__":
    run(main)
