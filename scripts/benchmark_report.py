"""Report of the benchmark: its results, as tables and pictures."""

from __future__ import annotations

from cli import announce, spread

import statistics
from pathlib import Path
from typing import Any

from nnxp.plots import curve_style, new_figure, save_figure

# The forms of nnxp to compute ratios for, if they are in the table.
OURS = ("nnxp", "nnxp, compiled", "nnxp, captured")
EAGER = ("PyTorch, foreach", "PyTorch, fused")
JAX = ("JAX, step", "JAX, scan")
LIBRARIES = {  # the fastest form of each counts
    "products": ("products",),
    "PyTorch": (*EAGER, "PyTorch, compiled", "PyTorch, CUDA graph"),
    "PyTorch, channels_last": ("PyTorch, channels_last",),
    "JAX": JAX,
}
ACCURACY_TOLERANCE = 0.02  # the order of the examples changes it by up to 0.014
DRAWN = (
    ("tiny", "batch 100"), ("small", "SGD"), ("wide", "SGD"), ("wide", "Adam"),
    ("huge", "SGD"), ("lenet", "batch 64"),
)  # fmt: skip
ROUNDS_DRAWN = 3  # at least
Rounds = dict[str, list[float]]  # a value of each peer for each round


class Report:
    """All results.

    Attributes
    ----------
    measured : dict of dict of Rounds
        The values by part and measure.
    memory : dict of dict of dict of float
        The MiB of a training by part, measure and peer.
    accuracy : dict of dict of dict of float
        The validation accuracy by part, measure and peer.
    missing : dict of dict of str
        The reason why a peer or a part was not run, by part and peer.
    remarks : list of str
        Remarks on unusual results.
    """

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, Rounds]] = {}
        self.memory: dict[str, dict[str, dict[str, float]]] = {}
        self.accuracy: dict[str, dict[str, dict[str, float]]] = {}
        self.missing: dict[str, dict[str, str]] = {}
        self.remarks: list[str] = []

    def add(self, part: str, measure: str, rounds: Rounds) -> None:
        self.measured.setdefault(part, {})[measure] = rounds

    def miss(self, part: str, name: str, reason: str) -> None:
        self.missing.setdefault(part, {})[name] = reason

    def print_part(self, part: str, title: str) -> None:
        """Print a table of the medians of a part, and a table of ratios for each form of nnxp."""
        measures = self.measured.get(part, {})
        names = list(dict.fromkeys(name for rounds in measures.values() for name in rounds))
        print_table(
            [title, *measures],
            [[name, *(self.cell(part, measure, name) for measure in measures)] for name in names],
        )
        for ours in (name for name in OURS if name in names):
            rows = [
                [name, *(spread_of(ratios(x, ours, name)) for x in measures.values())]
                for name in names
                if name != ours
            ]
            if rows:
                print_table([f"{part}: {ours} / this (quartiles)", *measures], rows)

    def cell(self, part: str, measure: str, name: str) -> str:
        """Return a median as text, with memory and accuracy if there are any."""
        values = self.measured[part][measure].get(name)
        if not values:
            return ""
        text = number(statistics.median(values))
        memory = self.memory.get(part, {}).get(measure, {}).get(name)
        reached = self.accuracy.get(part, {}).get(measure, {}).get(name)
        extra = [] if memory is None else [f"{memory:.0f} MiB"]
        extra += [] if reached is None else [f"{100 * reached:.1f} %"]
        return f"{text} ({', '.join(extra)})" if extra else text

    def check_accuracy(self, part: str, measure: str, accuracy: dict[str, float]) -> None:
        """Store a remark on each peer whose accuracy differs from the others'."""
        median = statistics.median(accuracy.values())
        self.remarks += [
            f"{name} reached a validation accuracy of {value:.4f} on {part}, {measure}, and the "
            f"median is {median:.4f}: by chance, unless it differs again in another run"
            for name, value in accuracy.items()
            if abs(value - median) > ACCURACY_TOLERANCE
        ]

    def summary(self) -> list[dict[str, Any]]:
        """Return the ratios to the fastest form of each library, for each measure and form of nnxp.

        The fastest form has the lowest median. There is also a ratio to the fastest of all others.
        """
        rows = []
        for part, measures in self.measured.items():
            for measure, rounds in measures.items():
                others = [x for x in rounds if not x.startswith("nnxp") and x != "products"]
                groups = LIBRARIES | {"fastest other": tuple(others)}
                for ours in (name for name in OURS if name in rounds):
                    row: dict[str, Any] = {"part": part, "measure": measure, "nnxp": ours}
                    for library, forms in groups.items():
                        found = [form for form in forms if form in rounds]
                        if found:
                            fastest = min(found, key=lambda x: statistics.median(rounds[x]))
                            row[library] = [fastest, ratios(rounds, ours, fastest)]
                    if len(row) > 3:
                        rows.append(row)
        return rows


