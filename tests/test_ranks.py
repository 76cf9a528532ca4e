"""Ranks: several of them train as one does, and end together. Here they are threads."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from thread_ranks import run_ranks

import nnxp
import nnxp.capture
from nnxp.capture.trial import Refusal
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import ONE_RANK, Share
from nnxp.training.callbacks import Callback, Checkpoint, EarlyStopping

ROWS = 43  # batches of 10, and a last one of 3, smaller than 4 ranks
RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(ROWS, 6)), RNG.integers(0, 3, ROWS)
WEIGHTS = RNG.random(ROWS) * (np.arange(ROWS) % 3 > 0)
DATA = nnxp.data.Dataset(INPUTS, LABELS)
WEIGHTED = nnxp.data.Dataset(INPUTS, LABELS, weights=WEIGHTS)
# Sums in another order differ by some units of rounding, 1.1e-16 of their size, and the steps of a
# test add up: fewer than 100 of numbers of about 1 remain far below it.
TOLERANCE = 1e-12


def new_network(*, batch_norm=False, dropout=0.0):
    rng = np.random.default_rng(1)
    layers = [nnxp.Affine(6, 8, rng=rng, dtype="float64"), nnxp.Tanh()]
    if batch_norm:  # after the activation: before it, the gradient of a bias is only rounding error
        layers.append(nnxp.BatchNorm(8, dtype="float64"))
    if dropout:
        layers.append(nnxp.Dropout(dropout, rng=rng, dtype="float64"))
    return nnxp.Sequential([*layers, nnxp.Affine(8, 3, rng=rng, dtype="float64")])


def train(ranks, data=DATA, *, optimizer=None, network=None, epochs=3, fit=None, **settings):
    network = network or new_network()
    loss = settings.pop("loss", None) or nnxp.SoftmaxWithLoss()
    trainer = nnxp.Trainer(
        network, loss, optimizer or nnxp.Momentum(0.1), ranks=ranks, **settings
    )  # fmt: skip
    trainer.fit(data, epochs=epochs, batch_size=10, rng=3, validation=DATA, **(fit or {}))
    return trainer


def numbers_of(trainer):
    """Return all numbers of a training by name."""
    network = trainer.network
    arrays = dict(network.parameters()) | dict(network.states())
    arrays |= {f"{slot} {n}": x for slot, kept in trainer.optimizer.state.items()
               for n, x in kept.items()}  # fmt: skip
    arrays |= {f"{name} {record.epoch}": np.array(x) for record in trainer.history
               for name, x in record.items() if name != "seconds"}  # fmt: skip
    return {name: np.array(x) for name, x in arrays.items()}


def require_equal(trainers, one):
    """Require the bits of the first trainer of all ranks, which are near to those of `one`."""
    for trainer in trainers:
        if isinstance(trainer, BaseException):
            raise trainer
    expected, (first, *others) = numbers_of(one), map(numbers_of, trainers)
    assert expected.keys() == first.keys()
    for name, x in first.items():
        np.testing.assert_allclose(x, expected[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
        for other in others:
            np.testing.assert_array_equal(x, other[name], err_msg=name)


CASES = {
    "plain": lambda: {"capture": False},
    "captured": lambda: {"capture": True, "compiled": False},
    "compiled": lambda: {"capture": True, "compiled": True},
    "all": lambda: {
        "network": new_network(dropout=0.3),
        "penalty": nnxp.L2(1e-2),
        "transforms": [nnxp.ClipNorm(0.3)],
        "metrics": [nnxp.metrics.TopAccuracy(2)],
    },
    "all, plain": lambda: CASES["all"]() | {"capture": False},
    "weights": lambda: {"data": WEIGHTED, "loss": nnxp.SoftmaxWithLoss(class_weights=[1, 2, 5])},
    "weights, plain": lambda: CASES["weights"]() | {"capture": False},
    "batch norm": lambda: {"network": new_network(batch_norm=True)},
    "batch norm, plain": lambda: CASES["batch norm"]() | {"capture": False},
    "batch norm, compiled": lambda: CASES["batch norm"]() | {"compiled": True},
    "accumulate": lambda: {"fit": {"accumulate": 3}, "network": new_network(dropout=0.3)},
    "weights, accumulate": lambda: CASES["weights"]() | {"fit": {"accumulate": 3}},
    "after": lambda: {"fit": {"train_metrics": "after"}},
    "frozen": lambda: {"network": frozen(new_network(batch_norm=True))},
    "by parameter": lambda: {"optimizer": ByParameter(0.1)},
}


def frozen(network):
    network[0].trainable = False
    return network


class ByParameter(nnxp.SGD):
    """A rule that is not element by element, as it uses the norm of each parameter's gradient."""

    elementwise = False

    def _update_one(self, params, name, gradient, learning_rate):
        xp = gradient.__array_namespace__()
        params[name] -= learning_rate * gradient / (1 + xp.sum(gradient * gradient))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process(case, size):
    one = train(ONE_RANK, **CASES[case]())
    trainers = run_ranks(size, lambda ranks: train(ranks, **CASES[case]()))
    require_equal(trainers, one)
    plain = "plain" in case
    assert trainers[0].captured.startswith("plain") == plain, trainers[0].captured


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_on_ranks_equals_one_process(optimizer):
    one = train(ONE_RANK, optimizer=OPTIMIZERS[optimizer]())
    require_equal(run_ranks(3, lambda ranks: train(ranks, optimizer=OPTIMIZERS[optimizer]())), one)


