"""Cheapest and most expensive images of a gate, with their bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.reporting import style

_COLUMN, _ROW, _HEADING = 1.12, 1.8, 0.3
"""Width and height of an image with its bits and captions, and height of a heading, in inches."""
_NUMBERED_LAYERS = 10
_NAME_LENGTH = 12
_LINE_LENGTH = 17
_EXAMPLES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageExample:
    """One image with the choices of the gate."""

    image: NDArray[np.uint8]  # [c, h, w]; 1 to 4 channels: grey, grey and alpha, RGB, RGBA
    options: tuple[int, ...]  # index for each gated layer; the number of options after the exit
    prediction: str  # name of the predicted class
    label: str  # name of the true class
    computation: float  # in percent, everything included


@style.common_style()
def images_plot(
    cheapest: Sequence[ImageExample], most_expensive: Sequence[ImageExample], options: BitOptions
) -> Figure:
    """Draw two rows of images, each with the bits of its layers and its prediction.

    Raises:
        ConfigError: If a row is empty.
    """
    if not cheapest or not most_expensive:
        raise ConfigError("images_plot got an empty row; at least one image in each is needed.")
    columns = max(len(cheapest), len(most_expensive))
    width, height = _COLUMN * columns + 0.3, 2 * (_ROW + _HEADING) + 0.3
    figure = style.new_figure(width, height)
    rows = {"Cheapest images": cheapest, "Most expensive images": most_expensive}
    for row, (name, examples) in enumerate(rows.items()):
        top = height - row * (_ROW + _HEADING) - _HEADING
        look: dict[str, Any] = {"fontsize": style.TITLE_SIZE, "color": style.INK}
        figure.text(0.16 / width, (top + 0.08) / height, name, **look)
        for column, example in enumerate(examples):
            left = 0.16 + column * _COLUMN
            axes = figure.add_axes((left / width, (top - 1) / height, 1 / width, 1 / height))
            _draw_example(axes, example, options)
    handles = [
        Patch(facecolor=colour, label=name)
        for name, colour in style.action_styles(options, len(options))
    ]
    look = {"loc": "lower left", "ncols": len(options), "columnspacing": 1.2}
    figure.legend(handles=handles, handlelength=1.0, handleheight=1.0, **look)
    return figure


def cheapest_and_most_expensive(
    records: GateRecords,
    images: Tensor,
    costs: CostTable,
    class_names: Sequence[str],
    *,
    count: int = _EXAMPLES,
) -> tuple[list[ImageExample], list[ImageExample]]:
    """Return the ``count`` cheapest and most expensive images, the most extreme first.

    Equal costs keep the order of the images, uint8 ``[n, c, h, w]``, which the records are of.
    """
    computation = records.computation(costs)

    def example(index: int) -> ImageExample:
        return ImageExample(
            image=images[index].cpu().numpy(),
            options=tuple(records.options[index].tolist()),
            prediction=class_names[int(records.predictions[index])],
            label=class_names[int(records.labels[index])],
            computation=float(computation[index]),
        )

    cheapest = computation.argsort(stable=True)[:count].tolist()
    most_expensive = computation.argsort(stable=True, descending=True)[:count].tolist()
    return list(map(example, cheapest)), list(map(example, most_expensive))


def to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert uint8 ``[c, h, w]`` of 1 to 4 channels to ``[h, w, 3]``, with alpha over white."""
    channels = image.shape[0]
    colour = image[: 3 if channels > 2 else 1]  # noqa: PLR2004 - grey with or without alpha
    rgb = np.broadcast_to(colour, (3, *image.shape[1:])).astype(np.float64)
    if channels % 2 == 0:
        alpha = image[-1] / 255.0
        rgb = rgb * alpha + 255.0 * (1 - alpha)
    return np.ascontiguousarray(rgb.round().astype(np.uint8).transpose(1, 2, 0))


def _draw_example(axes: Axes, example: ImageExample, options: BitOptions) -> None:
    """Draw an image of an inch, with its bits and its captions below."""
    axes.set_axis_off()
    axes.imshow(to_rgb(example.image), interpolation="nearest")
    strip = axes.inset_axes((0, -0.25, 1, 0.2))
    strip.set_axis_off()
    layers = len(example.options)
    strip.set(xlim=(0, layers), ylim=(0, 1))
    colours = style.option_colours(options)
    for layer, option in enumerate(example.options):
        if option >= len(options):  # the image has taken an exit
            break
        strip.add_patch(Rectangle((layer, 0), 0.92, 1, color=colours[option], linewidth=0))
        if layers <= _NUMBERED_LAYERS:
            look: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 5.5}
            look["color"] = style.text_colour(colours[option])
            strip.text(layer + 0.46, 0.5, str(options[option]), **look)
    right = example.prediction == example.label
    prediction = style.short_middle(example.prediction, _NAME_LENGTH)
    label = style.short_middle(example.label, _NAME_LENGTH)
    caption = prediction if right else f"says {prediction}, is {label}"
    if not right and len(caption) > _LINE_LENGTH:
        caption = f"says {prediction},\nis {label}"
    look = {"ha": "center", "va": "top", "fontsize": style.SMALL_SIZE - 0.5}
    look["transform"] = strip.transAxes
    strip.text(0.5, -0.2, f"{example.computation:.2f} %", weight="bold", **look)
    strip.text(0.5, -0.95, caption, color=style.MUTED if right else style.VERMILION, **look)
