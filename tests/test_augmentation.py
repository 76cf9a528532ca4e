"""Augmentation: random numbers, changed images, and agreement of steps, libraries and resumes."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from array_api_compat import array_namespace
from builders import PlainTrainer, Stopping, fit, numbers, stopped_after
from tables import device_or_skip, devices

import nnxp
from nnxp.data import Dataset

KINDS = {
    "shift": lambda **settings: nnxp.RandomShift(2, **settings),
    "flip": nnxp.RandomFlip,
    "rotation": lambda **settings: nnxp.RandomRotation(40, **settings),
    "elastic": lambda **settings: nnxp.ElasticDistortion(9, 2, **settings),
}
kinds = pytest.mark.parametrize("make", list(KINDS.values()), ids=list(KINDS))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def ramps(count, height, width):
    """Return images whose first channel holds the row of each pixel, and the second the column."""
    rows, columns = np.indices((height, width)).astype(float)
    return np.repeat(np.stack([rows, columns])[None], count, axis=0)


def forward(layer, x):
    return layer.forward(x, training=True)


def in_float64(kind, *settings, seed=0):
    return kind(*settings, rng=seed, dtype="float64")


# What is drawn. Figures of n independent draws are within 4.5 standard deviations of their mean,
# which leaves less than 1e-5 to chance for each; seeds are fixed.


def moves(layer, count, steps=1):
    """Return the shift of each image of each step: where its centre comes from."""
    size = 2 * layer.pixels + 1
    y = [forward(layer, ramps(count, size, size)) for _ in range(steps)]
    middle = layer.pixels
    return np.array([x[:, :, middle, middle] for x in y]).astype(int) - middle


def angles(layer, count, steps=1):
    """Return the angle of each image of each step in degrees: by where the next pixel is read."""
    y = [forward(layer, ramps(count, 7, 7))[:, :, 3, 4] - 3 for _ in range(steps)]
    return np.degrees([np.arctan2(-x[:, 0], x[:, 1]) for x in y])


def displacements(layer, count, steps=1):
    """Return down and right, by which the centre of each image of each step is read elsewhere."""
    return np.array([forward(layer, ramps(count, 17, 17))[:, :, 8, 8] - 8 for _ in range(steps)])


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_each_shift_is_as_likely(pixels):
    layer = in_float64(nnxp.RandomShift, pixels)
    found = (moves(layer, 5000, 5).reshape(-1, 2) + pixels) @ [2 * pixels + 1, 1]
    cells = (2 * pixels + 1) ** 2
    counts = np.bincount(found, minlength=cells)
    assert counts.size == cells
    expected = found.size / cells
    # Pearson's statistic has a chi-squared distribution with k = cells - 1 degrees of freedom, and
    # exceeds k + 2 sqrt(k t) + 2 t with a probability of exp(-t) (Laurent and Massart 2000, eq.
    # 4.3); t = 11.5 is 1e-5.
    k, t = cells - 1, 11.5
    assert ((counts - expected) ** 2 / expected).sum() < k + 2 * math.sqrt(k * t) + 2 * t


def test_half_of_the_images_are_mirrored():
    layer = in_float64(nnxp.RandomFlip)
    y = np.array([forward(layer, ramps(5000, 1, 2))[:, 1, 0, 0] for _ in range(5)])
    assert set(np.unique(y)) == {0, 1}
    assert abs(y.mean() - 0.5) < 4.5 * 0.5 / math.sqrt(y.size)


@pytest.mark.parametrize("degrees", [10, 180])
def test_angles_are_uniform(degrees):
    found = np.sort(angles(in_float64(nnxp.RandomRotation, degrees), 5000, 4).ravel())
    assert abs(found).max() <= degrees * (1 + 1e-12)
    ideal = np.linspace(-degrees, degrees, found.size)
    distance = abs(found - ideal).max() / (2 * degrees)
    # Dvoretzky, Kiefer and Wolfowitz' inequality: the empirical distribution is off by more than d
    # with a probability of at most 2 exp(-2 n d²) (Massart 1990); and ours has steps of 1 / n.
    assert distance < math.sqrt(math.log(2 / 1e-5) / (2 * found.size)) + 1 / found.size


def test_displacements_have_mean_0_and_the_deviation_of_smoothed_noise():
    alpha, sigma = 9.0, 1.5
    found = displacements(in_float64(nnxp.ElasticDistortion, alpha, sigma), 2000, 5).reshape(-1, 2)
    # Sums of independent numbers of variance 1/3, with the Gaussian's weights in both directions.
    weights = np.exp(-((np.arange(-8, 9) / sigma) ** 2) / 2)
    weights /= np.exp(-((np.arange(-20, 21) / sigma) ** 2) / 2).sum()
    variance = alpha**2 / 3 * (weights**2).sum() ** 2
    assert math.isclose(variance, (alpha / (sigma * math.sqrt(12 * math.pi))) ** 2, rel_tol=1e-3)
    n = len(found)
    assert (abs(found.mean(axis=0)) < 4.5 * math.sqrt(variance / n)).all()
    # The variance of a square is at most that of a normal number's: 2 variance².
    assert (abs((found**2).mean(axis=0) - variance) < 4.5 * variance * math.sqrt(2 / n)).all()
    # Down and right are independent.
    assert abs((found[:, 0] * found[:, 1]).mean()) < 4.5 * variance / math.sqrt(n)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda seed: moves(in_float64(nnxp.RandomShift, 2, seed=seed), 1000, 20)[..., 0],
        lambda seed: moves(in_float64(nnxp.RandomShift, 2, seed=seed), 1000, 20)[..., 1],
        lambda seed: angles(in_float64(nnxp.RandomRotation, 90, seed=seed), 1000, 20),
        lambda seed: displacements(in_float64(nnxp.ElasticDistortion, 5, 1, seed=seed), 1000, 20)[
            ..., 1
        ],
    ],
    ids=["down", "right", "angle", "elastic"],
)
def test_draws_of_images_steps_and_seeds_are_independent(drawn):
    one, other = drawn(0), drawn(1)
    one, other = one / one.std(), other / other.std()
    # Products of independent numbers of mean 0 and variance 1 have mean 0 and variance 1.
    for products in (
        one, one[:, 1:] * one[:, :-1], one[1:] * one[:-1], one * other, one[1:] * other[:-1],
        one[1:, :-1] * one[:-1, 1:],
    ):  # fmt: skip
        assert abs(products.mean()) < 4.5 / math.sqrt(products.size)
    assert len(np.unique(one[0])) > 4
    assert not np.array_equal(one[0], one[1])


def test_seed_and_step_are_not_added():
    one, other = (in_float64(nnxp.RandomShift, 3) for _ in range(2))
    one.state["seed"], other.state["seed"] = (np.array([k], np.int32) for k in (5, 6))
    steps, others = moves(one, 100, 3), moves(other, 100, 3)
    for first in steps:
        for second in others:
            # Shifts are equal by chance in one of 49 images; in 15 of 100 with less than 1e-8.
            assert (first == second).all(axis=1).sum() < 15


def test_down_and_right_are_independent():
    found = moves(in_float64(nnxp.RandomShift, 2), 5000, 4).reshape(-1, 2)
    assert abs((found[:, 0] * found[:, 1]).mean()) < 4.5 * 2 / math.sqrt(len(found))  # variance 2


# How images change


@pytest.mark.parametrize("shape", [(40, 2, 6, 5), (40, 1, 5, 8)])
@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_shift_equals_slices(shape, pixels):
    x = noise(*shape)
    height, width = shape[2:]
    layer = in_float64(nnxp.RandomShift, pixels)
    other = copy.deepcopy(layer)
    draws = other.draw_bits(np, (40, 2)) & 0x7FFFFFFF
    y = forward(layer, x)
    for image, got, move in zip(x, y, draws % (2 * pixels + 1) - pixels, strict=True):
        padded = np.pad(image, ((0, 0), (pixels, pixels), (pixels, pixels)))
        i, j = move + pixels
        np.testing.assert_array_equal(got, padded[:, i : i + height, j : j + width])


def test_flip_equals_reversed_columns():
    x = noise(40, 2, 4, 5)
    y = forward(in_float64(nnxp.RandomFlip), x)
    flipped = (y != x).any(axis=(1, 2, 3))
    assert 0 < flipped.sum() < 40
    np.testing.assert_array_equal(y[flipped], x[flipped, :, :, ::-1])
    np.testing.assert_array_equal(y[~flipped], x[~flipped])


def bilinear(image, row, column):
    """Return a pixel between four, as a loop over all pixels with their weights; 0 outside."""
    total = 0.0
    for i, j in np.ndindex(image.shape):
        total += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * image[i, j]
    return total


@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 9)])
def test_rotation_equals_a_loop_over_pixels(height, width):
    x = noise(6, 2, height, width)
    layer = in_float64(nnxp.RandomRotation, 180)
    turned = np.radians(angles(copy.deepcopy(layer), 6)[0])
    y = forward(layer, x)
    middle, centre = (height - 1) / 2, (width - 1) / 2
    for n, channel, i, j in np.ndindex(y.shape):
        down, right, c, s = i - middle, j - centre, math.cos(turned[n]), math.sin(turned[n])
        row, column = middle + c * down - s * right, centre + s * down + c * right
        # Places have an error of some units of their size, and pixels differ by less than 8.
        assert abs(y[n, channel, i, j] - bilinear(x[n, channel], row, column)) < 1e-13


def test_rotation_by_0_degrees_and_distortion_by_0_change_nothing():
    x = noise(5, 2, 6, 7)
    for layer in (
        in_float64(nnxp.RandomRotation, 0),
        in_float64(nnxp.ElasticDistortion, 0, 4),
    ):
        np.testing.assert_allclose(forward(layer, x), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 2.0, 3.0, 50.0])
def test_distortion_equals_a_loop_over_pixels(sigma):
    alpha, (height, width) = 2.0, (5, 6)
    x = np.concatenate([noise(3, 2, height, width), ramps(3, height, width)], axis=1)
    layer = in_float64(nnxp.ElasticDistortion, alpha, sigma)
    bits = copy.deepcopy(layer).draw_bits(np, (3, height, width)).astype(np.int64)
    y = forward(layer, x)
    spread = np.arange(-max(20, int(20 * sigma)), max(20, int(20 * sigma)) + 1)
    total = np.exp(-((spread / sigma) ** 2) / 2).sum()
    for n in range(3):
        places = []
        for part in (bits[n] & 0xFFFF, (bits[n] >> 16) & 0xFFFF):
            drawn = alpha * (part / 0x7FFF8 * 16 - 1)
            moved = np.zeros((height, width))
            for i, j in np.ndindex(height, width):
                for k, m in np.ndindex(height, width):
                    weight = math.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * sigma**2))
                    moved[i, j] += weight / total**2 * drawn[k, m]
            places.append(moved)
        for channel, i, j in np.ndindex(4, height, width):
            wanted = bilinear(x[n, channel], i + places[0][i, j], j + places[1][i, j])
            assert abs(y[n, channel, i, j] - wanted) < 1e-13


@pytest.mark.interop
def test_rotation_equals_pytorchs():
    import torch

    x = noise(20, 3, 11, 11)
    layer = in_float64(nnxp.RandomRotation, 180)
    turned = np.radians(angles(copy.deepcopy(layer), 20)[0])
    c, s = np.cos(turned), np.sin(turned)
    theta = np.array([[c, s, 0 * c], [-s, c, 0 * c]]).transpose(2, 0, 1)  # columns come first there
    grid = torch.nn.functional.affine_grid(torch.asarray(theta), x.shape, align_corners=True)
    wanted = torch.nn.functional.grid_sample(torch.asarray(x), grid, align_corners=True)
    np.testing.assert_allclose(forward(layer, x), wanted.numpy(), rtol=0, atol=1e-13)


@kinds
def test_channels_change_together_and_memory_order_does_not_matter(make):
    x = noise(6, 1, 8, 7)
    layer = make(rng=0, dtype="float64")
    twin, last = copy.deepcopy(layer), copy.deepcopy(layer)
    y = forward(layer, x)
    np.testing.assert_array_equal(forward(twin, np.repeat(x, 3, axis=1)), np.repeat(y, 3, axis=1))
    batch_last = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(forward(last, batch_last), y)


@kinds
def test_backward_is_the_transpose_of_forward(make):
    """<forward(x), dy> = <x, backward(dy)>, since the outputs are linear in the images."""
    x, dy = noise(4, 3, 12, 9), noise(4, 3, 12, 9, seed=1)
    layer = make(rng=0, dtype="float64")
    y = forward(layer, x)
    dx = layer.backward(dy)
    # Sums of 1,296 products of rounded numbers: n u times the sum of their magnitudes at most.
    bound = 1296 * 2.0**-52 * (abs(x * dx).sum() + abs(y * dy).sum())
    assert abs((y * dy).sum() - (x * dx).sum()) < bound


@kinds
def test_nothing_changes_in_inference(make):
    x = noise(4, 1, 8, 8).astype("float32")
    layer = make(rng=0)
    before = {name: state.copy() for name, state in layer.state.items()}
    assert layer.forward(x) is x
    np.testing.assert_equal(layer.state, before)
    assert not np.array_equal(forward(layer, x), x)
    assert layer.state["counter"] == before["counter"] + 1


# Libraries, steps, files


@kinds
@devices
def test_every_library_draws_the_same(make, spec):
    device = device_or_skip(spec)
    x = np.random.default_rng(0).random((30, 2, 9, 8))

    def images(place, rows=slice(None)):
        layer = make(rng=np.random.default_rng(3), dtype="float64", device=place)
        layer.row_offset = rows.start or 0
        given = place.asarray(x[rows])
        return [place.to_host(forward(layer, given)) for _ in range(3)]

    expected = images(nnxp.device("cpu"))
    exact = isinstance(make(rng=0), nnxp.RandomShift | nnxp.RandomFlip)
    # Otherwise places differ by rounding, and pixels by at most 1 from one to the next.
    tolerance = 0 if exact else 1e-13
    for got, wanted in zip(images(device), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
    for got, wanted in zip(images(device, slice(20, None)), expected, strict=True):
        np.testing.assert_allclose(got, wanted[20:], rtol=0, atol=tolerance)


def digits(count=90):
    train, _ = nnxp.data.load_digits(images=True)
    return Dataset(train.inputs[:count], train.labels[:count])


def new_trainer(make, kind=nnxp.Trainer, spec="cpu", **options):
    rng = np.random.default_rng(0)
    place = {"device": spec, "dtype": "float64"}
    layers = [make(rng=rng, **place), nnxp.Flatten(), nnxp.Affine(64, 10, rng=rng, **place)]
    network = nnxp.Sequential(layers)
    trainer = kind(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1), **options)
    trainer.rng = rng
    return trainer


@kinds
@pytest.mark.parametrize("spec", ["cpu", pytest.param("jax:cpu", marks=pytest.mark.interop)])
def test_captured_steps_equal_plain_steps(make, spec):
    device = device_or_skip(spec)
    one, plain = new_trainer(make, spec=spec), new_trainer(make, PlainTrainer, spec)
    for each in (one, plain):
        fit(each, digits(), 2)
    assert one.captured == "captured"
    counters = [device.to_host(x.network.states()["counter1"]) for x in (one, plain)]
    assert counters[0] == counters[1] == one.optimizer.steps == 16
    for name, x in one.network.parameters().items():
        got, wanted = device.to_host(x), device.to_host(plain.network.parameters()[name])
        # On NumPy, products of a few rows are the same calls; JAX fuses and rounds otherwise.
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if spec == "cpu" else 1e-12)


@kinds
def test_accumulated_steps_draw_as_the_whole_batch(make):
    one, other = new_trainer(make), new_trainer(make)
    for trainer, size in ((one, 12), (other, 4)):
        trainer.fit(digits(), epochs=1, batch_size=size, accumulate=12 // size, rng=trainer.rng)
    for name, x in one.network.parameters().items():
        # Sums in another order: far below the changes of 0.1 that other images cause.
        np.testing.assert_allclose(other.network.parameters()[name], x, rtol=0, atol=1e-13)


@kinds
@pytest.mark.parametrize("capture", ["auto", False])
def test_resume_after_any_step_gives_the_same_bits(tmp_path, make, capture):
    pytest.importorskip("safetensors")
    path, data = tmp_path / "a.safetensors", digits(30)
    whole = new_trainer(make, capture=capture)
    fit(whole, data, 2)
    for steps in range(1, whole.optimizer.steps):
        trainer = new_trainer(make, capture=capture)
        stop = Stopping(stopped_after(steps, trainer))
        fit(trainer, data, 2, checkpoint=path, callbacks=[stop])
        resumed = nnxp.Trainer.resume(path, capture=capture)
        assert repr(resumed.network) == repr(whole.network)
        fit(resumed, data, 2 - len(resumed.history))
        np.testing.assert_equal(numbers(resumed), numbers(whole))


@kinds
def test_copies_go_on_with_the_same_draws(make):
    x = noise(5, 1, 8, 8)
    layer = make(rng=0, dtype="float64")
    forward(layer, x)
    strict = nnxp.device("strict:device1")
    moved = layer.to(strict)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")]
    wanted = forward(layer, x)
    for each in copies:
        np.testing.assert_array_equal(forward(each, x), wanted)
    on_strict = strict.to_host(forward(moved, strict.asarray(x)))
    np.testing.assert_allclose(on_strict, wanted, rtol=0, atol=1e-13)


def test_a_trained_network_predicts_without_augmentation(tmp_path):
    pytest.importorskip("safetensors")
    trainer = new_trainer(KINDS["rotation"])
    fit(trainer, digits(), 1)
    images = digits().inputs
    scores = trainer.network.predict(images)
    plain = nnxp.Sequential(trainer.network.layers[1:])
    np.testing.assert_array_equal(plain.predict(images), scores)
    trainer.network.save(tmp_path / "a.safetensors")
    loaded = nnxp.load_network(tmp_path / "a.safetensors")
    assert repr(loaded[0]) == "RandomRotation(40.0)"
    np.testing.assert_array_equal(loaded.predict(images), scores)


def test_a_setting_changed_in_training_takes_effect():
    """The captured steps of the next epoch are others."""
    one, plain = new_trainer(KINDS["shift"]), new_trainer(KINDS["shift"], PlainTrainer)
    for each in (one, plain):
        fit(each, digits(), 1)
        each.network[0].pixels = 1
        fit(each, digits(), 1)
    assert one.captured == "captured"
    np.testing.assert_equal(dict(one.network.parameters()), dict(plain.network.parameters()))


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nnxp.RandomShift(0, rng=0), "pixels must be a whole .* at least 1, got 0"),
        (lambda: nnxp.RandomShift(-1, rng=0), "pixels must be a whole .* at least 1, got -1"),
        (lambda: nnxp.RandomShift(1.5, rng=0), "pixels must be a whole .* at least 1, got 1.5"),
        (lambda: nnxp.RandomShift("2", rng=0), "pixels must be a whole .* at least 1, got '2'"),
        (lambda: nnxp.RandomShift(True, rng=0), "pixels must be a whole .* at least 1, got True"),
        (lambda: nnxp.RandomRotation(-1, rng=0), "degrees must be a number from 0 to 180, got -1"),
        (lambda: nnxp.RandomRotation(181, rng=0), "degrees must be a number from 0 to 180"),
        (lambda: nnxp.RandomRotation(math.nan, rng=0), "degrees must be .* got nan"),
        (lambda: nnxp.RandomRotation("15", rng=0), "degrees must be a number .* got '15'"),
        (lambda: nnxp.ElasticDistortion(-1, 4, rng=0), "alpha must be a number from 0 to 1e6"),
        (lambda: nnxp.ElasticDistortion(1.1e6, 4, rng=0), "alpha must be a number from 0 to 1e6"),
        (lambda: nnxp.ElasticDistortion(34, 0, rng=0), "sigma must be a positive number, got 0"),
        (lambda: nnxp.ElasticDistortion(34, -4, rng=0), "sigma must be a positive number, got -4"),
        (lambda: nnxp.ElasticDistortion(math.inf, 4, rng=0), "alpha must be .* got inf"),
        (lambda: nnxp.RandomFlip(rng=None), "rng must be a seed such as 0"),
        (lambda: nnxp.RandomFlip(seed=0), "nnxp calls it 'rng'"),
    ],
)
def test_wrong_settings_are_refused(call, message):
    with pytest.raises(nnxp.InputError, match=message):
        call()


@pytest.mark.parametrize("sigma", [5e-324, 0.05, 4.0, 1e300])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1e6])
def test_every_setting_has_finite_results(alpha, sigma):
    x = noise(3, 1, 6, 5).astype("float32")
    layer = nnxp.ElasticDistortion(alpha, sigma, rng=0)
    assert np.isfinite(forward(layer, x)).all()
    assert np.isfinite(layer.backward(x)).all()


def test_settings_are_checked_when_they_are_assigned():
    rotation, elastic = nnxp.RandomRotation(10, rng=0), nnxp.ElasticDistortion(34, 4, rng=0)
    with pytest.raises(nnxp.InputError, match="degrees must be a number from 0 to 180, got 200"):
        rotation.degrees = 200
    with pytest.raises(nnxp.InputError, match="sigma must be a positive number, got 0"):
        elastic.sigma = 0
    assert (rotation.degrees, elastic.sigma) == (10, 4)


@kinds
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("shape", "call"),
    [
        ((9, 12, 12), "x[:, None]"),
        ((9, 144), "x.reshape(-1, 1, 12, 12)"),
        ((9, 2, 2, 8, 8), None),
    ],
)
def test_what_is_no_image_is_refused_with_the_remedy(make, training, shape, call):
    layer, x = make(rng=0, dtype="float64"), noise(*shape)
    name = type(layer).__name__
    with pytest.raises(
        nnxp.InputError, match=rf"{name}\(.*\) expects images of shape \(batch, channels, height"
    ) as raised:
        layer.forward(x, training)
    if call is None:
        assert str(raised.value).endswith(f"got {shape}")
    else:
        assert f"; give {call}" in str(raised.value)
        layer.forward(eval(call, {"x": x, "numpy": np}), training)
    with pytest.raises(nnxp.InputError, match=rf"{name}\(.*\) expects images of shape \(channels"):
        layer.output_shape((144,))
    assert layer.output_shape(None) is None
    assert layer.output_shape((3, 12, 10)) == (3, 12, 10)


@kinds
def test_a_data_set_with_channels_last_is_refused(make):
    layer, x = make(rng=0, dtype="float32"), noise(8, 12, 10, 3).astype("float32")
    trainer = nnxp.Trainer(
        nnxp.Sequential([layer, nnxp.Flatten(), nnxp.Affine(360, 2, rng=0)]),
        nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1),
    )  # fmt: skip
    with pytest.raises(nnxp.InputError, match=r"give numpy.moveaxis\(x, -1, 1\)"):
        trainer.fit(nnxp.data.Dataset(x, np.arange(8) % 2), epochs=1, batch_size=4, rng=0)
    assert trainer.optimizer.steps == 0


@kinds
def test_feature_maps_of_any_size_are_changed(make):
    layer = make(rng=0, dtype="float32")
    network = nnxp.Sequential(
        [nnxp.Conv2D(1, 6, 1, rng=0), layer, nnxp.Flatten(), nnxp.Affine(6 * 9 * 4, 2, rng=0)]
    )
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    data = nnxp.data.Dataset(noise(8, 1, 9, 4).astype("float32"), np.arange(8) % 2)
    trainer.fit(data, epochs=1, batch_size=4, rng=0)
    assert trainer.captured == "captured"


@pytest.mark.parametrize(("size", "most"), [((4, 9), 3), ((9, 4), 3), ((2, 2), 1), ((1, 9), None)])
def test_a_shift_as_large_as_the_images_is_refused(size, most):
    pixels = min(size)
    layer = nnxp.RandomShift(pixels, rng=0)
    x = np.ones((5, 1, *size), "float32")
    for call in (layer.forward, lambda x: layer.output_shape(x.shape[1:])):
        with pytest.raises(
            nnxp.InputError,
            match=rf"RandomShift\({pixels}\) expects images that .*{size[0]} x {size[1]} pixels",
        ) as raised:
            call(x)
    if most is None:
        assert str(raised.value).endswith("pixels")
    else:
        assert str(raised.value).endswith(f"; use pixels={most} at most")
        assert forward(nnxp.RandomShift(most, rng=0), x).shape == x.shape


def test_fit_names_the_layer_before_any_work():
    trainer = new_trainer(lambda **settings: nnxp.RandomShift(8, **settings))
    with pytest.raises(
        nnxp.InputError, match=r"training data do not suit: RandomShift\(8\).*use pixels=7 at most"
    ):
        fit(trainer, digits(), 1)
    assert trainer.optimizer.steps == 0


def test_a_step_reads_no_number_on_the_host(monkeypatch):
    device = nnxp.device("strict:device1")
    layers = [make(rng=0, device=device) for make in KINDS.values()]
    x = device.asarray(noise(3, 2, 8, 7), dtype="float32")
    xp = array_namespace(x)

    def wait(*_, **__):
        raise AssertionError("this would wait for the device")

    for name in ("__bool__", "__float__", "__int__", "__index__", "__complex__", "to_device"):
        monkeypatch.setattr(type(x), name, wait)
    for layer in layers:
        layer.backward(xp.zeros_like(forward(layer, x)))
