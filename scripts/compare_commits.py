"""Compare the speed of two commits: the ratio of their times, measured in turn.

Both are timed by this checkout's timings.py, each in a process of its own and with one BLAS thread,
which repeats to a few percent; set ``OPENBLAS_NUM_THREADS=4`` for more threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cli import Parser, run, spread
from runs import THREADS

import nnxp

ROOT = Path(__file__).resolve().parent.parent
WORKING_TREE = "working tree"
ROUNDS = 9


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("first", nargs="?", default="HEAD~1", help="(default: HEAD~1)")
    parser.add_argument("second", nargs="?", default=WORKING_TREE, help="(default: working tree)")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of few steps: to try it, not to measure"
    )
    args = parser.parse_args()
    revisions = (args.first, args.second)
    quick = ["quick"] if args.quick else []
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(checkout(revision)) for revision in revisions]
        rounds = [
            [time_in_own_process(folder, quick) for folder in folders]
            for _ in range(2 if args.quick else ROUNDS)
        ]
    print(f"| µs | {args.first} | {args.second} | second / first (quartiles) |")
    print("|---|---|---|---|")
    for name in rounds[0][0]:
        first, second = ([times[i][name] for times in rounds] for i in range(2))
        ratio = spread([b / a for a, b in zip(first, second, strict=True)])
        medians = f"{statistics.median(first):.4g} | {statistics.median(second):.4g}"
        print(f"| {name} | {medians} | {ratio} |")


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Check a commit out into a temporary folder; the working tree is where it is."""
    if revision == WORKING_TREE:
        yield ROOT
        return
    commit = git(f"{revision} is no commit", "rev-parse", "--verify", f"{revision}^{{commit}}")
    git(
        f"commit {revision} has no Trainer.train_epoch(batches)",
        "grep", "-q", "def train_epoch(self, batches", commit, "--", "nnxp",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkout"
        git(f"cannot check {revision} out", "worktree", "add", "--detach", str(folder), commit)
        try:
            yield folder
        finally:
            git("cannot clean up", "worktree", "remove", "--force", str(folder))


def git(failure: str, *arguments: str) -> str:
    """Return what git prints; where it fails, an error says `failure` and git's own words."""
    result = subprocess.run(
        ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = result.stderr.strip().splitlines()
        raise nnxp.NnxpError(": ".join([failure, *reason[:1]]))
    return result.stdout.strip()


def time_in_own_process(folder: Path, quick: list[str]) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("timings.py"), folder, *quick],
        env=dict.fromkeys(THREADS, "1") | os.environ, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if result.returncode:
        raise nnxp.NnxpError(f"timing {folder} failed, see above")
    times: dict[str, float] = json.loads(result.stdout)
    return times


if __name__ == "__main__":
    run(main)