def ratios(rounds: Rounds, ours: str, name: str) -> list[float]:
    """Return the ratio of nnxp to a peer for each round; [] if one of them was not run."""
    if ours not in rounds or name not in rounds:
        return []
    return [a / b for a, b in zip(rounds[ours], rounds[name], strict=True)]


def spread_of(values: list[float]) -> str:
    return spread(values) if values else ""


def number(value: float) -> str:
    """Return a number as text with three or more digits, without an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    print("", *lines, sep="\n", flush=True)


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Print nnxp's ratios to the fastest form of each library."""
    heads = [*LIBRARIES, "fastest other"]
    used = [head for head in heads if any(head in row for row in rows)]
    if not rows:
        return
    print("\nnnxp / the fastest form of each library, and / the fastest of all others:")
    lines = []
    for row in rows:
        cells = [f"{spread(row[head][1])}, {row[head][0]}" if head in row else "" for head in used]
        lines.append([f"{row['part']}, {row['measure']}", row["nnxp"], *cells])
    print_table(["measure", "nnxp", *used], lines)


def not_run(missing: dict[str, dict[str, str]]) -> list[str]:
    """Return a line with the reason for each peer or part that was not run."""
    parts: dict[tuple[str, str], list[str]] = {}
    for part, reasons in missing.items():
        for name, reason in reasons.items():
            parts.setdefault((name, reason), []).append(part)
    return [
        f"{name}: {reason}" if found == [name] else f"{name} in {', '.join(found)}: {reason}"
        for (name, reason), found in parts.items()
    ]


def print_crossover(
    network: str, device: str, sizes: tuple[int, ...], on_device: list[float], on_cpu: list[float]
) -> None:
    """Print the batch size from which the device is faster at this size and all larger ones."""
    faster = [a < b for a, b in zip(on_device, on_cpu, strict=True)]
    first = next((size for i, size in enumerate(sizes) if all(faster[i:])), None)
    print(f"\n{network}: {device} is faster than this CPU from batch size {first or '(none)'}")


def draw_against_cpu(
    sizes: tuple[int, ...], medians: dict[str, dict[str, list[float]]], device: str, folder: Path
) -> None:
    """Draw the time per step by batch size, on the device and on this CPU."""
    figure = new_figure(9, 3.6)
    for axes, (network, lines) in zip(
        figure.subplots(1, len(medians), squeeze=False).flat, medians.items(), strict=True
    ):
        for number, (times, label) in enumerate(
            zip(lines.values(), (device, "this CPU"), strict=True)
        ):
            axes.loglog(sizes, times, label=label, **curve_style(number))
        axes.set_title(network, fontsize="medium")
        axes.set_xlabel("batch size")
        axes.set_ylabel("µs per training step")
        axes.legend()
    save_figure(figure, folder / "batches.png")


def draw(measured: dict[str, dict[str, Rounds]], title: str, folder: Path) -> None:
    """Draw the time per step as bars, fastest first, for measures with enough rounds."""
    panels = [
        (part, measure, rounds)
        for part, measure in DRAWN
        if (rounds := measured.get(part, {}).get(measure))
        and any(not name.startswith("nnxp") for name in rounds)
        and min(map(len, rounds.values())) >= ROUNDS_DRAWN
    ]
    if not panels:
        announce(f"no picture: it shows steps of {ROUNDS_DRAWN} or more rounds beside other peers")
        return
    columns = min(3, len(panels))
    figure = new_figure(4.5 * columns, 3.8 * -(-len(panels) // columns))
    figure.get_layout_engine().set(hspace=0.08)
    axes_of = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
    for axes, (part, measure, rounds) in zip(axes_of, panels, strict=False):
        medians = sorted((statistics.median(values), name) for name, values in rounds.items())
        times, names = zip(*medians, strict=True)
        colours = ["C0" if x.startswith("nnxp") else "0.4" if x == "products" else "0.75"
                   for x in names]  # fmt: skip
        bars = axes.barh(names, times, color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{part}, {measure}", fontsize="medium")
        axes.set_xlabel("µs per training step")
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.suptitle(title, fontsize="medium", parse_math=False)
    save_figure(figure, folder / "benchmark.png")
