"""Compare the speed of two commits: the ratios of their times, measured alternately.

This checkout's timings.py times both commits, each in its own process with one BLAS thread. The
ratios are repeatable to a few percent. Set OPENBLAS_NUM_THREADS=4 for more threads.
"""

from __future__ import annotations

from cli import Parser, announce, progress, run, run_worker, spread

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runs import THREADS

import nnxp

ROOT = Path(__file__).resolve().parent.parent
WORKING_TREE = "working tree"
ROUNDS = 9


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("first", nargs="?", default="HEAD~1", help="a commit (default: HEAD~1)")
    parser.add_argument("second", nargs="?", default=WORKING_TREE,
                        help="a commit (default: the working tree)")  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of few steps, to try the script"
    )
    args = parser.parse_args()
    revisions = (args.first, args.second)
    count = 2 if args.quick else ROUNDS
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(checkout(revision)) for revision in revisions]
        announce(f"{count} rounds of both commits; {ROUNDS} rounds take some minutes")
        rounds = [
            [time_checkout(folder, quick=args.quick) for folder in folders]
            for _ in progress(count, "round")
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
    """Return the folder of a commit, checked out temporarily, or of the working tree."""
    if revision == WORKING_TREE:
        yield ROOT
        return
    commit = git(f"{revision} is not a commit", "rev-parse", "--verify", f"{revision}^{{commit}}")
    git(
        f"commit {revision} has no Trainer.train_epoch(batches)",
        "grep", "-q", "def train_epoch(self, batches", commit, "--", "nnxp",
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(), "checkout")
    try:
        git(f"cannot check out {revision}", "worktree", "add", "--detach", str(folder), commit)
        yield folder
    finally:
        shutil.rmtree(folder.parent)
        # With the folder removed, git also removes a worktree that is incomplete.
        with contextlib.suppress(nnxp.NnxpError):
            git("", "worktree", "remove", "--force", "--force", str(folder))


def git(failure: str, *arguments: str) -> str:
    """Return git's output; if git fails, raise an error with `failure` and git's message."""
    result = subprocess.run(
        ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = result.stderr.strip().splitlines()
        raise nnxp.NnxpError(": ".join([failure, *reason[:1]]))
    return result.stdout.strip()


def time_checkout(folder: Path, *, quick: bool) -> dict[str, float]:
    """Return the microseconds that timings.py measures, by name."""
    command = [sys.executable, Path(__file__).with_name("timings.py"), folder]
    environment = dict.fromkeys(THREADS, "1") | os.environ
    times: dict[str, float] = run_worker(
        [*command, "--quick"] if quick else command, environment, f"timing {folder} failed"
    )
    return times


if __name__ == "__main__":
    run(main)