@pytest.mark.parametrize("capture", [True, False])
def test_batch_norm_of_own_rows_averages_the_running_statistics(capture):
    """With a momentum of 1, they are those of the last batch."""

    def network():
        return nnxp.Sequential([
            nnxp.BatchNorm(6, momentum=1.0, dtype="float64"),
            nnxp.Affine(6, 3, rng=0, dtype="float64"),
        ])  # fmt: skip

    data = nnxp.data.Dataset(INPUTS[:40], LABELS[:40])
    trainers = run_ranks(
        2,
        lambda ranks: train(
            ranks, data, network=network(), epochs=1, capture=capture, metrics=[]
        ),
        "own",
    )  # fmt: skip
    order = np.random.default_rng(3).permutation(40)[30:]
    parts = [INPUTS[order[:5]], INPUTS[order[5:]]]
    for trainer in trainers:
        state = trainer.network[0].state
        means = np.mean([x.mean(axis=0) for x in parts], axis=0)
        variances = np.mean([x.var(axis=0, ddof=1) for x in parts], axis=0)
        np.testing.assert_allclose(state["running_mean"], means, atol=TOLERANCE)
        np.testing.assert_allclose(state["running_var"], variances, atol=TOLERANCE)
    first, second = map(numbers_of, trainers)
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)


def test_too_small_parts_for_own_statistics_are_refused_on_all_ranks():
    results = run_ranks(4, lambda ranks: train(ranks, network=new_network(batch_norm=True)), "own")
    assert [type(x) for x in results] == [nnxp.InputError] * 4
    assert "a rank has" in str(results[0])


def test_a_step_exchanges_once():
    def count(ranks):
        trainer = nnxp.Trainer(
            new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks, capture=True
        )
        batches = nnxp.data.Batches(DATA, 10, device="cpu", dtype="float64", rng=0)
        trainer.train_epoch(batches)
        before = ranks.vectors
        trainer.train_epoch(batches)
        return ranks.vectors - before, len(batches)

    for exchanges, steps in run_ranks(2, count):
        assert exchanges == steps


def test_a_rank_reads_its_own_rows_alone():
    """Rows of other ranks are not numbers, in an epoch whose order is known."""
    order = np.random.default_rng(3).permutation(ROWS)

    def train_on_own_rows(ranks):
        inputs = INPUTS.copy()
        data = nnxp.data.Dataset(inputs, LABELS)
        own = set()
        for start in range(0, ROWS, 10):
            batch = order[start : start + 10]
            own.update(batch[ranks.share(len(batch)).rows])
        inputs[[i for i in range(ROWS) if i not in own]] = np.nan
        assert len(own) < ROWS
        return train(ranks, data, epochs=1)

    require_equal(run_ranks(2, train_on_own_rows), train(ONE_RANK, epochs=1))


