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
    """One image with the choices of the gate.

    Attributes:
        image: Pixels, uint8 ``[c, h, w]``, 1 to 4 channels: grey, grey and alpha, RGB, RGBA.
        options: Option index of each gated layer; the number of options for layers after the exit.
        prediction: Name of the predicted class.
        label: Name of the true class.
        computation: Total computation in percent.
    """

    image: NDArray[np.uint8]
    options: tuple[int, ...]
    prediction: str
    label: str
    computation: float


@style.plain_text()
def images_plot(
    cheapest: Sequence[ImageExample], most_expensive: Sequence[ImageExample], options: BitOptions
) -> Figure:
    """Draw two rows of images, each with the bits of its layers and its prediction.

    Args:
        cheapest: Images with the smallest cost, in ascending order; at least one.
        most_expensive: Images with the largest cost, in descending order; at least one.
        options: Bit options.

    Raises:
        ConfigError: If a row is empty.
    """
    if not cheapest or not most_expensive:
        raise ConfigError("images_plot got an empty row; at least one image in each is needed.")
    columns = max(len(cheapest), len(most_expensive))
    figure = style.new_figure(_COLUMN * columns + 0.3, 2 * (_ROW + _HEADING) + 0.3)
    width, height = figure.get_size_inches()
    for row, (name, examples) in enumerate(
        (("Cheapest images", cheapest), ("Most expensive images", most_expensive))
    ):
        top = height - row * (_ROW + _HEADING) - _HEADING
        figure.text(
            0.16 / width, (top + 0.08) / height, name, fontsize=style.TITLE_SIZE, color=style.INK
        )
        for column, example in enumerate(examples):
            left = 0.16 + column * _COLUMN
            axes = figure.add_axes((left / width, (top - 1) / height, 1 / width, 1 / height))
            _draw_example(figure, axes, example, options)
    figure.legend(
        handles=[
            Patch(facecolor=colour, label=style.option_name(bits))
            for colour, bits in zip(style.option_colours(options), options, strict=True)
        ],
        loc="lower left",
        ncols=len(options),
        frameon=False,
        fontsize=style.SMALL_SIZE - 0.5,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.2,
    )
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

    Equal costs keep the order of the split.

    Args:
        records: Results of a gate.
        images: Images of these results, uint8 ``[n, c, h, w]``.
        costs: Costs of the options.
        class_names: Names in label order.
        count: Maximum number of images in each list.
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
    return [example(i) for i in cheapest], [example(i) for i in most_expensive]


def to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert uint8 ``[c, h, w]`` of 1 to 4 channels to ``[h, w, 3]``, with alpha over white."""
    channels = image.shape[0]
    colour = image[: 3 if channels > 2 else 1]  # noqa: PLR2004 - grey with or without alpha
    rgb = np.broadcast_to(colour, (3, *image.shape[1:])).astype(np.float64)
    if channels % 2 == 0:
        alpha = image[-1] / 255.0
        rgb = rgb * alpha + 255.0 * (1 - alpha)
    return np.ascontiguousarray(rgb.round().astype(np.uint8).transpose(1, 2, 0))


def _draw_example(figure: Figure, axes: Axes, example: ImageExample, options: BitOptions) -> None:
    """Draw an image of an inch, with its bits and its captions below."""
    axes.set_axis_off()
    axes.imshow(to_rgb(example.image), interpolation="nearest")
    box = axes.get_position(original=True)
    strip = figure.add_axes((box.x0, box.y0 - 0.25 * box.height, box.width, 0.2 * box.height))
    strip.set_axis_off()
    colours = style.option_colours(options)
    layers = len(example.options)
    strip.set(xlim=(0, layers), ylim=(0, 1))
    for layer, option in enumerate(example.options):
        if option >= len(options):  # the image has taken an exit
            break
        strip.add_patch(Rectangle((layer, 0), 0.92, 1, color=colours[option], linewidth=0))
        if layers <= _NUMBERED_LAYERS:
            strip.text(
                layer + 0.46,
                0.5,
                str(options[option]),
                ha="center",
                va="center_baseline",
                fontsize=5.5,
                color=style.text_colour(colours[option]),
            )
    right = example.prediction == example.label
    prediction = style.short(example.prediction, _NAME_LENGTH)
    label = style.short(example.label, _NAME_LENGTH)
    caption = prediction if right else f"says {prediction}, is {label}"
    if not right and len(caption) > _LINE_LENGTH:
        caption = f"says {prediction},\nis {label}"
    colour = style.MUTED if right else style.VERMILION
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": style.SMALL_SIZE - 0.5}
    cost = f"{example.computation:.2f} %"
    strip.text(0.5, -0.2, cost, transform=strip.transAxes, weight="bold", **look)
    strip.text(0.5, -0.95, caption, transform=strip.transAxes, color=colour, **look)
