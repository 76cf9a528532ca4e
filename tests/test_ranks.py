"""Ranks: several of them train as one does, and end together. Here they are threads."""

from __future__ import annotations

import pickle
import sys
import threading
import types
import warnings

import numpy as np
import pytest
from divided import CASES, DATA, INPUTS, LABELS, ROWS, TOLERANCE, new_network, numbers_of, train
from thread_ranks import run_ranks

import nnxp
import nnxp.capture
import nnxp.checks
from nnxp.capture.trial import Refusal
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import ONE_RANK, Share
from nnxp.training.callbacks import Callback, Checkpoint, EarlyStopping


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
    """And an epoch once, whether its steps must be captured anew."""

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
        assert exchanges == steps + 1


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
        own.update(np.linspace(0, ROWS - 1, 16).astype(int))  # which all ranks compare
        inputs[[i for i in range(ROWS) if i not in own]] = np.nan
        assert len(own) < ROWS - 10
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


@pytest.mark.parametrize("method", ["start", "step", "finish"])
def test_an_error_of_a_callback_on_one_rank_ends_all(method):
    class Failing(Callback):
        every_step = True

    def fail(callback, trainer, *_):
        if trainer.ranks.rank == 1 and trainer.optimizer.steps in (0, 7, 15):
            raise nnxp.DataError("row 7 cannot be read")

    setattr(Failing, method, fail)
    results = run_ranks(3, lambda ranks: train(ranks, fit={"callbacks": [Failing()]}))
    assert [(type(x), str(x)) for x in results] == [(nnxp.DataError, "row 7 cannot be read")] * 3


def test_an_error_while_all_ranks_end_is_not_exchanged():
    """As of a finally, in which rank 0 writes its results on a full disk."""

    def fit(ranks):
        with pytest.raises(nnxp.InputError) as common:
            train(ranks, epochs=0)
        if ranks.rank == 0:
            error = OSError("the disk is full")
            error.__context__ = common.value
            with pytest.raises(OSError, match="the disk is full"):
                ranks.fail(error)
        return ranks.is_alone

    assert run_ranks(2, fit) == [False, False]


def test_an_error_of_one_rank_within_a_step_leaves_it_alone(monkeypatch):
    """The others wait for its gradients; here the test ends them, as mpi4py does."""
    monkeypatch.setattr("nnxp.ranks._PATIENCE", 0.1)

    def fit(ranks):
        def fail(params, grads):
            if ranks.rank == 1:
                nnxp.checks.warn("only here")
                raise OSError("the disk is gone")
            return grads

        return train(ranks, capture=False, transforms=[fail])

    with pytest.warns(UserWarning, match="^only here$"):  # it is not lost
        results = run_ranks(3, fit)
    assert type(results[1]) is OSError
    broken = threading.BrokenBarrierError
    assert [type(results[i]) for i in (0, 2)] == [broken, broken]


def test_warnings_are_issued_once_and_by_rank_0():
    class Warning_(Callback):  # noqa: N801
        def epoch(self, trainer, record):
            if record.epoch == 1:
                nnxp.checks.warn("of all")
                if trainer.ranks.rank:
                    nnxp.checks.warn("of some")

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainers = run_ranks(3, lambda ranks: train(ranks, fit={"callbacks": [Warning_()]}))
    assert [str(x.message) for x in found] == ["of all", "rank 1: of some"]
    # where the callback warns, and where `fit` is called
    assert {x.filename for x in found} == {__file__, train.__code__.co_filename}
    assert all(x.epochs == 3 for x in trainers)


def test_rank_0_saves_alone_after_an_epoch(tmp_path):
    class Save(Callback):
        only_rank_0 = True

        def epoch(self, trainer, record):
            trainer.save(tmp_path / f"epoch{record.epoch}.safetensors")

    def fit(ranks):
        trainer = train(ranks, fit={"callbacks": [Save()]})
        if ranks.rank == 0:
            trainer.save(tmp_path / "end.safetensors")
        return Trainer.resume(tmp_path / "end.safetensors", ranks=ranks)  # waits for rank 0

    Trainer = nnxp.Trainer
    one = train(ONE_RANK)
    for trainer in run_ranks(2, fit):
        assert trainer.epochs == 3
        for name, x in trainer.network.parameters().items():
            np.testing.assert_allclose(x, one.network.parameters()[name], atol=TOLERANCE)
    assert Trainer.resume(tmp_path / "epoch2.safetensors").epochs == 2


