"""Plots other than those of histories: the figures' contents, and refused arguments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from remedies import installs

import nnxp
from nnxp import plots, schedules

WatchLayers = nnxp.callbacks.WatchLayers

TRAIN, TEST = nnxp.data.load_digits()
PART = nnxp.data.Dataset(TRAIN.inputs[:300], TRAIN.labels[:300])


def trained(*, activation="sigmoid", epochs=2, **options):
    """Return the callback of a short training."""
    network = nnxp.mlp([64, 12, 12, 10], rng=0, activation=activation)
    watch = WatchLayers(TEST, **options)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(PART, epochs=epochs, batch_size=50, rng=0, callbacks=[watch])
    return watch


def found(losses=(2.0, 1.9, 1.5, 1.0, 1.2, 9.0), smoothed=None, diverged=True):
    losses = np.array(losses)
    rates = np.geomspace(1e-3, 1e2, len(losses))
    smoothed = losses if smoothed is None else np.array(smoothed)
    return nnxp.LearningRateRange(rates, losses, smoothed, diverged)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Call a function of nnxp.plots, and return matplotlib's figure as it is saved."""
    figures = []
    module = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    save = module.Figure.savefig

    def savefig(self, *args, **options):
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(module.Figure, "savefig", savefig)

    def draw(function, *args, **options):
        *args, last = args
        path = tmp_path / "picture.png"
        positional = [*args, last, path]
        function(*positional, **options)
        assert path.read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return draw


