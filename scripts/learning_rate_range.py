"""Learning-rate range test: the loss while the rate rises with each step, and a suggested rate."""

from __future__ import annotations

from cli import Parser, name_of, optional_output, run, whole_number

import numpy as np
from runs import (
    add_data_options,
    add_out_option,
    load_dataset,
    new_run_folder,
    print_files,
    write_json,
)

import nnxp
from nnxp.optimizers import OPTIMIZERS


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--hidden", type=whole_number, nargs="+", default=[50, 30],
                        metavar="WIDTH",
                        help="widths of the hidden layers (default: 50 30)")  # fmt: skip
    parser.add_argument("--optimizer", type=name_of("optimizer", OPTIMIZERS), default="sgd",
                        metavar="NAME",
                        help=f"{', '.join(OPTIMIZERS)} (default: sgd)")  # fmt: skip
    parser.add_argument("--batch-size", type=whole_number, default=100,
                        help="examples of a step (default: 100)")  # fmt: skip
    parser.add_argument("--steps", type=whole_number, default=200,
                        help="steps of the test, at least 20 (default: 200)")  # fmt: skip
    add_out_option(parser)
    args = parser.parse_args()
    data = load_dataset(args.dataset, args.data_dir)
    folder = new_run_folder(args.out, vars(args) | data.config())
    rng = np.random.default_rng(0)
    network = nnxp.mlp(data.widths(args.hidden), rng=rng)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), OPTIMIZERS[args.optimizer]())
    found = nnxp.learning_rate_range(
        trainer, data.train, batch_size=args.batch_size, rng=rng, steps=args.steps
    )
    print(f"{data.name}, {args.optimizer}, batches of {args.batch_size}")
    print(f"{'rate':>9}  {'loss':>10}  {'smoothed':>10}")
    for i in range(0, len(found.rates), max(1, len(found.rates) // 15)):
        print(f"{found.rates[i]:9.2e}  {found.losses[i]:10.4f}  {found.smoothed[i]:10.4f}")
    print("the loss diverged" if found.diverged else "the highest rate was reached")
    at = found.lowest
    print(f"lowest smoothed loss {found.smoothed[at]:.4f} at {found.rates[at]:.2g}")
    if found.suggestion is None:
        print("no suggestion: the loss hardly fell")
    else:
        print(f"suggested learning rate {found.suggestion:.2g}, a tenth of that")
    write_json(
        folder / "range.json",
        {
            "rates": found.rates.tolist(),
            "losses": found.losses.tolist(),
            "suggestion": found.suggestion,
        },
    )
    title = f"{data.name}, {args.optimizer}, batches of {args.batch_size}"
    with optional_output("range.png"):
        nnxp.plots.plot_learning_rate_range(found, folder / "range.png", title=title)
    print_files(folder)


if __name__ == "__main__":
    run(main)
