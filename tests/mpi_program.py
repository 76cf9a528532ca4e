"""What the tests of MPI run as ``mpiexec … python -m mpi4py mpi_program.py NAME …``."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

import nnxp
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import ONE_RANK
from nnxp.training.callbacks import Callback

# Without -m mpi4py only in a test of that.
RANKS = nnxp.distributed.mpi() if "mpi4py" in sys.modules or sys.argv[1:2] == ["act"] else ONE_RANK
ROWS = 103  # batches of 10, and a last one of 3, smaller than 4 ranks
EPOCHS = 110  # 11 steps each: 1,210


def new_trainer(optimizer, ranks=RANKS, *, spec="cpu", **settings):
    rng, device = np.random.default_rng(1), nnxp.device(spec)
    place = {"dtype": "float64", "device": device}
    network = nnxp.Sequential([
        nnxp.Affine(6, 8, rng=rng, **place), nnxp.Tanh(), nnxp.BatchNorm(8, **place),
        nnxp.Dropout(0.3, rng=rng, **place), nnxp.Affine(8, 3, rng=rng, **place),
    ])  # fmt: skip
    return nnxp.Trainer(
        network, nnxp.SoftmaxWithLoss(class_weights=[1, 2, 5]), optimizer, penalty=nnxp.L2(1e-2),
        transforms=[nnxp.ClipNorm(0.3)], ranks=ranks, **settings,
    )  # fmt: skip


def new_data():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(ROWS, 6)), rng.integers(0, 3, ROWS)
    return nnxp.data.Dataset(inputs, labels, weights=rng.random(ROWS) + 0.1)


def fit(trainer, epochs=EPOCHS, **options):
    trainer.fit(
        new_data(), epochs=epochs, batch_size=10, rng=3, validation=new_data(), **options
    )  # fmt: skip


def equal(out, *ways):
    """Train with each optimizer, and save the numbers; all ranks have the same bits."""
    found = {}
    for way in ways:
        settings = {"capture": way != "plain", "compiled": way == "compiled"}
        for name, optimizer in OPTIMIZERS.items():
            trainer = new_trainer(optimizer(), **settings)
            fit(trainer)
            assert trainer.optimizer.steps == 1210
            network = trainer.network
            numbers = {n: np.array(x) for n, x in
                       [*network.parameters().items(), *network.states().items()]}  # fmt: skip
            figures = [{n: x for n, x in r.items() if n != "seconds"} for r in trainer.history]
            numbers["history"] = np.array([list(x.values()) for x in figures])
            RANKS.require_same(numbers)
            found |= {f"{way} {name} {n}": x for n, x in numbers.items()}
    if RANKS.rank == 0:
        np.savez(out, **found)


def gpus(out, ways):
    """Train on a GPU a rank, and save the parameters."""
    ranks = nnxp.distributed.nccl() if "mpi4py" in sys.modules else ONE_RANK
    spec = getattr(ranks, "device", "cuda:0")
    found = {}
    for way in ways.split(","):
        trainer = new_trainer(nnxp.Adam(), ranks, spec=spec, capture=way != "plain")
        fit(trainer)
        host = trainer.network.device.to_host
        found |= {f"{way} {n}": host(x) for n, x in trainer.network.parameters().items()}
    ranks.require_same(found)
    if ranks.rank == 0:
        np.savez(out, **found)


def fail(*_):
    raise nnxp.DataError("row 7 cannot be read")


ACTIONS = {
    "raise": fail,
    "exit": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def act(name, step):
    """Train, while the last rank does something within a step, for which the others wait."""
    trainer = new_trainer(nnxp.Adam(), capture=False)

    def at_step(params, grads):
        if trainer.optimizer.steps == int(step) and RANKS.rank == RANKS.size - 1:
            ACTIONS[name]()
        return grads

    trainer.transforms = [at_step]
    fit(trainer)


def callback(folder):
    """Train, while a callback of the last rank has an error."""
    own = Callback()
    own.every_step = True
    if RANKS.rank == RANKS.size - 1:
        own.step = fail
    try:
        fit(new_trainer(nnxp.Adam()), callbacks=[own])
    except nnxp.DataError as error:
        Path(folder, f"error{RANKS.rank}").write_text(str(error))
        RANKS.exchange()
        sys.exit(1)


def interrupt(folder):
    """Train, until the last rank alone gets a signal after step 7."""
    own, stop = Callback(), nnxp.callbacks.StopOnSignal()
    own.every_step = True
    trainer = new_trainer(nnxp.Adam())

    def step(_):
        if trainer.optimizer.steps == 7 and RANKS.rank == RANKS.size - 1:
            signal.raise_signal(signal.SIGTERM)

    own.step = step
    fit(trainer, callbacks=[own, stop])
    Path(folder, f"rank{RANKS.rank}").write_text(f"{stop.received:d} {trainer.optimizer.steps}")


def full(folder):
    """Train, while rank 0 cannot write files of more than a few bytes."""
    if RANKS.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        fit(new_trainer(nnxp.Adam()), checkpoint=Path(folder, "training.safetensors"))
    except nnxp.CheckpointError as error:
        Path(folder, f"error{RANKS.rank}").write_text(str(error))
        RANKS.exchange()
        sys.exit(1)


def forever(folder):
    """Train until the process is killed, with checkpoints; write the processes' numbers."""
    Path(folder, f"rank{RANKS.rank}").write_text(str(os.getpid()))
    fit(new_trainer(nnxp.Adam()), 10**6, checkpoint=Path(folder, "training.safetensors"),
        checkpoint_every=50)  # fmt: skip


if __name__ == "__main__":
    known = (equal, act, callback, interrupt, forever, full, gpus)
    {x.__name__: x for x in known}[sys.argv[1]](*sys.argv[2:])