def rendered(figure):
    """Return the renderer that measures the texts of a figure, which was saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure).get_renderer()


def texts(axes):
    return [x.get_text() for x in axes.texts]


def ticks(axis):
    return [x.get_text() for x in axis.get_ticklabels()]


def inside(figure):
    """Assert that all texts of the figure lie within it."""
    renderer = rendered(figure)
    width, height = figure.bbox.width, figure.bbox.height
    shown = [figure._suptitle, *[x for axes in figure.axes for x in axes.texts]]
    for axes in figure.axes[:1]:  # without a colour bar, which has ticks beyond its ends
        shown += [*axes.get_xticklabels(), *axes.get_yticklabels()] if axes.axison else []
    for text in shown:
        if text is not None and text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y1 <= height + 1, text


# The confusion matrix


def test_confusion_matrix_shows_counts_and_colours_mistakes_by_share(draw):
    counts = np.array([[90, 10, 0], [1, 999, 0], [0, 0, 0]])
    figure = draw(plots.plot_confusion_matrix, counts, classes=["cat", "dog", "a$b$"], title="T")
    axes = figure.axes[0]
    assert {(x.get_position(), x.get_text()) for x in axes.texts} == {
        ((0, 0), "90"), ((1, 0), "10"), ((0, 1), "1"), ((1, 1), "999"),
    }  # fmt: skip
    diagonal, mistakes = (np.ma.filled(x.get_array(), np.nan) for x in axes.images)
    np.testing.assert_allclose(np.diag(diagonal), [0.9, 0.999, 0])
    np.testing.assert_array_equal(np.argwhere(~np.isnan(mistakes)), [[0, 1], [1, 0]])
    np.testing.assert_allclose(mistakes[[0, 1], [1, 0]], [0.1, 0.001])
    assert axes.images[1].get_clim() == pytest.approx((0, 0.1))  # the mistakes' own scale
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["cat", "dog", "a$b$"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert figure.get_suptitle() == "T\naccuracy 0.9900: 1,089 of 1,100 right"
    inside(figure)


@pytest.mark.parametrize(
    "size", [1, 2, *(pytest.param(size, marks=pytest.mark.long) for size in (20, 26, 100))]
)
def test_confusion_matrix_of_any_size_is_readable(draw, size):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (size, size)) + 1000 * np.eye(size, dtype=int)
    names = [f"class of some long name {i}" for i in range(size)]
    for classes in (None, names):
        figure = draw(plots.plot_confusion_matrix, counts, classes=classes)
        axes = figure.axes[0]
        assert len(axes.texts) == (0 if size > 25 else np.count_nonzero(counts))
        assert len(ticks(axes.xaxis)) == min(size, 50)
        inside(figure)
        renderer = rendered(figure)
        cell = axes.get_window_extent(renderer).width / size
        assert all(x.get_window_extent(renderer).width < cell for x in axes.texts)
        boxes = [x.get_window_extent(renderer) for x in axes.get_xticklabels()]
        assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes))


def test_confusion_matrix_without_mistakes_and_with_one(draw):
    axes = draw(plots.plot_confusion_matrix, np.diag([5, 7])).axes
    assert (len(axes), texts(axes[0])) == (1, ["5", "7"])  # and no scale of mistakes
    assert len(draw(plots.plot_confusion_matrix, [[5, 0], [1, 7]]).axes) == 2


def test_confusion_matrix_of_any_library(backend, draw):
    scores = backend.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    counts = nnxp.metrics.confusion_matrix(scores, backend.array([1, 1, 0]))
    assert texts(draw(plots.plot_confusion_matrix, counts).axes[0]) == ["1", "1", "1"]


# Mistakes


def scores_for(guesses, confidences, classes=3):
    """Return the logits whose softmax gives the guesses these probabilities."""
    p = np.repeat((1 - np.array(confidences))[:, None] / (classes - 1), classes, axis=1)
    p[np.arange(len(guesses)), guesses] = confidences
    return np.log(p)


def test_mistakes_are_the_most_confident_first(draw):
    images = np.arange(5 * 4, dtype="float64").reshape(5, 4)
    scores = scores_for([0, 1, 2, 1, 0], [0.9, 0.6, 0.99999, 0.8, 0.7])
    labels = np.array([0, 2, 1, 0, 0])
    figure = draw(plots.plot_mistakes, images, labels, scores, classes=["a", "b", "c"])
    axes = figure.axes[0]
    assert texts(axes) == [
        "label b\nguess c\n> 0.999", "label a\nguess b\n0.800", "label c\nguess b\n0.600",
    ]  # fmt: skip
    for shown, row in zip(axes.images, (2, 3, 1), strict=True):
        np.testing.assert_allclose(shown.get_array() * 11 + 4, images[row].reshape(2, 2))
    assert figure.get_suptitle() == "3 of 5 are wrong; most confident first"
    figure = draw(plots.plot_mistakes, images, labels, scores, count=2, title="T")
    assert len(figure.axes[0].images) == 2
    assert figure.get_suptitle() == "T\n3 of 5 are wrong; the 2 most confident"
    one_hot = draw(plots.plot_mistakes, images, np.eye(3, dtype=int)[labels], scores)
    assert [x[:7] for x in texts(one_hot.axes[0])] == ["label 1", "label 0", "label 2"]


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [((3, 49), (7, 7)), ((3, 6, 5), (6, 5)), ((3, 1, 6, 5), (6, 5)), ((3, 3, 6, 5), (6, 5, 3))],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_mistakes_in_images_of_any_layout(draw, shape, drawn, dtype):
    images = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    scores = scores_for([0, 0, 0], [0.9, 0.9, 0.9])
    axes = draw(plots.plot_mistakes, images, [1, 2, 0], scores).axes[0]
    assert [x.get_array().shape for x in axes.images] == [drawn] * 2
    first = images[0, 0] if shape[1] == 1 else images[0]
    first = np.moveaxis(first, 0, -1) if len(drawn) == 3 else first.reshape(drawn)
    low, high = (0, 255) if dtype == "uint8" else (images[:2].min(), images[:2].max())
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown, (first - np.float64(low)) / (high - low), atol=1e-6)


def test_mistakes_of_one_logit_and_of_any_library(backend, draw):
    images, labels = backend.array(np.ones((3, 4))), backend.array([0, 1, 1])
    scores = backend.array([[2.0], [3.0], [-1.0]])
    assert texts(draw(plots.plot_mistakes, images, labels, scores).axes[0]) == [
        f"label 0\nguess 1\n{1 / (1 + np.exp(-2)):.3f}",
        f"label 1\nguess 0\n{1 / (1 + np.exp(-1)):.3f}",
    ]


@pytest.mark.parametrize("count", [*(pytest.param(x, marks=pytest.mark.long) for x in (1, 2)), 30])
def test_captions_of_mistakes_do_not_overlap(draw, count):
    names = [f"a class of long name {i}" for i in range(10)]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 120)
    scores = scores_for(labels + 1, rng.uniform(0.2, 1, 120), 10)
    figure = draw(
        plots.plot_mistakes, rng.random((120, 64)), labels, scores, count=count, classes=names
    )
    axes, renderer = figure.axes[0], rendered(figure)
    inside(figure)
    boxes = [x.get_window_extent(renderer) for x in (*axes.texts, *axes.images)]
    assert len(boxes) == 2 * count
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart


# Weights


def test_weights_of_units_are_images_in_one_symmetric_scale(draw):
    network = nnxp.Sequential(nnxp.Standardize(), *nnxp.mlp([16, 7, 3], rng=0).layers)
    weights = network.parameters()["W1"]
    figure = draw(plots.plot_weights, network, title="T")
    axes = figure.axes[0]
    limit = abs(weights).max()
    assert len(axes.images) == 7
    for unit, shown in enumerate(axes.images):
        np.testing.assert_allclose(shown.get_array(), weights[:, unit].reshape(4, 4))
        assert shown.get_clim() == pytest.approx((-limit, limit))
    assert figure.get_suptitle() == "T\nAffine(16, 7): 7 units"
    shown = draw(plots.plot_weights, network, image=(2, 8)).axes[0].images[3]
    np.testing.assert_allclose(shown.get_array(), weights[:, 3].reshape(2, 8))
    coloured = draw(plots.plot_weights, network, image=(4, 2, 2))
    assert len(coloured.axes[0].images) == 28
    np.testing.assert_allclose(
        coloured.axes[0].images[4 * 3 + 2].get_array(), weights[8:12, 3].reshape(2, 2)
    )
    assert " ".join(coloured.get_suptitle().split()) == (
        "Affine(16, 7): 7 units, 4 of 4 input channels of each"
    )


def test_weights_take_the_shape_of_the_training_images(draw):
    network = nnxp.Sequential(nnxp.Flatten(), *nnxp.mlp([12, 4, 3], rng=0).layers)
    images = np.random.default_rng(0).random((20, 1, 2, 6)).astype("float32")
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())
    with pytest.raises(nnxp.InputError, match=r"12 inputs, .* a square image; .*image=\(1, 12\)"):
        draw(plots.plot_weights, network)
    trainer.fit(nnxp.data.Dataset(images, np.arange(20) % 3), epochs=1, batch_size=10, rng=0)
    axes = draw(plots.plot_weights, network).axes[0]
    assert [x.get_array().shape for x in axes.images] == [(2, 6)] * 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("layer", "tiles", "said"),
    [
        (nnxp.Affine(9, 500, rng=0), 100, "the first 100 of 500 units"),
        (nnxp.Conv2D(1, 1, 3, rng=0), 1, "1 kernel"),
        (nnxp.Conv2D(1, 20, 5, rng=0), 20, "20 kernels"),
        (
            nnxp.Conv2D(3, 50, 5, rng=0),
            99,
            "the first 33 of 50 kernels, 3 of 3 input channels of each",
        ),
        (
            nnxp.Conv2D(300, 2, 1, rng=0),
            24,
            "2 kernels, 12 of 300 input channels of each",
        ),
        (nnxp.Affine(1, 3, rng=0), 3, "3 units"),
    ],
)
def test_at_most_a_hundred_weights_are_drawn_and_their_number_is_said(draw, layer, tiles, said):
    network = nnxp.Sequential(layer)
    figure = draw(plots.plot_weights, network)
    assert len(figure.axes[0].images) == tiles
    assert " ".join(figure.get_suptitle().split()) == f"{network[0]!r}: {said}"
    inside(figure)


def test_weights_of_any_device_are_drawn(backend, draw):
    network = nnxp.mlp([4, 3, 2], rng=0, device=backend.device)
    axes = draw(plots.plot_weights, network).axes[0]
    first = backend.host(network.parameters()["W1"])[:, 0].reshape(2, 2)
    np.testing.assert_allclose(axes.images[0].get_array(), first)


# Schedules


def test_schedules_are_drawn_by_step(draw):
    warm = schedules.OneCycle(0.1, 50)
    axes = draw(plots.plot_schedules, warm, 60).axes[0]
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(60))
    np.testing.assert_allclose(line.get_ydata(), [warm(i) for i in range(60)])
    assert axes.get_yscale() == "linear"
    several = {"a$x$": warm, "steps": schedules.StepDecay(0.1, 10), "_c": schedules.Constant(0.1)}
    figure = draw(plots.plot_schedules, several, 40)
    legend = [x.get_text() for x in figure.legends[0].get_texts()]
    assert legend == ["a$x$", "steps", "_c"]
    steps = draw(plots.plot_schedules, schedules.StepDecay(0.1, 10), 40)
    assert steps.axes[0].get_yscale() == "log"
    many = draw(plots.plot_schedules, schedules.Constant(0.1), 10**7).axes[0].lines[0]
    assert (len(many.get_xdata()), many.get_xdata()[-1]) == (5000, 10**7 - 1)


# Layers over training


@pytest.mark.parametrize("epochs", [1, pytest.param(40, marks=pytest.mark.long)])
def test_layers_are_drawn_over_training_side_by_side(draw, epochs):
    runs = {name: trained(activation=name, epochs=epochs) for name in ("sigmoid", "relu")}
    figure = draw(plots.plot_layers, runs, title="T")
    assert figure.get_suptitle() == "T"
    grid = np.array(figure.axes).reshape(3, 2)
    assert [axes.get_title() for axes in grid[0]] == ["sigmoid", "relu"]
    for column, run in enumerate(runs.values()):
        for axes, figures in zip(grid[:, column], ("spreads", "gradients", "blocked"), strict=True):
            assert len(axes.lines) == 5
            for i, line in enumerate(axes.lines):
                np.testing.assert_array_equal(line.get_xdata(), run.steps)
                np.testing.assert_allclose(line.get_ydata(), getattr(run, figures)[:, i])
        legend = [x.get_text() for x in grid[2, column].get_legend().get_texts()]
        assert legend == run.layers
    assert [axes.get_yscale() for axes in grid[:, 0]] == ["log", "log", "linear"]
    assert grid[1, 0].get_ylim() == grid[1, 1].get_ylim()


def test_layers_of_a_deep_network_name_a_dozen(draw):
    network = nnxp.mlp([64, *[5] * 20, 10], rng=0, activation="relu")
    watch = WatchLayers(TEST)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(PART, epochs=1, batch_size=50, rng=0, callbacks=[watch])
    axes = draw(plots.plot_layers, watch).axes
    assert len(axes[0].lines) == 41
    named = [x.get_text() for x in axes[-1].get_legend().get_texts()]
    assert (len(named), named[0], named[-1]) == (12, "affine1", "affine21")


def test_layers_whose_gradients_are_all_0_are_drawn(draw):
    network = nnxp.mlp([64, 5, 10], rng=0, activation="relu", initializer="zeros")
    watch = WatchLayers(TEST)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(PART, epochs=1, batch_size=50, rng=0, callbacks=[watch])
    assert not watch.spreads[0].any()
    draw(plots.plot_layers, watch)


# A range of learning rates


def test_range_shows_losses_and_the_suggestion(draw):
    result = found()
    figure = draw(plots.plot_learning_rate_range, result, title="T")
    (axes,) = figure.axes
    raw, smoothed, star, suggested = axes.lines
    np.testing.assert_array_equal(raw.get_ydata(), result.losses)
    np.testing.assert_array_equal(smoothed.get_ydata(), result.smoothed)
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (result.rates[3], 1.0)
    assert suggested.get_xdata()[0] == result.suggestion == result.rates[3] / 10
    assert axes.get_title() == (
        f"suggestion {result.suggestion:.2g}: a tenth of the rate with the lowest loss"
    )
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[1] < 3  # not up to the loss of the divergence


@pytest.mark.parametrize(
    "losses",
    [
        [2.0, 5.0],
        [2.0, 2.2, 1.8, 2.1, 1.7],
        *(pytest.param(x, marks=pytest.mark.long) for x in ([2.0, 2.0, 2.0], [2.0], [0.0, 0.0])),
    ],
)
def test_range_without_a_fall_has_no_suggestion(draw, losses):
    axes = draw(plots.plot_learning_rate_range, found(losses)).axes[0]
    assert axes.get_title() == "no suggestion: the loss hardly fell"
    assert len(axes.lines) == 2


# What is refused

NETWORK = nnxp.mlp([4, 3, 2], rng=0)
WRONG = scores_for([0, 1], [0.9, 0.8])
IMAGES = np.zeros((2, 4))


@pytest.mark.parametrize(
    ("function", "args", "options", "message"),
    [
        ("confusion_matrix", [np.ones((2, 3))], {}, r"shape \(classes, classes\), got \(2, 3\); m"),
        ("confusion_matrix", [np.ones(4)], {}, r"\(classes, classes\), got \(4,\)"),
        ("confusion_matrix", [np.ones((0, 0))], {}, r"\(classes, classes\), got \(0, 0\)"),
        ("confusion_matrix", [[[1, -2], [0, 1]]], {}, "at least 0, got -2"),
        ("confusion_matrix", [[[1, np.nan], [0, 1]]], {}, "at least 0, got nan"),
        ("confusion_matrix", [[[1, np.inf], [0, 1]]], {}, "at least 0, got inf"),
        ("confusion_matrix", [np.zeros((2, 2))], {}, "nothing to plot: all counts are 0"),
        ("confusion_matrix", ["ab"], {}, "counts must be an array of numbers, got 'ab'"),
        ("confusion_matrix", [np.eye(2)], {"classes": ["a"]}, "must be 2 names, .* got 1"),
        ("confusion_matrix", [np.eye(2)], {"classes": "ab"}, "classes must be a list, got 'ab'"),
        ("mistakes", [IMAGES, [0, 1], WRONG], {}, "no mistake to plot: all 2 guesses are right"),
        ("mistakes", [IMAGES, [0, 3], WRONG], {}, "class numbers from 0 to 2, got 3"),
        ("mistakes", [IMAGES, [0, 0.5], WRONG], {}, "class numbers from 0 to 2, got 0.5"),
        ("mistakes", [IMAGES, [0, 1, 2], WRONG], {}, r"of shape \(2, 3\), got \(3,\)"),
        ("mistakes", [IMAGES[:1], [1, 1], WRONG], {}, "got 1 images and 2 rows"),
        ("mistakes", [np.zeros((2, 5)), [1, 1], WRONG], {}, r"square images, got \(2, 5\)$"),
        ("mistakes", [np.zeros((2, 4, 4, 3)), [1, 1], WRONG], {}, r"give numpy.moveaxis\(images,"),
        ("mistakes", [IMAGES + np.nan, [1, 1], WRONG], {}, "images must be finite"),
        ("mistakes", [IMAGES, [1, 1], WRONG * np.nan], {}, "scores must be finite"),
        ("mistakes", [IMAGES, [1, 1], WRONG[0]], {}, r"\(examples, classes\), got \(3,\)"),
        ("mistakes", [IMAGES, [1, 1], WRONG], {"count": 0}, "count must be a whole number of at l"),
        ("mistakes", [IMAGES, [1, 1], WRONG], {"count": 101}, "count must be at most 100, got 101"),
        ("mistakes", [IMAGES, [1, 1], WRONG], {"classes": [1, 2]}, "must be 3 names, .* got 2"),
        ("weights", [NETWORK[0]], {}, r"expects a network, got Affine\(4, 3\)"),
        ("weights", [nnxp.Sequential(nnxp.BatchNorm(3))], {}, "has no layer with weights, such as"),
        ("weights", [NETWORK], {"image": (2, 3)}, r"have the 4 inputs .*, got \(2, 3\), .* has 6"),
        ("weights", [NETWORK], {"image": 4}, r"must be \(height, width\) or \(channels, .*, got 4"),
        ("weights", [NETWORK], {"image": (0, 4)}, "size of image must be a whole number of at l"),
        (
            "weights",
            [nnxp.Sequential(nnxp.Conv2D(1, 2, 3, rng=0))],
            {"image": (3, 3)},
            "image is for an Affine, and the first layer is Conv2D",
        ),
        ("schedules", [0.1, 10], {}, "expects schedules of nnxp.schedules or .* got 0.1"),
        ("schedules", [schedules.Cosine, 10], {}, r"make an object: Cosine\(…\)"),
        ("schedules", [{}, 10], {}, "nothing to plot: no schedule was given"),
        ("schedules", [schedules.Constant(1), 0], {}, "steps must be a whole number of at least 1"),
        ("layers", [{}], {}, "nothing to plot: no layer was recorded; give the callback to Train"),
        ("layers", [WatchLayers(TEST)], {}, "no layer was recorded"),
        ("layers", [{"a": 3}], {}, "expects nnxp.callbacks.WatchLayers, or several by name, got 3"),
        ("learning_rate_range", [[1, 2]], {}, r"returns, got \[1, 2\]"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path, function, args, options, message
):
    with pytest.raises(nnxp.InputError, match=message):
        getattr(plots, f"plot_{function}")(*args, tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())


def test_rate_of_a_schedule_that_is_no_rate_is_named(tmp_path):
    class Wrong(schedules.Schedule):
        def __call__(self, step):
            return 0.5 - step

    with pytest.raises(nnxp.InputError, match=r"rate of Wrong\(\) at step 1 .* got -0.5"):
        plots.plot_schedules(Wrong(), 5, tmp_path / "a.png")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = nnxp.mlp([4, 3, 2], rng=0)
    network.parameters()["W1"][0, 0] = np.nan
    with pytest.raises(nnxp.InputError, match=r"weights of Affine\(4, 3\) must be finite"):
        plots.plot_weights(network, tmp_path / "a.png")


CALLS = {
    "confusion_matrix": lambda path: plots.plot_confusion_matrix(np.eye(2), path),
    "mistakes": lambda path: plots.plot_mistakes(IMAGES, [1, 1], WRONG, path),
    "weights": lambda path: plots.plot_weights(NETWORK, path),
    "schedules": lambda path: plots.plot_schedules(schedules.Constant(0.1), 9, path),
    "layers": lambda path: plots.plot_layers(trained(), path),
    "learning_rate_range": lambda path: plots.plot_learning_rate_range(found(), path),
}


def test_every_plot_is_tested_without_matplotlib():
    functions = {name for name in plots.__all__ if name.startswith("plot_")}
    assert functions == {f"plot_{name}" for name in CALLS} | {"plot_histories"}


@pytest.mark.parametrize("name", CALLS)
def test_missing_matplotlib_and_a_path_that_cannot_be_written_are_named(
    tmp_path, monkeypatch, name
):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(nnxp.InputError, match="cannot be written .*; choose another path"):
        CALLS[name](tmp_path / "none" / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(nnxp.MissingExtraError, match=installs("plot")):
        CALLS[name](tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
