"""Gradient check: backpropagation compared with finite differences, errors and times.

Backpropagation computes the gradient of the loss for every parameter in one backward pass, by the
chain rule. The definition of a derivative needs no chain rule: move one parameter a little up and
down, compute the loss both times, and divide the difference by the distance. Look at the errors: if
backpropagation is right, they are rounding errors. Look at the times: finite differences are too
slow to train with.
"""

from __future__ import annotations

from cli import Parser, announce, run, whole_number

import time

from runs import add_data_options, load_dataset

import nnxp

REPEATS = 100


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--examples", type=whole_number, default=3,
                        help="examples in the batch (default: 3)")  # fmt: skip
    args = parser.parse_args()
    data = load_dataset(args.dataset, args.data_dir)
    inputs = data.train.inputs[: args.examples] / 255
    labels = data.train.labels[: args.examples].astype("int32")
    network = nnxp.ThreeLayerNet(*data.widths([50, 30]), rng=0, dtype="float64")
    loss = nnxp.SoftmaxWithLoss()
    print(f"{network!r} in float64, {len(inputs)} examples of {data.name}")

    start = time.perf_counter()
    for _ in range(REPEATS):
        loss.forward(network.forward(inputs, training=True), labels)
        network.backward(loss.backward())
    backward_seconds = (time.perf_counter() - start) / REPEATS

    announce("computing the finite differences, which takes up to two minutes with MNIST …")
    start = time.perf_counter()
    errors = nnxp.check_gradients(network, loss, inputs, labels)  # computes both gradients
    numerical_seconds = time.perf_counter() - start

    print("\ngradient  shape        largest difference / largest entry")
    for name, error in errors.items():
        shape = inputs.shape if name == "inputs" else network.parameters()[name].shape
        print(f"{name:<8}  {shape!s:<11}  {error:.1e}")

    largest = max(errors.values())
    count = inputs.size + sum(x.size for x in network.parameters().values())
    print(f"\nThey agree within {largest:.1e}." if largest < 1e-6 else "\nThey do not agree.")
    print(f"backpropagation     {backward_seconds * 1e3:.3f} ms for all {count:,} numbers at once")
    print(f"finite differences  {numerical_seconds:.2f} s, two forward passes for each number")
    ratio = numerical_seconds / backward_seconds
    print(f"Finite differences take {ratio:,.0f} times as long.")


if __name__ == "__main__":
    run(main)
