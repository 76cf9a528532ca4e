"""scripts/predict.py and scripts/other_digits.py: classes of image files and CSV files."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest
from PIL import Image
from script_runner import PATHS, SCRIPTS, run, script_modules

import nnxp
from nnxp.data import Dataset, center_drawing, read_drawing

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")


def trained(network, dataset, loss=None, epochs=3):
    loss = loss or nnxp.SoftmaxWithLoss()
    trainer = nnxp.Trainer(network, loss, nnxp.Adam(0.01), capture=False)
    trainer.fit(dataset, epochs=epochs, batch_size=50, rng=0)
    return trainer


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run's folder with a network trained on the embedded digits, and image files."""
    folder = tmp_path_factory.mktemp("digits")
    train, test = nnxp.data.load_digits()
    trainer = trained(nnxp.mlp([64, 32, 10], rng=0), train, epochs=10)
    trainer.save(folder / "checkpoint.safetensors")
    trainer.network.save(folder / "network.safetensors")
    for number, image in enumerate(test.inputs[:4].reshape(-1, 8, 8)):
        drawn = np.pad(np.kron(image, np.ones((20, 20), np.uint8)), ((40, 10), (5, 90)))
        Image.fromarray(255 - drawn if number % 2 else drawn).save(folder / f"digit{number}.png")
    np.savetxt(folder / "rows.csv", test.inputs[:3], "%d", ",")
    return folder


@pytest.fixture
def predict(monkeypatch, capsys):
    """Run predict.py in this process, which is faster; return its lines, errors and status."""
    with script_modules():
        import predict

    def call(*options):
        monkeypatch.setattr("sys.argv", ["predict.py", *map(str, options)])
        status = predict.main()
        out, errors = capsys.readouterr()
        return [line.split("\t") for line in out.splitlines()], errors, status

    return call


def lines(result):
    return [line.split("\t") for line in result.stdout.splitlines()]


def test_images_and_rows_are_predicted_a_line_each(digits):
    files = [digits / f"digit{i}.png" for i in range(4)]
    found = lines(run("predict.py", digits, *files, digits / "rows.csv"))
    network = nnxp.load_network(digits / "network.safetensors")
    fields = np.stack([center_drawing(read_drawing(x), 8, box=8).reshape(64) for x in files])
    inputs = np.concatenate([fields, nnxp.data.load_csv_inputs(digits / "rows.csv")])
    probabilities = network.predict_proba(inputs)
    rows = [f"{digits / 'rows.csv'}:{i}" for i in (1, 2, 3)]
    assert found == [
        [name, str(row.argmax()), f"{row.max():.4f}"]
        for name, row in zip([*map(str, files), *rows], probabilities, strict=True)
    ]
    labels = nnxp.data.load_digits()[1].labels
    assert [x[1] for x in found[:3] + found[4:]] == [str(x) for x in [*labels[:3], *labels[:3]]]


def test_every_form_of_a_network_gives_the_same(digits, predict):
    expected = predict(digits, digits / "digit0.png")
    for name in ("checkpoint.safetensors", "network.safetensors"):
        assert predict(digits / name, digits / "digit0.png") == expected


def with_images(train):
    network = nnxp.lenet(10, image=(1, 8, 8), padding=2, rng=0)
    return network, Dataset(train.inputs.reshape(-1, 1, 8, 8), train.labels)


def with_scale(train):
    return nnxp.mlp([64, 32, 10], rng=0), Dataset(train.inputs / (255 / 16), train.labels, scale=16)


def with_fractions(train):
    return nnxp.mlp([64, 32, 10], rng=0), Dataset(train.inputs / 255, train.labels)


def with_text(train):
    names = np.array([f"the {i}" for i in range(10)])
    return nnxp.mlp([64, 32, 10], rng=0), Dataset(train.inputs, names[train.labels])


