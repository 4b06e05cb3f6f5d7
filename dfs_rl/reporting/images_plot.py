"""Cheapest and most expensive images of a gate, with their bits."""

from collections.abc import Sequence
from dataclasses import dataclass

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

# Inches: column and row of an image without text, image and bit strip, margins, text line.
_COLUMN, _ROW = 1.12, 1.32
_SIDE, _STRIP = 1.0, 0.2
_LEFT, _TOP, _BOTTOM = 0.16, 0.34, 0.42
_LINE = 0.145
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
    width = 2 * _LEFT + columns * _COLUMN
    lines = max(len(_captions(example)) for example in (*cheapest, *most_expensive))
    row_height = _TOP + _ROW + lines * _LINE
    height = 2 * row_height + _BOTTOM
    figure = style.new_figure(width, height)
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))  # data units: inches
    canvas.set_axis_off()
    for row, (name, examples) in enumerate(
        (("Cheapest", cheapest), ("Most expensive", most_expensive))
    ):
        top = height - row * row_height
        heading = f"{name} images"
        canvas.text(_LEFT, top - 0.24, heading, fontsize=style.TITLE_SIZE, color=style.INK)
        for column, example in enumerate(examples):
            left = _LEFT + column * _COLUMN
            _draw_example(canvas, example, options, left, top - _TOP)
    canvas.set(xlim=(0, width), ylim=(0, height), aspect="auto")  # imshow changes them
    _legend(figure, options)
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


def _draw_example(
    canvas: Axes, example: ImageExample, options: BitOptions, left: float, top: float
) -> None:
    """Draw one image with its bits and captions below ``top``, in inches."""
    rows, columns = example.image.shape[1:]
    width, height = (_SIDE * n / max(rows, columns) for n in (columns, rows))
    middle, foot = left + _SIDE / 2, top - _SIDE
    extent = (middle - width / 2, middle + width / 2, foot, foot + height)
    canvas.imshow(to_rgb(example.image), interpolation="nearest", extent=extent, aspect="auto")
    _draw_bits(canvas, example.options, options, left, foot - _STRIP - 0.05)
    for line, (text, colour) in enumerate(_captions(example)):
        canvas.text(
            middle,
            foot - _STRIP - 0.1 - _LINE * line,
            text,
            ha="center",
            va="top",
            fontsize=style.SMALL_SIZE - 0.5,
            color=colour,
            fontweight="normal" if line else "bold",
        )


def _captions(example: ImageExample) -> list[tuple[str, str]]:
    """Return the lines under an image and their colours: its cost, then its prediction."""
    said, right = style.short(example.prediction, _NAME_LENGTH), example.prediction == example.label
    lines = [said] if right else [f"says {said}, is {style.short(example.label, _NAME_LENGTH)}"]
    if len(lines[0]) > _LINE_LENGTH and not right:
        lines = [f"says {said},", f"is {style.short(example.label, _NAME_LENGTH)}"]
    colour = style.MUTED if right else style.VERMILION
    cost = (f"{example.computation:.2f} %", style.INK)
    return [cost, *((line, colour) for line in lines)]


def _draw_bits(
    canvas: Axes, chosen: tuple[int, ...], options: BitOptions, left: float, bottom: float
) -> None:
    colours = style.option_colours(options)
    width = _SIDE / len(chosen)
    # Larger indices mark layers after the exit.
    came_to = [option for option in chosen if option < len(options)]
    for layer, option in enumerate(came_to):
        place = left + layer * width
        cell = Rectangle((place, bottom), 0.92 * width, _STRIP, color=colours[option], linewidth=0)
        canvas.add_patch(cell)
        if len(chosen) <= _NUMBERED_LAYERS:
            canvas.text(
                place + 0.46 * width,
                bottom + _STRIP / 2,
                str(options[option]),
                ha="center",
                va="center_baseline",
                fontsize=5.5,
                color=style.text_colour(colours[option]),
            )


def _legend(figure: Figure, options: BitOptions) -> None:
    width, height = figure.get_size_inches()
    figure.legend(
        handles=[
            Patch(facecolor=colour, label=style.option_name(bits))
            for colour, bits in zip(style.option_colours(options), options, strict=True)
        ],
        loc="lower left",
        bbox_to_anchor=(_LEFT / width, 0.08 / height),
        borderpad=0.0,
        borderaxespad=0.0,
        ncols=len(options),
        frameon=False,
        fontsize=style.SMALL_SIZE - 0.5,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.2,
    )
