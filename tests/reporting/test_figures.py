import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.text import Text
from PIL import Image

from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.reporting import style
from dfs_rl.reporting.figures import (
    accuracy_plot,
    option_histogram_image,
    options_plot,
    write_figures,
)
from dfs_rl.reporting.images_plot import (
    ImageExample,
    cheapest_and_most_expensive,
    images_plot,
    to_rgb,
)
from dfs_rl.reporting.labels import Label, place_labels

BIT_OPTIONS = BitOptions((0, 2, 3, 4, 8, 32))


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
        "measured ms per image, log scale (a machine, 1 thread, batch size 1)"
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
    texts = place_labels(axes, labels, [[(0, 5), (10, 5)]])
    assert not overlaps([text.get_window_extent() for text in texts])


@pytest.mark.parametrize("layers", [1, 3, 9, 54])
def test_options_plot_for_few_and_many_layers(layers):
    generator = torch.Generator().manual_seed(layers)
    histogram = torch.rand(layers, 6, generator=generator)
    histogram = (histogram / histogram.sum(dim=1, keepdim=True)).tolist()
    figure = options_plot(histogram, BIT_OPTIONS)
    opened(figure)
    bars = figure.axes[0].containers
    assert len(bars) == 6
    heights = np.array([[bar.get_height() for bar in stack] for stack in bars])
    np.testing.assert_allclose(heights.sum(axis=0), 100.0, rtol=1e-6)
    np.testing.assert_allclose(heights.T / 100, histogram, rtol=1e-5)


def test_histogram_image_has_colours_of_options():
    certain = [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    image = option_histogram_image(certain, BIT_OPTIONS)
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


def example(channels=3, layers=9, prediction="cat", label="cat"):
    return ImageExample(
        image=np.full((channels, 8, 8), 77, dtype=np.uint8),
        options=tuple(i % 6 for i in range(layers)),
        prediction=prediction,
        label=label,
        computation=1.234,
    )


@pytest.mark.parametrize(("channels", "layers"), [(1, 3), (2, 9), (3, 27), (4, 54)])
def test_images_plot_for_any_channels_and_layers(channels, layers):
    row = [example(channels, layers)] * 4
    opened(images_plot(row, row[:2], BIT_OPTIONS))


def test_images_plot_says_cost_prediction_and_label():
    wrong = example(prediction="dog")
    long = example(prediction="a very long name of a class", label="another long name")
    figure = images_plot([example(), wrong], [long], BIT_OPTIONS)
    opened(figure)
    captions = [text.get_text() for text in written(figure)]
    assert captions.count("1.23 %") == 3
    assert "cat" in captions
    assert "says dog, is cat" in captions
    assert "says a very…class,\nis anothe… name" in captions


def test_an_empty_row_of_images_is_refused():
    with pytest.raises(ConfigError, match="empty row"):
        images_plot([], [example()], BIT_OPTIONS)


def test_cheapest_and_most_expensive_by_sorting(gate_records, costs):
    images = torch.arange(len(gate_records)).remainder(256).to(torch.uint8)
    images = images[:, None, None, None].expand(-1, 1, 4, 4)
    names = [str(i) for i in range(10)]
    cheap, expensive = cheapest_and_most_expensive(gate_records, images, costs, names, count=5)
    spent = gate_records.computation(costs)
    assert [e.computation for e in cheap] == spent.sort().values[:5].tolist()
    assert [e.computation for e in expensive] == spent.sort(descending=True).values[:5].tolist()
    first = int(spent.argmin())
    assert cheap[0].options == tuple(gate_records.options[first].tolist())
    assert cheap[0].image[0, 0, 0] == first % 256
    assert cheap[0].label == str(int(gate_records.labels[first]))


def test_figures_are_written_without_leftovers(
    summary, backbone_summary, latency_summary, tmp_path
):
    write_figures(tmp_path, "val-", summary, ([example()], [example()]))
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


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are(summary, name):
    with rc_context({"text.usetex": True}):
        gate = replace(summary.methods[0], label=name)
        row = [example(prediction=name, label="other")]
        figures = [
            accuracy_plot(replace(summary, dataset=name, methods=(gate, *summary.methods[1:]))),
            images_plot(row, row, BIT_OPTIONS),
        ]
        for figure in figures:
            opened(figure)
            assert not any(text.get_parse_math() or text.get_usetex() for text in written(figure))
    shown = name if len(name) < 80 else f"{name[:40]}…"
    assert any(text.get_text().startswith(shown) for text in written(figures[0]))