@pytest.mark.parametrize("only_rank_0", [True, False])
def test_a_save_of_rank_0_alone_after_a_step_ends_all_ranks(only_rank_0, tmp_path):
    class Save(Callback):
        every_step = True

        def step(self, trainer):
            if trainer.ranks.rank == 0:
                trainer.save(tmp_path / "training.safetensors")

    Save.only_rank_0 = only_rank_0
    for error in run_ranks(3, lambda ranks: train(ranks, fit={"callbacks": [Save()]})):
        assert type(error) is nnxp.RanksError
        assert "1 of 3 ranks save the training" in str(error)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda trainer: trainer.network[0].params["W"].__iadd__(1), "W1"),
        (lambda trainer: setattr(trainer.optimizer, "learning_rate", 0.5), "network, opti"),
        (lambda trainer: trainer.rng.random(), "seed or generator"),
    ],
)  # fmt: skip
def test_a_callback_that_changes_one_rank_ends_all(change, name):
    class Changing(Callback):
        only_rank_0 = True

        def epoch(self, trainer, record):
            if record.epoch == 2:
                change(trainer)

    for error in run_ranks(2, lambda ranks: train(ranks, fit={"callbacks": [Changing()]})):
        assert type(error) is nnxp.RanksError
        assert f"rank 1 has another {name}" in str(error)
        assert "after epoch 2; a callback that changes" in str(error)


def test_ranks_with_other_callbacks_and_parts_of_the_users_train_as_one():
    """One rank has a callback that replaces an array, so that the steps must be captured anew."""

    class Own(nnxp.Tanh):
        pass

    class Replace(Callback):
        def epoch(self, trainer, record):
            trainer.network[0].params["W"] = trainer.network[0].params["W"].copy()

    def fit(ranks, activation):
        network = nnxp.Sequential([
            nnxp.Affine(6, 4, rng=0, dtype="float64"), activation(),
            nnxp.Affine(4, 3, rng=0, dtype="float64"),
        ])  # fmt: skip
        callbacks = [Replace()] if ranks.rank == 0 else []
        return train(ranks, network=network, fit={"callbacks": callbacks})

    for activation in (nnxp.Tanh, Own):
        trainers = run_ranks(2, lambda ranks, a=activation: fit(ranks, a))
        require_equal(trainers, fit(ONE_RANK, activation))
        assert [x.captured for x in trainers] == ["captured"] * 2


def test_one_rank_that_stops_stops_all_after_the_epoch():
    class Stop(Callback):
        def epoch(self, trainer, record):
            return trainer.ranks.rank == 1 and record.epoch == 2

    for trainer in run_ranks(3, lambda ranks: train(ranks, fit={"callbacks": [Stop()]})):
        assert trainer.epochs == 2


def test_rank_0_alone_writes_checkpoints(tmp_path):
    def fit(ranks):
        train(ranks, fit={"checkpoint": tmp_path / f"rank{ranks.rank}.safetensors"})

    assert run_ranks(2, fit) == [None, None]
    assert [x.name for x in tmp_path.glob("*.safetensors")] == ["rank0.safetensors"]


def test_ranks_that_make_other_calls_are_refused(tmp_path):
    path = tmp_path / "training.safetensors"
    train(ONE_RANK).save(path)

    def call(ranks):
        return train(ranks) if ranks.rank else nnxp.Trainer.resume(path, ranks=ranks)

    for error in run_ranks(2, call):
        assert type(error) is nnxp.RanksError
        assert "rank 1 is in Trainer.fit, and rank 0 in Trainer.resume" in str(error)


def test_the_search_for_a_learning_rate_is_the_same_on_each_rank():
    def search(ranks):
        trainer = nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        return nnxp.learning_rate_range(trainer, DATA, batch_size=10, rng=0, steps=20)

    one = search(ONE_RANK)
    for found in run_ranks(2, search):
        np.testing.assert_array_equal(found.losses, one.losses)


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
        (lambda rank: {"optimizer": nnxp.SGD(0.1 + rank)}, "network, optimizer or other part"),
        (lambda rank: {"network": changed(new_network(), rank)}, "W1"),
        (lambda rank: {"data": nnxp.data.Dataset(INPUTS + rank, LABELS)}, "data set"),
        (lambda rank: {"data": nnxp.data.Dataset(INPUTS, (LABELS + rank) % 3)}, "data set"),
        (lambda rank: {"epochs": 2 + rank}, "setting of fit"),
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


