"""Stop: what a `stop` callback may do, and the position within an epoch that it leaves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from builders import EPOCHS, STEPS, Stopping, fit, new_trainer, numbers, stopped_after, train_epoch
from tables import BACKENDS, device_or_skip

import nnxp
from nnxp.data import Batches, Dataset

pytest.importorskip("safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10}, "with batch_size 12, got 10; resume it with batch_size 12"),
        ({"train": slice(0, 39)}, "with examples 40, got 39; resume it with examples 40"),
        ({"rng": np.random.default_rng(0)}, "resume it with rng=trainer.rng"),
    ],
)
def test_unfinished_epoch_refuses_other_batches_data_or_rng(tmp_path, data, change, message):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    fit(trainer, data, 2, checkpoint=path, callbacks=[Stopping(stopped_after(5, trainer))])
    resumed = nnxp.Trainer.resume(path)
    options = {"epochs": 1, "batch_size": 12, "rng": resumed.rng} | change
    rows = options.pop("train", slice(None))
    examples = Dataset(data.inputs[rows], data.labels[rows])
    with pytest.raises(nnxp.InputError, match=f"within an epoch.*{message}"):
        resumed.fit(examples, **options)
    place = {"device": "cpu", "dtype": "float32"}
    with pytest.raises(nnxp.InputError, match=f"within an epoch.*{message}"):
        resumed.train_epoch(Batches(examples, options["batch_size"], **place, rng=options["rng"]))
    assert resumed.optimizer.steps == 5


def test_train_epoch_finishes_a_resumed_epoch(tmp_path, data):
    path = tmp_path / "a.safetensors"
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, 2)
    fit(trainer, data, 2, checkpoint=path, callbacks=[Stopping(stopped_after(6, trainer))])
    resumed = nnxp.Trainer.resume(path)
    batches = Batches(data, 12, device="cpu", dtype="float32", rng=resumed.rng)
    resumed.train_epoch(batches)
    np.testing.assert_equal(numbers(resumed)["parameters"], numbers(whole)["parameters"])


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("cpu", "replay.Replay"),
        pytest.param("jax", "jax.JaxSteps", marks=BACKENDS["jax"][1]),
    ],
)
@pytest.mark.parametrize("place", ["bind", "compiling"])
def test_failing_first_step_keeps_the_position_in_the_epoch(data, monkeypatch, spec, way, place):
    device_or_skip(spec)
    whole, trainer = new_trainer(device=spec), new_trainer(device=spec)
    fit(whole, data, 1)
    fit(trainer, data, 1, callbacks=[Stopping(stopped_after(2, trainer))])
    trainer._stepper.captured = None
    # What compiles a step on either: the optimizer's rule is asked for.
    broken = f"nnxp.capture.{way}.bind" if place == "bind" else "nnxp.optimizers.Adam._update_one"
    with monkeypatch.context() as patch:
        patch.setattr(broken, None)
        with pytest.raises(TypeError):
            fit(trainer, data, 1)
    assert (trainer.optimizer.steps, trainer._progress.batch) == (2, 2)
    fit(trainer, data, 1)
    np.testing.assert_equal(numbers(trainer), numbers(whole))


@pytest.mark.parametrize("capture", ["auto", False])
def test_stop_sees_the_current_parameters_and_may_save(tmp_path, data, backend, capture):
    path = tmp_path / "a.safetensors"
    whole = new_trainer(device=backend.device, capture=capture)
    fit(whole, data, EPOCHS)
    trainer = new_trainer(device=backend.device, capture=capture)
    plain = new_trainer(device=backend.device, capture=False)
    seen = []

    def look():
        seen.append(trainer.evaluate(data).loss)
        if trainer.optimizer.steps == 6:
            trainer.save(path)
        return False

    fit(trainer, data, EPOCHS, callbacks=[Stopping(look)])
    wanted = []
    fit(plain, data, EPOCHS, callbacks=[Stopping(lambda: wanted.append(plain.evaluate(data).loss))])
    # Captured steps are those up to rounding.
    np.testing.assert_allclose(seen, wanted, rtol=1e-4)
    assert len({round(loss, 7) for loss in seen}) > EPOCHS * STEPS / 2
    np.testing.assert_equal(numbers(trainer), numbers(whole))
    resumed = nnxp.Trainer.resume(path, device=backend.device, capture=capture)
    assert resumed.optimizer.steps == 6
    fit(resumed, data, EPOCHS - resumed.epochs)
    np.testing.assert_equal(numbers(resumed), numbers(whole))


@pytest.mark.parametrize("capture", ["auto", False])
def test_stop_that_trains_is_refused(data, backend, capture):
    whole = new_trainer(device=backend.device, capture=capture)
    trainer = new_trainer(device=backend.device, capture=capture)
    fit(whole, data, EPOCHS)

    def train():
        with pytest.raises(nnxp.InputError, match="is training already; let the callback"):
            fit(trainer, data, 1)
        with pytest.raises(nnxp.InputError, match="is training already"):
            train_epoch(trainer, data, 12, trainer.rng)
        if trainer.optimizer.steps == 6:
            copies.append(copy.deepcopy(trainer))

    copies = []
    fit(trainer, data, EPOCHS, callbacks=[Stopping(train)])
    (twin,) = copies
    fit(twin, data, EPOCHS - twin.epochs)
    for each in (trainer, twin):
        np.testing.assert_equal(numbers(each), numbers(whole))


def test_failing_stop_keeps_the_position_in_the_epoch(data):
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, EPOCHS)

    def fail():
        if trainer.optimizer.steps == 6:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, data, EPOCHS, callbacks=[Stopping(fail)])
    fit(trainer, data, EPOCHS - trainer.epochs)
    np.testing.assert_equal(numbers(trainer), numbers(whole))


def test_failing_step_clears_the_position_in_the_epoch(data):
    trainer = new_trainer(capture=False)
    fit(trainer, data, 1, callbacks=[Stopping(stopped_after(2, trainer))])
    step = trainer.step

    def fail(*batch):
        if trainer.optimizer.steps == 3:
            raise KeyboardInterrupt
        return step(*batch)

    trainer.step = fail
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, data, 1)
    assert trainer._progress is None
