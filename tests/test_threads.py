"""Threads: how many BLAS threads a training uses, and that it restores their number."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import threadpoolctl
from builders import (
    train_epoch,
    trainer_with,
)

import nnxp
from nnxp.devices import threads

pytestmark = pytest.mark.skipif(
    not any(x["user_api"] == "blas" for x in threadpoolctl.threadpool_info()),
    reason="NumPy's BLAS: none, or not known to threadpoolctl",
)


# Of 6 inputs and 40 or 20 examples: 2^24 multiplications are 69,906 and 139,811 wide.
@pytest.mark.parametrize(
    ("width", "batch_size", "threads"),
    [(5, 40, 1), (69_900, 40, 1), (69_910, 40, 2), (69_910, 20, 1)],
)
def test_small_networks_train_on_one_thread_and_restore_the_number(
    small, width, batch_size, threads, monkeypatch
):
    seen = []

    def spied(function):
        def spy(*args, **kwargs):
            libraries = threadpoolctl.threadpool_info()  # other packages' BLAS among them
            numpys = [x for x in libraries if "numpy" in x["filepath"]] or libraries
            if len(args[0]) == 1:  # the check of one example, before the training
                return function(*args, **kwargs)
            seen.append({x["num_threads"] for x in numpys if x["user_api"] == "blas"})
            return function(*args, **kwargs)

        return spy

    trainer = trainer_with(optimizer=nnxp.SGD(0.1), widths=(6, width, 3))
    trainer.capture = False  # a captured step does not call what has a side effect
    trainer.optimizer.update = spied(trainer.optimizer.update)
    monkeypatch.setattr(trainer.loss, "correct", spied(trainer.loss.correct))
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        rng = np.random.default_rng(0)
        train_epoch(trainer, small, batch_size, rng)
        trainer.fit(small, epochs=1, batch_size=batch_size, validation=small, rng=rng)
        trainer.evaluate(small, batch_size=batch_size)
        assert len(seen) > 4
        assert all(numbers == {threads} for numbers in seen)
        spied(len)([1, 2])
        assert seen[-1] == {2}


def test_overlapping_trainings_restore_the_number_of_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = (threads.limit_blas_threads(1) for _ in range(2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        numbers = {x["num_threads"] for x in threadpoolctl.threadpool_info()}
        assert 1 in numbers
        second.__exit__(None, None, None)
        libraries = threadpoolctl.threadpool_info()
        assert {x["num_threads"] for x in libraries if x["user_api"] == "blas"} == {2}


@pytest.mark.parametrize("last", ["main", "another"])
def test_trainings_in_several_threads_restore_the_number_of_threads(last):
    entered, leave = threading.Event(), threading.Event()

    def train():
        with threads.limit_blas_threads(1):
            entered.set()
            leave.wait()

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        other = threading.Thread(target=train)
        with threads.limit_blas_threads(1):
            other.start()
            entered.wait()
            assert blas_threads() == {1}
            if last == "main":
                leave.set()
                other.join()
                assert blas_threads() == {1}
        leave.set()
        other.join()
        assert blas_threads() == {2}


def test_the_limit_holds_in_a_thread_that_does_not_control_openblas():
    seen = []

    def train():
        with threads.limit_blas_threads(1):
            seen.append(blas_threads())

    threadpoolctl.threadpool_limits(2, user_api="blas")  # the main thread controls it from now on
    other = threading.Thread(target=train)
    other.start()
    other.join()
    assert seen == [{1}]
    assert blas_threads() == {2}


def blas_threads():
    libraries = threadpoolctl.threadpool_info()
    return {x["num_threads"] for x in libraries if x["user_api"] == "blas"}


def test_limit_that_the_user_sets_in_training_stays():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with threads.limit_blas_threads(1):
            assert blas_threads() == {1}
            threadpoolctl.threadpool_limits(3, user_api="blas")
        assert blas_threads() == {3}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not on this system")
def test_child_forked_in_training_has_the_threads_again():
    code = """
    import os, sys, threadpoolctl
    from nnxp.devices import threads

    def blas_threads():
        libraries = threadpoolctl.threadpool_info()
        return {x["num_threads"] for x in libraries if x["user_api"] == "blas"}

    threadpoolctl.threadpool_limits(2, user_api="blas")
    with threads.limit_blas_threads(1):
        child = os.fork()
        assert blas_threads() == ({1} if child else {2})
    assert blas_threads() == {2}
    with threads.limit_blas_threads(1):  # the child goes on, too
        assert blas_threads() == {1}
    assert blas_threads() == {2}
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