@pytest.mark.parametrize("make", [with_images, with_scale, with_fractions, with_text])
def test_images_become_what_the_network_was_trained_on(digits, tmp_path, make, predict):
    network, dataset = make(nnxp.data.load_digits()[0])
    trained(network, dataset, epochs=2).network.save(tmp_path / "network.safetensors")
    files = [digits / f"digit{i}.png" for i in range(4)]
    found, errors, _ = predict(tmp_path / "network.safetensors", *files)
    fields = np.stack([center_drawing(read_drawing(x), 8, box=8) for x in files])
    largest = np.asarray(dataset.inputs).max()
    inputs = (fields / 255 * largest).reshape(-1, *dataset.inputs.shape[1:])
    if dataset.inputs.dtype == np.uint8:
        inputs = inputs.round().astype(np.uint8)
    expected = [str(x) for x in network.predict_classes(inputs)]
    assert [line[1] for line in found] == expected
    assert errors == ""


def test_a_network_that_says_nothing_of_its_data_takes_images_of_its_size(
    digits, tmp_path, predict
):
    network = nnxp.load_network(digits / "network.safetensors")
    plain = nnxp.Sequential(network.layers)
    plain.save(tmp_path / "plain.safetensors")
    expected = predict(digits, digits / "digit0.png")
    assert predict(tmp_path / "plain.safetensors", digits / "digit0.png") == expected
    nnxp.mlp([5, 3], rng=0).save(tmp_path / "plain.safetensors")
    with pytest.raises(nnxp.InputError, match="has no data format, and does not accept"):
        predict(tmp_path / "plain.safetensors", digits / "digit0.png")


def test_a_network_with_another_number_of_outputs_than_classes_is_refused(
    digits, tmp_path, predict
):
    network = nnxp.load_network(digits / "network.safetensors")
    network.data_format = dataclasses.replace(network.data_format, classes=("a", "b", "c"))
    network.save(tmp_path / "n.safetensors")
    with pytest.raises(nnxp.NnxpError, match="outputs for 10 classes, and there are 3 labels"):
        predict(tmp_path / "n.safetensors", digits / "digit0.png")


def test_tables_are_predicted_and_images_refused(digits, tmp_path, predict):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 4))
    labels = np.where(table[:, 0] > 0, "pos\tive", "negative")
    network = nnxp.Sequential([nnxp.Standardize(), *nnxp.mlp([4, 8, 1], rng=0)])
    loss = nnxp.SigmoidWithLoss()
    trained(network, Dataset(table, labels), loss, 20).network.save(tmp_path / "n.safetensors")
    np.savetxt(tmp_path / "rows.csv", table[:5], "%.17g", ",", header="a,b,c,d", comments="")
    options = (tmp_path / "n.safetensors", tmp_path / "rows.csv", digits / "digit0.png")
    found, errors, status = predict(*options, "--picture", tmp_path / "p.png")
    assert status == 1
    assert [x[1] for x in found] == [x.replace("\t", "\\t") for x in labels[:5]]
    assert all(0.5 <= float(x[2]) <= 1 for x in found)
    assert "takes 4 numbers, which do not form a square grey image; give rows of a CSV" in errors
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size[0] > 300


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (nnxp.MeanSquaredError(), np.zeros(40), "predicts numbers and not classes"),
        (
            nnxp.SigmoidWithLoss(),
            np.eye(3, dtype="int32")[[0] * 40],
            "gives several labels at once",
        ),
    ],
)
def test_networks_without_one_class_are_refused(digits, tmp_path, predict, loss, targets, message):
    outputs = 1 if targets.ndim == 1 else 3
    dataset = Dataset(np.random.default_rng(0).random((40, 64)), targets)
    network = trained(nnxp.mlp([64, outputs], rng=0), dataset, loss, 1).network
    network.save(tmp_path / "n.safetensors")
    with pytest.raises(nnxp.InputError, match=message):
        predict(tmp_path / "n.safetensors", digits / "digit0.png")


