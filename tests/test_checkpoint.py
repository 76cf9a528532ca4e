"""Checkpoint files: what one holds, saving, loading, the format, and where it is written."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import AfterEpoch, Stopping, fit, new_record, new_trainer
from file_samples import contents, signed
from remedies import installs

import nnxp
from nnxp.checkpoint import FORMAT
from nnxp.data import Dataset
from nnxp.history import MAX_RECORDS
from nnxp.optimizers import OPTIMIZERS

safetensors = pytest.importorskip("safetensors.numpy")
FIXTURES = Path(__file__).parent / "checkpoints"


def test_a_checkpoint_of_a_long_history_stays_small(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    trainer.save(path)
    without = path.stat().st_size
    for epoch in range(1, MAX_RECORDS + 1):
        trainer.history.append(new_record(epoch, 0.1, 0.2, 0.3, None, 0.4))
    trainer.save(path)
    assert path.stat().st_size - without < 50 * MAX_RECORDS
    assert nnxp.Trainer.resume(path).history[-1].epoch == MAX_RECORDS


def test_checkpoint_loads_without_the_library_that_saved_it(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer(device="strict:device1")
    fit(trainer, data, 1, checkpoint=path)
    code = (
        "import sys; sys.modules['array_api_strict'] = None\n"
        f"import nnxp; print(nnxp.Trainer.resume({str(path)!r}).network)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{trainer.network!r}\n"


def test_load_network_on_every_backend(tmp_path, data, backend):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer("momentum")
    fit(trainer, data, 1, checkpoint=path)
    network = nnxp.load_network(path, device=backend.device)
    x = np.random.default_rng(0).random((3, 6)).astype("float32")
    scores = backend.host(network.predict(backend.array(x)))
    np.testing.assert_allclose(scores, trainer.network.predict(x), rtol=1e-5, atol=1e-6)


def test_missing_device_raises_device_error_not_checkpoint_error(tmp_path):
    path = tmp_path / "a.safetensors"
    new_trainer().save(path)
    for load in (nnxp.load_network, nnxp.Trainer.resume):
        with pytest.raises(nnxp.DeviceError, match="^array-api-strict has no device"):
            load(path, device="strict:device9")


def test_history_config_and_settings_are_restored(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = nnxp.Trainer(
        nnxp.Sequential([nnxp.Flatten(), *new_trainer().network.layers, nnxp.Softmax()]),
        nnxp.MeanSquaredError(),
        nnxp.AdamW(0.01, beta1=np.float32(0.5), epsilon=1e-3, weight_decay=0.25),
    )
    trainer.config = {"note": "für später", "widths": [6, 5]}
    trainer.optimizer.beta2 = np.float32(0.75)
    targets = Dataset(data.inputs, np.linspace(-1, 1, 120).reshape(40, 3))
    rng = np.random.default_rng(1)
    trainer.fit(targets, epochs=2, batch_size=12, rng=rng)
    trainer.fit(targets, epochs=1, batch_size=12, rng=rng, validation=targets)
    names = ["epoch", "train_loss", "seconds"]  # no accuracy without classes
    assert [list(record) for record in trainer.history[:2]] == [names, names]
    assert "validation_loss" in trainer.history[2]
    extreme = new_record(7, math.inf, 0.0, None, -0.0, 1e-300)
    trainer.history.append(extreme)
    trainer.save(path)
    resumed = nnxp.Trainer.resume(path)
    assert repr(resumed.network) == repr(trainer.network)
    assert repr(resumed.loss) == "MeanSquaredError()"
    settings = [
        {k: x for k, x in t.optimizer.__getstate__().items() if k != "state"}
        for t in (resumed, trainer)
    ]
    assert settings[0] == settings[1]
    assert resumed.config == trainer.config
    assert resumed.history == trainer.history


def test_non_contiguous_parameters_are_saved(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    parameters = trainer.network.parameters()
    wanted = np.arange(30, dtype="float32").reshape(6, 5)
    trainer.network.layers[0].params["W"] = np.asfortranarray(wanted)
    trainer.network.layers[0].params["b"] = np.arange(10, dtype="float32")[::2]
    trainer.save(path)
    loaded = nnxp.load_network(path).parameters()
    np.testing.assert_array_equal(loaded["W1"], wanted)
    for name, x in parameters.items():
        np.testing.assert_array_equal(loaded[name], x)


def test_config_that_is_not_json_is_refused(tmp_path, data):
    trainer = new_trainer()
    trainer.config = {"array": np.zeros(3)}
    with pytest.raises(nnxp.InputError, match="a checkpoint's config must be JSON"):
        trainer.save(tmp_path / "a.safetensors")


def test_out_of_memory_on_load_is_no_checkpoint_error(tmp_path, data, monkeypatch):
    path = tmp_path / "a.safetensors"
    fit(new_trainer(), data, 1, checkpoint=path)

    def refuse(*_):
        raise nnxp.OutOfMemoryError("no memory for 100 bytes")

    monkeypatch.setattr(nnxp.Sequential, "load_arrays", refuse)
    for load in (nnxp.Trainer.resume, nnxp.load_network):
        with pytest.raises(nnxp.OutOfMemoryError, match="^no memory for 100 bytes$"):
            load(path)


def test_state_that_cannot_be_resumed_is_not_saved(tmp_path, data):
    path = tmp_path / "a.safetensors"
    tied = new_trainer()
    tied.network = nnxp.mlp([6, 6, 6], rng=np.random.default_rng(0))
    for shared in (tied.network.layers[0].params["W"], tied.network.layers[0].params["W"][:]):
        tied.network.layers[2].params["W"] = shared
        with pytest.raises(nnxp.InputError, match="two layers share an array, which a checkpoint"):
            tied.save(path)

    class Mine(np.random.PCG64):
        pass

    other = new_trainer()
    other.rng = np.random.Generator(Mine(0))
    fit(other, data, 1)  # it trains
    with pytest.raises(
        nnxp.InputError, match=r"generator must be one of PCG64, .* got Generator\(Mine\)"
    ):
        other.save(path)
    remembering = new_trainer("momentum")
    fit(remembering, data, 1)
    remembering.optimizer.state["velocity"]["b2"][1] = np.inf
    with pytest.raises(
        nnxp.DivergenceError, match="state/velocity/b2 holds a number that is not f"
    ):
        remembering.save(path)
    assert not path.exists()


def test_network_with_a_too_large_header_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("nnxp.checkpoint.saving.MAX_HEADER", 1 << 14)
    rng = np.random.default_rng(0)
    deep = nnxp.Sequential([nnxp.Affine(1, 1, rng=rng) for _ in range(90)])
    trainer = nnxp.Trainer(deep, nnxp.MeanSquaredError(), nnxp.SGD())
    with pytest.raises(nnxp.InputError, match="may have 16,384; use fewer layers"):
        trainer.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# These files were written once and must load in every later version.


@pytest.mark.filterwarnings("ignore:the network ends with Softmax")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_checkpoints_of_format_1_load(optimizer, data):
    path = FIXTURES / f"v1-{optimizer}.safetensors"
    resumed = nnxp.Trainer.resume(path)
    assert repr(resumed.network) == (
        "Sequential(Flatten(), Affine(6, 5), ReLU(), Affine(5, 4), Sigmoid(), Affine(4, 4), "
        "Tanh(), Identity(), Affine(4, 3), Softmax())"
    )
    assert type(resumed.optimizer) is OPTIMIZERS[optimizer]
    assert resumed.optimizer.steps == 6
    assert resumed.config == {"written by": "nnxp 0.1.0"}
    assert [record.epoch for record in resumed.history] == [1]
    # The results of resuming, from a file with the figures in full.
    expected = json.loads((FIXTURES / "v1.json").read_text())[optimizer]
    assert resumed.history[0].train_loss == expected["first loss"]
    before = {n: float(x.astype("float64").sum()) for n, x in resumed.network.parameters().items()}
    assert before == expected["sums"]
    resumed.fit(data, epochs=1, batch_size=12, rng=resumed.rng)
    # Other versions of NumPy and its BLAS may round otherwise, in float64.
    assert resumed.history[-1].train_loss == pytest.approx(expected["last loss"], rel=1e-12)


def test_newer_format_is_refused_with_its_number(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {"nnxp": json.dumps({"format": FORMAT + 1, "anything": "else"})}
    path.write_bytes(safetensors.save({"a": np.zeros(3)}, metadata))
    with pytest.raises(
        nnxp.CheckpointError, match=rf"is of format {FORMAT + 1}, and this nnxp rea"
    ):
        nnxp.load_network(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a checkpoint, or is damaged"),
        (b"\x93NUMPY", "is not a checkpoint, or is damaged"),
        (safetensors.save({"a": np.zeros(3)}), "is not a checkpoint of nnxp"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": "{"}), "is not a checkpoint, or is damaged"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": "[" * 100_000}), "or is damaged"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": "{}"}), "or is damaged"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": '{"format": 1}'}), "SHA-256 does not match"),
        *(
            (
                safetensors.save({"a": np.zeros(3)}, {"nnxp": json.dumps({"format": version})}),
                f"is damaged: its format is {version}",
            )
            for version in (True, 1.0, 0.5, 0)
        ),
    ],
)
def test_files_that_are_no_checkpoint_raise_checkpoint_error(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for load in (nnxp.load_network, nnxp.Trainer.resume):
        with pytest.raises(nnxp.CheckpointError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_missing_file_and_folder_are_named_in_the_error(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(nnxp.CheckpointError, match=f"^{path} (cannot be read|is not a file)"):
            nnxp.load_network(path)


def test_missing_safetensors_error_says_how_to_install_it(tmp_path, data, monkeypatch):
    trainer = new_trainer()
    for package in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, package, None)
    message = f"safetensors.* {installs('checkpoint')}"
    with pytest.raises(nnxp.MissingExtraError, match=message):
        trainer.save(tmp_path / "a")
    with pytest.raises(nnxp.MissingExtraError, match=message):
        nnxp.load_network(tmp_path / "a")
    with pytest.raises(nnxp.MissingExtraError, match=message):
        fit(trainer, data, 1, checkpoint=tmp_path / "a")
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(nnxp.MissingExtraError, match="filelock is not installed"):
        fit(trainer, data, 1, checkpoint=tmp_path / "a")
    assert trainer.optimizer.steps == 0


def test_checkpoint_every_needs_a_checkpoint(data):
    with pytest.raises(nnxp.InputError, match="checkpoint_every needs a checkpoint to write"):
        fit(new_trainer(), data, 1, checkpoint_every=3)
    with pytest.raises(nnxp.InputError, match="checkpoint_every must be a whole number"):
        fit(new_trainer(), data, 1, checkpoint="a", checkpoint_every=0)


@pytest.mark.parametrize("name", ["", ".", "/", "folder", "a" * 245, "a\0b", "loop"])
def test_unwritable_checkpoint_is_refused_before_the_first_step(tmp_path, data, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    trainer = new_trainer()
    with pytest.raises(nnxp.CheckpointError, match="is not the name of a file|cannot be written"):
        fit(trainer, data, 1, checkpoint=name)
    for config, message in (
        ({"array": np.zeros(3)}, "a checkpoint's config must be JSON"),
        ({"number": math.nan}, "a checkpoint's config must be JSON"),
        (["a"], r"a trainer's config must be a dict, got \['a'\]"),
        ({"text": "a" * 2**19}, "config may have 524,288 characters as JSON, got 524,300"),
    ):
        trainer.config = config
        with pytest.raises(nnxp.InputError, match=message):
            fit(trainer, data, 1, checkpoint="fine")
    trainer.config = {}
    trainer.optimizer.state["mean"] = {"W9": np.zeros(3)}
    with pytest.raises(nnxp.InputError, match="missing .* unexpected mean of W9; make a new opt"):
        fit(trainer, data, 1, checkpoint="fine")
    other = new_trainer()
    fit(other, data, 1)
    wider = nnxp.mlp([6, 9, 4, 3], rng=np.random.default_rng(0))
    trainer = nnxp.Trainer(wider, nnxp.SoftmaxWithLoss(), other.optimizer)
    trainer.rng = np.random.default_rng(0)
    with pytest.raises(nnxp.InputError, match="make a new optimizer for each network"):
        trainer.save("fine")
    trainer = new_trainer()
    trainer.history = [new_record(1, 1.0, 1.0, None, None, 1.0)] * 2
    with pytest.raises(nnxp.InputError, match="history's epochs are not rising"):
        fit(trainer, data, 1, checkpoint="fine")
    trainer.history = [new_record(i + 1, 1.0, 1.0, None, None, 1.0) for i in range(10_001)]
    with pytest.raises(nnxp.InputError, match="has 10,000 records at most, got 10,001"):
        fit(trainer, data, 1, checkpoint="fine")
    assert trainer.optimizer.steps == 0


def test_checkpoint_keeps_its_symlink_folder_and_permissions(tmp_path, data, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    path, link = tmp_path / "elsewhere" / "a.safetensors", tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    trainer = new_trainer()
    fit(trainer, data, 1, checkpoint="link")
    path.chmod(0o600)

    def leave(_):
        monkeypatch.chdir("elsewhere")

    fit(trainer, data, 1, checkpoint="link", callbacks=[AfterEpoch(leave)])
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert nnxp.Trainer.resume(path).epochs == 2
    assert sorted(x.name for x in tmp_path.rglob("*")) == [
        ".a.safetensors.lock", "a.safetensors", "elsewhere", "link"
    ]  # fmt: skip


def test_home_folder_is_expanded_in_every_path(tmp_path, data, monkeypatch):
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(cwd)
    trainer = new_trainer()
    trainer.save("~/saved.safetensors")
    fit(trainer, data, 1, checkpoint="~/fit.safetensors")
    fit(trainer, data, 1, callbacks=[nnxp.callbacks.Checkpoint(Path("~/best"), best="train_loss")])
    trainer.network.save("~/network.safetensors")
    with trainer.lock("~/locked"):
        pass
    nnxp.plots.plot_histories({"": trainer.history}, "~/curves.png")
    assert not list(cwd.iterdir())
    wanted = {"saved.safetensors", "fit.safetensors", "best", "network.safetensors", "curves.png"}
    assert {x.name for x in home.iterdir() if not x.name.startswith(".")} == wanted
    assert nnxp.Trainer.resume("~/fit.safetensors").epochs == 1
    for name in ("network.safetensors", "saved.safetensors"):
        assert nnxp.load_network(f"~/{name}").layers


def test_unknown_home_folder_is_named(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = new_trainer()
    path = "~no-such-user/a.safetensors"
    message = "the home folder ~no-such-user is not known; set HOME, or give the whole path"
    for use in (
        trainer.save, trainer.lock, trainer.network.save, nnxp.load_network, nnxp.Trainer.resume,
        lambda path: fit(trainer, data, 1, checkpoint=path),
    ):  # fmt: skip
        with pytest.raises(nnxp.CheckpointError, match=message):
            use(path)
    fit(trainer, data, 1)
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.plots.plot_histories({"": trainer.history}, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_config_with_a_number_that_is_not_json_is_neither_saved_nor_loaded(tmp_path, number):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    trainer.config = {"rate": float(number)}
    with pytest.raises(nnxp.InputError, match="config must be JSON: .*; for nan and inf, use None"):
        trainer.save(path)
    trainer.config = {"rate": None}  # as the error says
    trainer.save(path)
    text, arrays = contents(path)
    with pytest.raises(nnxp.CheckpointError, match=f"{number}, which is not JSON; use null or"):
        nnxp.Trainer.resume(signed(path, text.replace('"rate": null', f'"rate": {number}'), arrays))
    about = json.loads(text)
    for config, message in (
        ({"a": "x" * 2**19}, "config may have 524,288 characters as JSON, got 524,297"),
        (["a"], "config must be a dict"),
    ):
        with pytest.raises(nnxp.CheckpointError, match=message):
            nnxp.Trainer.resume(signed(path, about | {"config": config}, arrays))


def test_sums_that_are_not_finite_are_saved_as_json(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    fit(trainer, data, 1, callbacks=[Stopping(lambda: trainer.optimizer.steps == 2)])
    trainer._progress.sums = {"loss": [math.inf, 0.5], "mine": [-math.inf, math.nan]}
    trainer.save(path)
    text, _ = contents(path)
    json.loads(text, parse_constant=pytest.fail)
    assert repr(nnxp.Trainer.resume(path)._progress) == repr(trainer._progress)


def test_only_own_temporary_files_are_removed(tmp_path, data):
    path = tmp_path / "run[1].safetensors"
    others = [
        ".run[1].safetensors.bak.old",
        ".run[1].safetensors.1.2.keep",
        ".run[1].safetensors.lock.2",
        ".run1.safetensors.1.2",
    ]
    own = ".run[1].safetensors.12.34567"
    for name in [*others, own]:
        (tmp_path / name).touch()
    fit(new_trainer(), data, 1, checkpoint=path)
    left = {x.name for x in tmp_path.iterdir()} - {path.name, f".{path.name}.lock"}
    assert left == set(others)