def of_rank(ranks, case):
    """Return the batches of a rank, which are other ones on rank 1."""
    batches = [(INPUTS[i : i + 10], LABELS[i : i + 10]) for i in range(0, ROWS, 10)]

    class Failing(list):
        def __iter__(self):
            yield from batches[:3]
            raise nnxp.DataError("batch 4 cannot be read")

    if ranks.rank == 1:
        if case == "fewer":
            return batches[:4]
        if case == "more":
            return [*batches, batches[0]]
        if case == "other":
            return [*batches[:2], *reversed(batches[2:4]), batches[4]]
        return Failing(batches)
    return batches


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("fewer", nnxp.RanksError, "rank 1 has fewer batches than rank 0"),
        ("more", nnxp.RanksError, "rank 1 has more batches than rank 0"),
        ("other", nnxp.RanksError, "rank 1 has other labels in batch 3 than rank 0"),
        ("failing", nnxp.DataError, "batch 4 cannot be read"),
    ],
)
def test_other_batches_of_one_rank_end_all(case, kind, words):
    def fit(ranks):
        trainer = nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        trainer.fit(of_rank(ranks, case), epochs=2)

    for error in run_ranks(3, fit):
        assert type(error) is kind
        assert words in str(error)


def test_each_rank_checks_its_share_of_a_data_set():
    def make(ranks, bad_row=None):
        share, inputs = ranks.share(ROWS), np.full(INPUTS.shape, np.nan)
        inputs[share.rows] = INPUTS[share.rows]  # no other row is read
        if bad_row is not None and share.start <= bad_row < share.stop:
            inputs[bad_row, 2] = np.inf
        return nnxp.data.Dataset(inputs, LABELS, ranks=ranks)

    for dataset in run_ranks(4, make):
        assert dataset.largest == DATA.largest
    for error in run_ranks(4, lambda ranks: make(ranks, 25)):
        assert type(error) is nnxp.InputError
        assert "not finite, first in example 25" in str(error)
    few = nnxp.data.Dataset(INPUTS[:2], LABELS[:2])  # fewer examples than ranks
    for dataset in run_ranks(4, lambda x: nnxp.data.Dataset(INPUTS[:2], LABELS[:2], ranks=x)):
        assert dataset.largest == few.largest


def test_rank_0_alone_reads_all_inputs_for_statistics():
    class Own(nnxp.Standardize):
        def adapt(self, inputs, weights=None):
            super().adapt(inputs, weights)
            self.has_read = True

    def fit(ranks):
        network = nnxp.Sequential([
            Own(dtype="float64"), nnxp.Affine(6, 3, rng=0, dtype="float64"),
        ])  # fmt: skip
        inputs = INPUTS + 5
        data = nnxp.data.Dataset(inputs, LABELS)
        inputs[4 * ranks.rank] *= 1 + ranks.rank  # which is not compared
        return train(ranks, data, network=network, epochs=1)

    assert 4 not in np.linspace(0, ROWS - 1, 16).astype(int)
    layers = [x.network[0] for x in [fit(ONE_RANK), *run_ranks(2, fit)]]
    assert [hasattr(x, "has_read") for x in layers] == [True, True, False]
    states = [x.state for x in layers]
    for state in states[1:]:
        for name, x in state.items():
            np.testing.assert_array_equal(x, states[0][name])


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


def test_an_mpi4py_that_finds_no_mpi_names_the_command_that_installs_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", types.ModuleType("mpi4py"))
    with pytest.raises(nnxp.MissingExtraError, match="finds no MPI .* pip install mpich"):
        nnxp.distributed.MPIRanks()


def test_a_trainer_with_a_step_of_its_own_is_refused():
    class Own(nnxp.Trainer):
        def step(self, *batch):
            return super().step(*batch)

    def fit(ranks):
        trainer = Own(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        trainer.fit(DATA, epochs=1, batch_size=10, rng=0)

    def train_epoch(ranks):
        trainer = Own(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), ranks=ranks)
        trainer.train_epoch(nnxp.data.Batches(DATA, 10, device="cpu", dtype="float64", rng=0))

    for error in [*run_ranks(2, fit), *run_ranks(2, train_epoch)]:
        assert "class overrides step" in str(error)