def test_a_wrong_file_does_not_stop_the_others(digits, tmp_path, predict):
    (tmp_path / "text.png").write_text("seven\n")
    np.savetxt(tmp_path / "labelled.csv", np.ones((3, 65)), "%d", ",")
    np.savetxt(tmp_path / "narrow.csv", np.ones((3, 60)), "%d", ",")
    wrong = [tmp_path / x for x in ("text.png", "labelled.csv", "absent.png", "narrow.csv")]
    options = (wrong[0], digits / "digit0.png", *wrong[1:], digits / "digit1.png")
    found, errors, status = predict(digits, *options)
    assert status == 1
    assert [x[0] for x in found] == [str(digits / f"digit{i}.png") for i in (0, 1)]
    errors = errors.splitlines()
    assert [x.startswith("predict.py: error: ") for x in errors] == [True] * 4
    assert errors[0].endswith("text.png is no PNG or JPEG image")
    assert errors[1].endswith("has 65 columns, and the network takes 64 numbers; remove that of "
                              "the labels")  # fmt: skip
    assert errors[2].endswith("absent.png cannot be read (No such file or directory)")
    assert errors[3].endswith("has 60 columns, and the network takes 64 numbers")


@pytest.mark.parametrize("name", ["absent", "digit0.png"])
def test_what_is_no_network_is_refused(digits, name):
    result = run("predict.py", digits / name, digits / "digit0.png", status=1)
    assert re.fullmatch(r"predict\.py: error: .*\n", result.stderr)


def test_a_picture_is_drawn_or_the_reason_printed(digits, tmp_path, predict):
    rows = nnxp.data.load_digits()[1].inputs[:12]
    np.savetxt(tmp_path / "rows.csv", rows, "%d", ",")
    options = (
        digits,
        digits / "digit0.png",
        tmp_path / "rows.csv",
        "--picture",
        tmp_path / "p.png",
    )
    assert len(predict(*options)[0]) == 13
    with Image.open(tmp_path / "p.png") as picture:
        image = np.asarray(picture.convert("L"))
    assert image.shape[0] > 600  # three rows of four
    assert len(np.unique(image)) > 30
    (tmp_path / "p.png").unlink()
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text(
        "raise ModuleNotFoundError(name='matplotlib')\n"
    )
    result = run("predict.py", *options, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATHS}"})
    assert "no picture: matplotlib is not installed; " in result.stderr
    assert not (tmp_path / "p.png").exists()


def test_other_digits_are_mostly_right(digits):
    out = run("other_digits.py", digits, "--repeats", 2).stdout
    found = re.findall(r"^(.+?) +(\d+) +([\d.]+) %", out, re.M)
    assert [name for name, _, _ in found] == [
        "DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "Computer Modern", "STIX", "strokes",
    ]  # fmt: skip
    counts = [int(count) for _, count, _ in found]
    assert counts == [30, 30, 30, 40, 30, 20]
    right = sum(
        count * float(share) / 100 for count, (_, _, share) in zip(counts, found, strict=True)
    )
    # Chance is a tenth, 18 of 180, with a deviation of 4.
    assert right > 60


def test_other_digits_refuse_other_networks_and_files(digits, tmp_path):
    with script_modules():
        import other_digits
    with pytest.raises(nnxp.DataError, match="rows.csv cannot be read as a font"):
        next(other_digits.font_digits(digits / "rows.csv", np.random.default_rng(0)))
    network = nnxp.mlp([64, 3], rng=0)
    dataset = Dataset(np.random.default_rng(0).random((40, 64)), np.arange(40) % 3)
    trained(network, dataset, epochs=1).network.save(tmp_path / "n.safetensors")
    result = run("other_digits.py", tmp_path / "n.safetensors", status=1)
    assert "does not tell the ten digits" in result.stderr


def test_strokes_are_drawn_within_the_field():
    with script_modules():
        import other_digits
    rng = np.random.default_rng(0)
    for image in other_digits.stroke_digits(rng):
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert len(np.unique(edge)) == 1  # nothing is cut off


@pytest.mark.interop
def test_an_onnx_file_predicts_as_the_network_that_it_is_of(digits, predict, tmp_path):
    pytest.importorskip("onnx")
    network = nnxp.load_network(digits / "network.safetensors")
    nnxp.export_onnx(network, tmp_path / "network.onnx")
    files = sorted(digits.glob("*.png"))
    ours, theirs = (predict(model, *files) for model in (digits, tmp_path / "network.onnx"))
    assert len(ours[0]) == len(files)
    assert ours == theirs