class StopAt(Callback):
    every_step = True

    def __init__(self, step, rank=None):
        self.at, self.rank = step, rank

    def step(self, trainer):
        return trainer.optimizer.steps == self.at and self.rank in (None, trainer.ranks.rank)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 3), (2, 1)])
def test_a_checkpoint_resumes_on_another_number_of_ranks(before, after, tmp_path):
    path = tmp_path / "training.safetensors"
    case = CASES["all"]

    def stopped(ranks):  # by one rank, within the second epoch
        return train(ranks, **case(), fit={"callbacks": [StopAt(8, ranks.size - 1)],
                                           "checkpoint": path})  # fmt: skip

    def resumed(ranks):
        trainer = nnxp.Trainer.resume(path, ranks=ranks)
        trainer.fit(DATA, epochs=2, batch_size=10, rng=trainer.rng, validation=DATA)
        return trainer

    for trainer in run_ranks(before, stopped) if before > 1 else [stopped(ONE_RANK)]:
        assert trainer.optimizer.steps == 8
    trainers = run_ranks(after, resumed) if after > 1 else [resumed(ONE_RANK)]
    require_equal(trainers, train(ONE_RANK, **case()))


def test_early_stopping_and_its_restored_epoch_are_the_same():
    def stopping(ranks):
        stop = EarlyStopping(1, restore_best=True, min_delta=0.05)
        return train(ranks, epochs=30, fit={"callbacks": [stop]})

    one = stopping(ONE_RANK)
    assert one.epochs < 30
    require_equal(run_ranks(3, stopping), one)


def test_a_divergence_ends_all_ranks_by_one_error():
    def diverging(ranks):
        with np.errstate(all="ignore"):
            network = new_network(batch_norm=True)
            return train(ranks, network=network, optimizer=nnxp.SGD(1e308))

    with pytest.raises(nnxp.DivergenceError) as one:
        diverging(ONE_RANK)
    for error in run_ranks(3, diverging):
        assert type(error) is nnxp.DivergenceError
        assert str(error) == str(one.value)


def test_an_error_of_one_rank_at_the_end_of_an_epoch_ends_all():
    class Failing(Callback):
        def epoch(self, trainer, record):
            if trainer.ranks.rank == 1:
                raise OSError("the disk is gone")

    results = run_ranks(3, lambda ranks: train(ranks, fit={"callbacks": [Failing()]}))
    assert [type(x) for x in results] == [nnxp.RanksError, OSError, nnxp.RanksError]
    assert str(results[0]) == "rank 1 ended with OSError: the disk is gone"


def test_an_error_of_one_rank_within_an_epoch_leaves_it_alone(monkeypatch):
    """The others wait for its gradients; here the test ends them, as mpi4py does."""
    monkeypatch.setattr("nnxp.ranks._PATIENCE", 0.1)

    class Failing(Callback):
        every_step = True

        def step(self, trainer):
            if trainer.ranks.rank == 1 and trainer.optimizer.steps == 7:
                raise OSError("the disk is gone")

    results = run_ranks(3, lambda ranks: train(ranks, fit={"callbacks": [Failing()]}))
    assert type(results[1]) is OSError
    broken = threading.BrokenBarrierError
    assert [type(results[i]) for i in (0, 2)] == [broken, broken]


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks(tmp_path):
    path = tmp_path / "training.safetensors"

    class Remove(Callback):
        def epoch(self, trainer, record):
            if trainer.ranks.rank == 0 and record.epoch == 1:
                path.unlink()
                path.mkdir()

    fit = {"callbacks": [Checkpoint(path), Remove()]}
    results = run_ranks(2, lambda ranks: train(ranks, fit=dict(fit) if ranks.rank == 0 else {
        "callbacks": [Checkpoint(path), Remove()]}))  # fmt: skip
    assert [type(x) for x in results] == [nnxp.CheckpointError] * 2
    assert str(results[0]) == str(results[1])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda rank: {"data": nnxp.data.Dataset(INPUTS[rank:], LABELS[rank:])}, "number of ex"),
        (lambda rank: {"optimizer": nnxp.SGD(0.1 + rank)}, "network, optimizer or setting"),
        (lambda rank: {"network": changed(new_network(), rank)}, "W1"),
    ],
)
def test_ranks_that_differ_are_refused(change, name):
    for error in run_ranks(2, lambda ranks: train(ranks, **{"data": DATA} | change(ranks.rank))):
        assert type(error) is nnxp.RanksError
        assert f"rank 1 has another {name}" in str(error)


