import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.text import Text
from PIL import Image

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.passes import EarlierPasses
from dfs_rl.reporting import style
from dfs_rl.reporting.figures import (
    accuracy_plot,
    options_plot,
    write_figures,
)
from dfs_rl.reporting.frontier import method_panels
from dfs_rl.reporting.images_plot import (
    cheapest_and_most_expensive,
    images_plot,
    to_rgb,
)
from dfs_rl.reporting.labels import Label, place_labels
from tests.helpers.fake_runs import fake_run

BIT_OPTIONS = BitOptions((0, 2, 3, 4, 8, 32))
TENSORS = ("predictions", "labels", "log_likelihood", "confidence")


def opened(figure):
    """Render, decode and check that something was drawn; returns the pixels."""
    with Image.open(io.BytesIO(style.to_png(figure))) as image:
        width, height = figure.get_size_inches()
        # Matplotlib releases differ in how they round half a pixel.
        assert image.size == pytest.approx((width * style.DPI, height * style.DPI), abs=1)
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels != 255).any(axis=2).mean() > 0.005
    return pixels


def written(figure):
    return [text for text in figure.findobj(Text) if text.get_text()]


def overlaps(boxes):
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_accuracy_plot_labels_methods_without_overlap(summary):
    figure = accuracy_plot(summary)
    opened(figure)
    named = " ".join(text.get_text() for text in written(figure))
    for method in summary.methods:
        assert method.label in named
    assert "skip all, 2" in named  # off the scale, so with its figure
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert not overlaps([text.get_window_extent() for text in axes.texts])
        frame = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 < box.x1 <= frame.x1
            assert frame.y0 <= box.y0 < box.y1 <= frame.y1


def test_accuracy_plot_over_measured_time(measured_summary):
    figure = accuracy_plot(measured_summary, "milliseconds")
    opened(figure)
    overview, near = figure.axes
    assert overview.get_xlabel() == (
        "measured ms per image, log scale (a machine, torch, 1 thread, batch size 1)"
    )
    places = {
        round(float(x), 3) for line in overview.lines for x in np.atleast_1d(line.get_xdata())
    }
    assert {0.295, 0.565} <= places  # uniform options and full precision
    assert near.get_title(loc="left") == "Near the gate's time"


def test_axis_of_latency_names_the_largest_option(latency_summary):
    for options, full in (((0, 8, 32), 32), ((0, 8), 8)):
        label = style.cost_axis("computation", replace(latency_summary, options=options))
        assert label == f"latency per image, % of all gated layers at {full} bit, log scale"


def test_accuracy_plot_of_a_backbone_has_one_panel(backbone_summary):
    figure = accuracy_plot(backbone_summary)
    assert len(figure.axes) == 1
    opened(figure)


def test_accuracy_plot_of_equal_or_free_methods(summary):
    level = [
        replace(m, accuracy=100.0, accuracy_error=0.0, computation=1.0) for m in summary.methods
    ]
    level[1] = replace(level[1], computation=0.0)
    opened(accuracy_plot(replace(summary, methods=tuple(level))))


def test_labels_keep_apart_however_crowded():
    figure = style.new_figure(5, 4)
    axes = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    labels = [Label(f"method {i}", 5 + 0.05 * i, 5 + 0.03 * i, style.INK) for i in range(8)]
    place_labels(axes, labels, [[(0, 5), (10, 5)]])
    assert len(axes.texts) == len(labels)
    assert not overlaps([text.get_window_extent() for text in axes.texts])


def test_labels_are_not_nearer_to_another_point():
    figure = style.new_figure(5, 4)
    axes = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    axes.set(xlim=(0, 10), ylim=(0, 10))
    points = [(5.0, 5.0), (5.0, 5.2)]
    place_labels(axes, [Label("method", *point, style.INK) for point in points], [])
    pixels = axes.transData.transform(points)
    for own, other, text in zip(pixels, pixels[::-1], axes.texts, strict=True):
        box = text.get_window_extent()
        far = [np.linalg.norm(np.clip(p, box.min, box.max) - p) for p in (own, other)]
        assert far[0] <= far[1] + 1


