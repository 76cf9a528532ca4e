"""Resume: a stopped, saved and resumed training gives the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from builders import (
    EPOCHS,
    STEPS,
    AfterEpoch,
    Stopping,
    fit,
    new_trainer,
    numbers,
    stopped_after,
    train_epoch,
)
from tables import BACKENDS, device_or_skip

import nnxp
from nnxp.optimizers import OPTIMIZERS
from nnxp.random import generator, get_state

pytest.importorskip("safetensors")


ANY = range(1, EPOCHS * STEPS)


@pytest.mark.parametrize(
    ("optimizer", "capture", "stops"),
    [
        ("adam", "auto", ANY),
        ("adam", False, [6]),
        *((name, "auto", [6]) for name in OPTIMIZERS if name != "adam"),  # within an epoch
        *(
            pytest.param(name, capture, ANY, marks=pytest.mark.long)
            for name in OPTIMIZERS
            for capture in ("auto", False)
            if (name, capture) != ("adam", "auto")
        ),
    ],
)
def test_resume_after_any_step_gives_the_same_bits(tmp_path, data, optimizer, capture, stops):
    path = tmp_path / "a.safetensors"
    whole = new_trainer(optimizer, capture=capture)
    fit(whole, data, EPOCHS)
    for steps in stops:
        trainer = new_trainer(optimizer, capture=capture)
        fit(
            trainer,
            data,
            EPOCHS,
            checkpoint=path,
            callbacks=[Stopping(stopped_after(steps, trainer))],
        )
        assert trainer.optimizer.steps == steps
        resumed = nnxp.Trainer.resume(path, capture=capture)
        assert resumed.optimizer.steps == steps
        for each in (resumed, trainer):  # from the file, and where it stood
            fit(each, data, EPOCHS - len(each.history))
            np.testing.assert_equal(numbers(each), numbers(whole))


def test_resume_with_a_thinned_history_gives_the_same_bits(tmp_path, data, monkeypatch):
    monkeypatch.setattr("nnxp.history.MAX_RECORDS", 4)
    path = tmp_path / "a.safetensors"
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, 12)
    for epoch in range(12):
        assert trainer.epochs == epoch
        fit(
            trainer,
            data,
            1,
            checkpoint=path,
            callbacks=[Stopping(stopped_after(STEPS * epoch + 2, trainer))],
        )
        trainer = nnxp.Trainer.resume(path)
        fit(trainer, data, 1, checkpoint=path)
        trainer = nnxp.Trainer.resume(path)
    assert [record.epoch for record in whole.history] == [1, 9, 11, 12]
    np.testing.assert_equal(numbers(trainer), numbers(whole))


def test_checkpoint_every_does_not_change_the_training(tmp_path, data):
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, EPOCHS)
    path = tmp_path / "a.safetensors"
    seen = []

    def look():
        if path.exists():
            seen.append(nnxp.Trainer.resume(path).optimizer.steps)
        return False

    fit(trainer, data, EPOCHS, checkpoint=path, checkpoint_every=3, callbacks=[Stopping(look)])
    np.testing.assert_equal(numbers(trainer), numbers(whole))
    # Saved after steps 3, 6, 9 and 12, and after each epoch of 4; looked at before that.
    assert seen == [3, 3, 4, 4, 6, 6, 6, 8, 9, 9, 9, 12]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks) for name, (_, marks) in BACKENDS.items()
             if name != "numpy-readonly"]
)  # fmt: skip
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_on_another_library_agrees(tmp_path, data, optimizer, name):
    # In float64: two libraries' steps differ by units in the last place, which twelve steps and
    # the root of a small mean square amplify by far less than 1e6.
    spec = BACKENDS[name][0]
    device_or_skip(spec)
    path = tmp_path / "a.safetensors"
    whole = new_trainer(optimizer, dtype="float64")
    fit(whole, data, EPOCHS)
    for first, second in (("cpu", spec), (spec, "cpu")):
        trainer = new_trainer(optimizer, device=first, dtype="float64")
        fit(trainer, data, EPOCHS, checkpoint=path, callbacks=[Stopping(stopped_after(6, trainer))])
        resumed = nnxp.Trainer.resume(path, device=second)
        assert resumed.network.device == nnxp.device(second)
        fit(resumed, data, EPOCHS - len(resumed.history))
        mine, wanted = numbers(resumed), numbers(whole)
        assert mine["steps"] == wanted["steps"]
        assert mine["rng"] == wanted["rng"]
        for name_, x in wanted["parameters"].items():
            np.testing.assert_allclose(mine["parameters"][name_], x, rtol=1e-10, atol=1e-10)
        for slot, kept in wanted["state"].items():
            for name_, x in kept.items():
                np.testing.assert_allclose(mine["state"][slot][name_], x, rtol=1e-10, atol=1e-10)


def test_untrained_trainer_can_be_saved_and_resumed(tmp_path, data):
    path = tmp_path / "a.safetensors"
    one, other = new_trainer(), new_trainer()
    other.save(path)
    other = nnxp.Trainer.resume(path)
    fit(one, data, 1)
    fit(other, data, 1)
    np.testing.assert_equal(numbers(other), numbers(one))


def test_changes_by_after_epoch_are_saved(tmp_path, data):
    path = tmp_path / "a.safetensors"

    def end(*stops):
        trainer = new_trainer()

        def schedule(_):
            trainer.optimizer.learning_rate /= 2
            trainer.rng.random(3)

        for steps in stops:
            stop = stopped_after(steps, trainer)
            left = EPOCHS - len(trainer.history)
            fit(
                trainer,
                data,
                left,
                checkpoint=path,
                callbacks=[AfterEpoch(schedule), Stopping(stop)],
            )
            trainer = nnxp.Trainer.resume(path)
        return numbers(trainer)

    whole = end(99)
    assert len(whole["history"]) == EPOCHS
    np.testing.assert_equal(end(4, 99), whole)
    np.testing.assert_equal(end(3, 8, 99), whole)


def test_generator_shared_with_other_code_resumes(tmp_path, data):
    path = tmp_path / "a.safetensors"

    def end(*stops):
        trainer = new_trainer()

        def draw():
            trainer.rng.random(2)  # as a layer might
            return trainer.optimizer.steps in stops

        for _ in (*stops, None):
            fit(
                trainer,
                data,
                EPOCHS - len(trainer.history),
                checkpoint=path,
                callbacks=[Stopping(draw)],
            )
            trainer = nnxp.Trainer.resume(path)
        return numbers(trainer)

    whole = end()
    assert len(whole["history"]) == EPOCHS
    # Asked again at the end of an epoch, it draws again; so not where one ends.
    np.testing.assert_equal(end(2), whole)
    np.testing.assert_equal(end(5, 7), whole)


def test_seconds_of_a_resumed_epoch_add_up(tmp_path, data, monkeypatch):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    clock = [5.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slowly():
        clock[0] += 10
        return True

    for _ in range(3):
        fit(trainer, data, 1, checkpoint=path, callbacks=[Stopping(slowly)])
        trainer = nnxp.Trainer.resume(path)
    assert fit(trainer, data, 1)[0].seconds == 30


def test_resume_takes_the_capture_option(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    rng = np.random.default_rng(7)
    train_epoch(trainer, data, 12, rng)
    assert trainer.rng is rng
    trainer.save(path)
    assert nnxp.Trainer.resume(path, capture=False).capture is False


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_restored_generator_draws_the_same_numbers(kind):
    rng = np.random.Generator(getattr(np.random, kind)(3))
    rng.permutation(7)
    rng.integers(0, 9, 3, dtype=np.uint8)  # half of a word is left over
    again = generator(json.loads(json.dumps(get_state(rng))))
    np.testing.assert_equal(again.bit_generator.state, rng.bit_generator.state)
    np.testing.assert_array_equal(again.permutation(99), rng.permutation(99))


# NumPy takes such states, and then reads beyond its memory or draws for ever.
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("MT19937", {"state": {"pos": 10**9}}),
        ("MT19937", {"state": {"pos": 625}}),
        ("MT19937", {"state": {"pos": -(2**31)}}),
        ("Philox", {"buffer_pos": -(2**30)}),
        ("Philox", {"buffer_pos": 5}),
        ("PCG64", {"state": {"inc": 2**64}}),
        ("PCG64DXSM", {"state": {"inc": 2**64}}),
        ("PCG64", {"has_uint32": 7}),
        ("PCG64", {"uinteger": 2**32}),
        ("PCG64", {"bit_generator": "default_rng"}),
        ("PCG64", {"bit_generator": "SeedSequence"}),
    ],
)
def test_invalid_generator_states_are_refused(kind, change):
    state = get_state(np.random.Generator(getattr(np.random, kind)(3)))
    for name, x in change.items():
        state[name] = state[name] | x if isinstance(x, dict) else x
    with pytest.raises(nnxp.InputError, match="the generator('s state is not|.* must be one of)"):
        generator(state)


@pytest.mark.parametrize("threads", [2, *(pytest.param(x, marks=pytest.mark.long) for x in (1, 4))])
def test_same_seed_gives_the_same_bits(threads):
    code = (
        "import numpy as np, nnxp, hashlib\n"
        "rng = np.random.default_rng(0)\n"
        "train, test = nnxp.data.load_digits()\n"
        "network = nnxp.mlp([64, 600, 300, 10], rng=rng)\n"  # wide enough for threads
        "trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())\n"
        "trainer.fit(train, epochs=1, batch_size=500, validation=test, rng=rng)\n"
        "digest = hashlib.sha256(repr(trainer.history[0].train_loss).encode())\n"
        "for x in network.parameters().values(): digest.update(x)\n"
        "print(digest.hexdigest())\n"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=True,
        ).stdout
        for _ in range(3)
    }  # fmt: skip
    assert len(digests) == 1