def changed(network, rank):
    network.parameters()["W1"] += rank
    return network


def test_a_step_by_hand_takes_the_global_batch():
    def step(ranks):
        trainer = nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        return float(trainer.step(INPUTS, LABELS)), numbers_of(trainer)

    (one, expected), results = step(ONE_RANK), run_ranks(3, step)
    for loss, numbers in results:
        assert abs(loss - one) < TOLERANCE
        for name, x in numbers.items():
            np.testing.assert_allclose(x, expected[name], atol=TOLERANCE)


def test_batches_of_an_iterable_are_divided():
    batches = [(INPUTS[i : i + 10], LABELS[i : i + 10]) for i in range(0, ROWS, 10)]

    def fit(ranks):
        trainer = nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        trainer.fit(batches, epochs=2)
        return trainer

    require_equal(run_ranks(4, fit), fit(ONE_RANK))


@pytest.mark.parametrize("spec", ["strict", "cpu"])
def test_plain_steps_of_every_library_exchange(spec):
    def fit(ranks):
        rng, device = np.random.default_rng(0), nnxp.device(spec)
        network = nnxp.mlp([6, 5, 3], rng=rng, device=device, dtype="float64")
        trainer = nnxp.Trainer(
            network, nnxp.SoftmaxWithLoss(), nnxp.Adam(), ranks=ranks, capture=False
        )
        trainer.fit(DATA, epochs=2, batch_size=10, rng=0)
        return {name: device.to_host(x) for name, x in network.parameters().items()}

    expected = fit(ONE_RANK)
    for numbers in run_ranks(2, fit):
        for name, x in numbers.items():
            np.testing.assert_allclose(x, expected[name], atol=TOLERANCE)


def test_steps_that_one_rank_refuses_to_capture_are_plain_on_all(monkeypatch):
    """As where processors of different kinds round differently in a trial."""
    trial = nnxp.capture.disagreement

    def disagreement(captured, plain_step, step, batches):
        refusal = trial(captured, plain_step, step, batches)
        assert refusal is None
        return Refusal([], "it rounds") if step.ranks.rank == 1 else None

    class Own(nnxp.Tanh):
        pass

    def fit(ranks):
        network = nnxp.Sequential([
            nnxp.Affine(6, 4, rng=0, dtype="float64"), Own(),
            nnxp.Affine(4, 3, rng=0, dtype="float64"),
        ])  # fmt: skip
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        trainer.fit(DATA, epochs=1, batch_size=10, rng=0)
        return trainer.captured

    monkeypatch.setattr(nnxp.capture, "disagreement", disagreement)
    with pytest.warns(UserWarning, match="no step is captured"):
        results = run_ranks(2, fit)
    assert results == ["plain: another rank cannot capture it", "plain: it rounds"]


def test_shares_cover_a_batch_in_order():
    for size in range(1, 6):
        for total in range(1, 12):
            shares = [FixedRank(rank, size).share(total) for rank in range(size)]
            rows = [i for x in shares for i in range(x.start, x.stop)]
            assert rows == list(range(total))
            assert max(x.stop - x.start for x in shares) == -(-total // size)
            assert all(len(range(total)[x.rows]) >= 1 for x in shares)
    assert Share(3, 3, 5).rows == slice(4, 5)


class FixedRank(type(ONE_RANK)):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def test_one_process_is_rank_0_of_1_and_a_trainer_is_copied_with_it():
    trainer = nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    for each in (trainer, pickle.loads(pickle.dumps(trainer))):
        assert (each.ranks.rank, each.ranks.size) == (0, 1)
    with pytest.raises(nnxp.InputError, match="ranks must be an object of nnxp.distributed.Ranks"):
        nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=4)


def test_a_trainer_with_a_step_of_its_own_is_refused():
    class Own(nnxp.Trainer):
        def step(self, *batch):
            return super().step(*batch)

    def fit(ranks):
        trainer = Own(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        trainer.fit(DATA, epochs=1, batch_size=10, rng=0)

    for error in run_ranks(2, fit):
        assert "class overrides step" in str(error)