@pytest.mark.parametrize("layers", [1, 9, 21])
def test_options_plot_for_few_and_many_layers(layers):
    generator = torch.Generator().manual_seed(layers)
    histogram = torch.rand(layers, 6, generator=generator)
    histogram = (histogram / histogram.sum(dim=1, keepdim=True)).tolist()
    figure = options_plot([histogram], BIT_OPTIONS)
    opened(figure)
    bars = figure.axes[0].containers
    assert len(bars) == 6
    heights = np.array([[bar.get_height() for bar in stack] for stack in bars])
    np.testing.assert_allclose(heights.sum(axis=0), 100.0, rtol=1e-6)
    np.testing.assert_allclose(heights.T / 100, histogram, rtol=1e-5)


def test_options_plot_has_a_panel_for_each_pass_that_ran():
    first = [[0.0, 0.75, 0.25, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]]
    second = [[0.0, 0, 0, 0.2, 0.05, 0], [0.0, 0, 0.25, 0, 0, 0]]
    figure = options_plot([first, second, np.zeros((2, 6))], BIT_OPTIONS)
    opened(figure)
    titles = [axes.get_title(loc) for axes in figure.axes for loc in ("left", "center")]
    assert [title for title in titles if title] == [
        "Pass 1, 100 % of the images",
        "Pass 2, 25 % of the images",
    ]
    for axes, shares, running in zip(figure.axes, (first, second), (1.0, 0.25), strict=True):
        heights = np.array([[bar.get_height() for bar in stack] for stack in axes.containers])
        np.testing.assert_allclose(heights.T, 100 * np.array(shares) / running)


def test_histogram_image_has_colours_of_options():
    certain = [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    image = style.to_array(options_plot([certain], BIT_OPTIONS))
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    seen = {tuple(pixel) for pixel in image.reshape(-1, 3)[::7].tolist()}
    colours = [tuple(round(255 * v) for v in c) for c in style.option_colours(BIT_OPTIONS)]
    assert {colours[1], colours[5]} <= seen


@pytest.mark.parametrize("bits", [(0, 2, 32), (2, 8), (32,), (0, *range(1, 9), 16, 32)])
def test_option_colours_differ_in_grey(bits):
    colours = np.array(style.option_colours(BitOptions(bits)))
    grey = colours @ [0.299, 0.587, 0.114]
    assert len(colours) == len(bits)
    assert (np.diff(grey[1:] if bits[0] == 0 else grey) < -0.03).all()


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        ([90], [90, 90, 90]),
        ([90, 0], [255, 255, 255]),
        ([90, 255], [90, 90, 90]),
        ([10, 20, 30], [10, 20, 30]),
        ([10, 20, 30, 51], [206, 208, 210]),  # a fifth of the colour, four fifths of white
    ],
)
def test_images_of_any_channels_become_rgb(pixel, expected):
    image = np.broadcast_to(np.array(pixel, dtype=np.uint8)[:, None, None], (len(pixel), 2, 3))
    rgb = to_rgb(image)
    assert rgb.shape == (2, 3, 3)
    assert rgb[1, 2].tolist() == expected


def drawn_images(rows, answers, *, options=(2,) * 9, channels=3, earlier=None):
    """Draw images with a prediction and a label each; all run at the same options at last."""
    names = sorted({name for answer in answers for name in answer})
    predictions, labels = torch.tensor([[names.index(n) for n in a] for a in answers]).T
    records = GateRecords(
        name="gate",
        predictions=predictions,
        labels=labels,
        options=torch.tensor(options).expand(len(answers), -1),
        log_likelihood=torch.zeros(len(answers)),
        confidence=torch.ones(len(answers)),
        earlier=earlier,
    )
    costs = CostTable(options=BIT_OPTIONS, layer_macs=(100,) * len(options))
    images = torch.full((len(answers), channels, 8, 8), 77, dtype=torch.uint8)
    return images_plot(rows, records, images, costs, names)


@pytest.mark.parametrize(("channels", "layers"), [(3, 9), (1, 3), (2, 27), (4, 54)])
def test_images_plot_says_cost_prediction_and_label(channels, layers):
    long = ("a very long name of a class", "another long name")
    answers = [("cat", "cat"), ("dog", "cat"), long]
    options = (2,) * layers
    figure = drawn_images({"a": [0, 1], "b": [2]}, answers, options=options, channels=channels)
    opened(figure)
    captions = [text.get_text() for text in written(figure)]
    assert captions.count("0.88 %") == 3  # (3 / 32) ** 2
    assert "cat" in captions
    assert "says dog, is cat" in captions
    assert "says a very…class,\nis anothe… name" in captions


def test_an_empty_row_of_images_is_refused():
    for rows in ({}, {"a": [], "b": [0]}):
        with pytest.raises(ConfigError, match="empty row"):
            drawn_images(rows, [("cat", "cat")])


def test_images_plot_has_the_bits_of_every_pass():
    ran = torch.tensor([[True], [False]])
    first = torch.tensor([1, 1, 0]).expand(2, 1, 3)
    earlier = EarlierPasses(options=first * ran[:, :, None], ran=ran, mirrored=~ran)
    answers = [("cat", "cat")] * 2
    figure = drawn_images({"a": [0, 1]}, answers, options=(4, 5, 4), earlier=earlier)
    opened(figure)
    strips = [axes for image in figure.axes for axes in image.child_axes]
    bits = [[text.get_text() for text in strip.texts][:3] for strip in strips]
    assert bits == [["2", "2", "0"], ["8", "32", "8"], ["8", "32", "8"]]
    heights = [strip.get_window_extent() for strip in strips[:2]]
    assert heights[0].y0 > heights[1].y1  # the second pass is below the first


def test_cheapest_and_most_expensive_by_sorting(gate_records, costs):
    rows = cheapest_and_most_expensive(gate_records, costs)
    spent = gate_records.computation(costs)
    cheap, expensive = (spent[rows[f"{name} images"]] for name in ("Cheapest", "Most expensive"))
    assert cheap.tolist() == spent.sort().values[:8].tolist()
    assert expensive.tolist() == spent.sort(descending=True).values[:8].tolist()
    assert rows["Cheapest images"][0] == int(spent.argmin())


def test_images_plot_has_the_image_and_its_class(gate_records, costs):
    images = torch.arange(len(gate_records)).remainder(256).to(torch.uint8)
    images = images[:, None, None, None].expand(-1, 1, 4, 4)
    names = [f"class {i}" for i in range(10)]
    right = int(gate_records.correct.int().argmax())
    figure = images_plot({"a": [right]}, gate_records, images, costs, names)
    (axes,) = figure.axes
    assert (axes.images[0].get_array() == right % 256).all()
    assert names[int(gate_records.labels[right])] in {t.get_text() for t in written(figure)}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ([1, 1, 1, 1], [[0, 1]]),  # a static bit table
        ([1, 2, 2, 2], [[0], [1, 2]]),
        ([2, 1, 1, 1], [[1, 2], [0]]),
        ([3, 1, 2, 0], [[3, 1], [0, 2]]),
        ([5], [[0]]),
    ],
)
def test_no_image_is_both_cheap_and_expensive(gate_records, costs, options, rows):
    n = len(options)
    few = replace(
        gate_records,
        options=torch.tensor(options)[:, None].expand(n, gate_records.options.shape[1]),
        **{name: getattr(gate_records, name)[:n] for name in TENSORS},
    )
    assert list(cheapest_and_most_expensive(few, costs).values()) == rows


def test_the_cost_of_an_image_is_that_of_all_passes(gate_records, costs):
    last = gate_records.options
    ran = (torch.arange(len(last)) % 2 == 0)[:, None]
    earlier = EarlierPasses(options=torch.ones_like(last)[:, None], ran=ran, mirrored=~ran)
    twice = replace(gate_records, earlier=earlier)
    images = torch.zeros(len(last), 1, 4, 4, dtype=torch.uint8)
    figure = images_plot({"a": [4, 5]}, twice, images, costs, [str(i) for i in range(10)])
    assert [len(axes.child_axes) for axes in figure.axes] == [2, 1]
    shown = {text.get_text() for text in written(figure)}
    spent = (records.computation(costs)[i] for records, i in ((twice, 4), (gate_records, 5)))
    assert {f"{cost:.2f} %" for cost in spent} <= shown


def simulated(colour, matrix):
    """Return a colour as a viewer of a kind sees it, in CIELAB under D65."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    white = [0.9505, 1.0, 1.089]
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(xyz @ seen / white)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes (2009), severity 1.
VIEWERS = {
    "normal": np.eye(3),
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


@pytest.mark.parametrize("viewer", VIEWERS)
def test_colours_of_methods_differ_for_every_viewer(viewer):
    colours = [*(colour for colour, _ in style.METHOD_STYLES), style.INK, style.MUTED]
    seen = [simulated(colour, VIEWERS[viewer]) for colour in colours]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 19
    assert len({marker for _, marker in style.METHOD_STYLES}) == len(style.METHOD_STYLES)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.35, 8.5, [0.5, 1, 2, 5]),
        (0.45, 3.2, [0.5, 0.7, 1, 1.5, 2, 3]),
        (0.03, 170, [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]),
        (1e-6, 2, [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]),
        (0.72, 0.93, [0.75, 0.8, 0.85, 0.9]),
        (1.0, 1.0, [1.0]),
    ],
)
def test_ticks_are_round_values_within_the_axis(low, high, ticks):
    assert style.readable_ticks(low, high) == pytest.approx(ticks)


def test_figures_are_written_without_leftovers(
    summary, backbone_summary, latency_summary, tmp_path
):
    drawn = drawn_images({"a": [0], "b": [1]}, [("cat", "cat")] * 2)
    write_figures(tmp_path, "val-", summary, drawn)
    names = ["val-accuracy.png", "val-images.png", "val-options.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    write_figures(tmp_path / "backbone", "", backbone_summary, None)
    assert [path.name for path in (tmp_path / "backbone").iterdir()] == ["accuracy.png"]
    write_figures(tmp_path / "latency", "", latency_summary, None)
    assert {path.name for path in (tmp_path / "latency").iterdir()} == {
        "accuracy.png",
        "accuracy_ms.png",
    }


NAMES = [r"$\frac$", "_", "<b>", "a\nb", "x" * 300, "汉字", "\x1b[31m"]


def test_names_are_drawn_as_they_are(summary):
    with rc_context({"text.usetex": True}):
        # The first methods have a label in the figure.
        named = [replace(m, label=n) for m, n in zip(summary.methods, NAMES, strict=False)]
        methods = (*named, *summary.methods[len(NAMES) :])
        row = range(len(NAMES))
        figures = [
            accuracy_plot(replace(summary, dataset=r"$\frac$ <b>汉字", methods=methods)),
            drawn_images({"a": row, "b": row}, [(name, "other") for name in NAMES]),
        ]
        for figure in figures:
            opened(figure)
            assert not any(text.get_parse_math() or text.get_usetex() for text in written(figure))
    texts = [text.get_text() for text in written(figures[0])]
    for name in NAMES:
        shown = name if len(name) < 80 else f"{name[:40]}…"
        assert any(text.startswith(shown) for text in texts)


def test_tick_labels_of_any_width_have_space_beside_the_axis_label():
    runs = [  # over so small a range that ticks have decimals
        fake_run(f"r{i}", (150 + i, 0.6 + 0.1 * i), label=f"Gate {i}", cascade=(150, 0.5))
        for i in range(4)
    ]
    figure = method_panels(compare_runs(runs))
    style.to_png(figure)
    first = figure.axes[0]
    label = next(text for text in figure.texts if text.get_text() == "accuracy, %")
    ticks = [text for text in first.get_yticklabels() if text.get_text()]
    assert any("." in text.get_text() for text in ticks)
    gap = min(text.get_window_extent().x0 for text in ticks) - label.get_window_extent().x1
    assert gap / figure.dpi > 0.03  # inches
