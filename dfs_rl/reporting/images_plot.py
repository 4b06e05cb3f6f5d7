"""Images with the bits that a gate chose for them."""

from collections.abc import Mapping, Sequence
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

_COLUMN, _ROW, _PASS, _HEADING = 1.12, 1.8, 0.22, 0.3
"""Width and height of an image with its bits and captions, and heights of the bits of each further
pass and of a heading, in inches."""
_NUMBERED_LAYERS = 10
_NAME_LENGTH = 12
_LINE_LENGTH = 17
EXAMPLES = 8
"""Number of images in a row."""


@style.common_style()
def images_plot(
    rows: Mapping[str, Sequence[int]],
    records: GateRecords,
    images: Tensor,
    costs: CostTable,
    class_names: Sequence[str],
) -> Figure:
    """Draw rows of images by their titles, each with its prediction and the bits of each pass.

    A row has indices of ``images``, uint8 ``[n, c, h, w]`` with 1 to 4 channels: grey, grey and
    alpha, RGB, RGBA. ``records`` are those of a gate on the images.

    Raises:
        ConfigError: If there is no row, or an empty one.
    """
    if not rows or not all(map(len, rows.values())):
        raise ConfigError("images_plot got an empty row; at least one image in each is needed.")
    computation, options, earlier = records.computation(costs), costs.options, records.earlier

    def passes(index: int) -> list[list[int]]:
        before = [] if earlier is None else earlier.options[index][earlier.ran[index]].tolist()
        return [*before, records.options[index].tolist()]

    columns = max(map(len, rows.values()))
    more = max(len(passes(index)) for row in rows.values() for index in row) - 1
    each = _ROW + _HEADING + _PASS * more
    width, height = _COLUMN * columns + 0.3, len(rows) * each + 0.3
    figure = style.new_figure(width, height)
    for row, (name, indices) in enumerate(rows.items()):
        top = height - row * each - _HEADING
        look: dict[str, Any] = {"fontsize": style.TITLE_SIZE, "color": style.INK}
        figure.text(0.16 / width, (top + 0.08) / height, name, **look)
        for column, index in enumerate(indices):
            left = 0.16 + column * _COLUMN
            axes = figure.add_axes((left / width, (top - 1) / height, 1 / width, 1 / height))
            classes = (int(values[index]) for values in (records.predictions, records.labels))
            strip = _draw_image(axes, images[index].cpu().numpy(), passes(index), options)
            _write_captions(strip, float(computation[index]), *(class_names[i] for i in classes))
    handles = [
        Patch(facecolor=colour, label=name)
        for name, colour in style.action_styles(options, len(options))
    ]
    look = {"loc": "lower left", "ncols": len(options), "columnspacing": 1.2}
    figure.legend(handles=handles, handlelength=1.0, handleheight=1.0, **look)
    return figure


def cheapest_and_most_expensive(records: GateRecords, costs: CostTable) -> dict[str, list[int]]:
    """Return rows of at most 8 images for ``images_plot``, the most extreme first.

    Each of the cheapest images costs less than each of the most expensive ones. If all images cost
    the same, there is one row. Equal costs keep the order of the images.
    """
    computation = records.computation(costs)
    count = min(EXAMPLES, max(1, len(computation) // 2))
    ascending, descending = (
        computation.argsort(stable=True, descending=flag)[:count] for flag in (False, True)
    )
    most = descending[computation[descending] > computation.min()]
    if len(most) == 0:
        return {"Images, all at the same cost": ascending.tolist()}
    least = ascending[computation[ascending] < computation[most].min()]
    return {"Cheapest images": least.tolist(), "Most expensive images": most.tolist()}


def to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert uint8 ``[c, h, w]`` of 1 to 4 channels to ``[h, w, 3]``, with alpha over white."""
    channels = image.shape[0]
    colour = image[: 3 if channels > 2 else 1]  # noqa: PLR2004 - grey with or without alpha
    rgb = np.broadcast_to(colour, (3, *image.shape[1:])).astype(np.float64)
    if channels % 2 == 0:
        alpha = image[-1] / 255.0
        rgb = rgb * alpha + 255.0 * (1 - alpha)
    return np.ascontiguousarray(rgb.round().astype(np.uint8).transpose(1, 2, 0))


def _draw_image(
    axes: Axes, image: NDArray[np.uint8], passes: Sequence[Sequence[int]], options: BitOptions
) -> Axes:
    """Draw an image of an inch, with the bits of each pass below; return the axes of the last one.

    A pass has the index of the option of each layer; the number of options after an exit.
    """
    axes.set_axis_off()
    axes.imshow(to_rgb(image), interpolation="nearest")
    colours = style.option_colours(options)
    for number, layers in enumerate(passes):
        strip = axes.inset_axes((0, -0.25 - _PASS * number, 1, 0.2))
        strip.set_axis_off()
        strip.set(xlim=(0, len(layers)), ylim=(0, 1))
        for layer, option in enumerate(layers):
            if option >= len(options):  # the image has taken an exit
                break
            strip.add_patch(Rectangle((layer, 0), 0.92, 1, color=colours[option], linewidth=0))
            if len(layers) <= _NUMBERED_LAYERS:
                look: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 5.5}
                look["color"] = style.text_colour(colours[option])
                strip.text(layer + 0.46, 0.5, str(options[option]), **look)
    return strip


def _write_captions(strip: Axes, computation: float, prediction: str, label: str) -> None:
    """Write the cost and the prediction of an image below the bits of its last pass."""
    right = prediction == label
    prediction, label = (style.short_middle(name, _NAME_LENGTH) for name in (prediction, label))
    caption = prediction if right else f"says {prediction}, is {label}"
    if not right and len(caption) > _LINE_LENGTH:
        caption = f"says {prediction},\nis {label}"
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": style.SMALL_SIZE - 0.5}
    look["transform"] = strip.transAxes
    strip.text(0.5, -0.2, f"{computation:.2f} %", weight="bold", **look)
    strip.text(0.5, -0.95, caption, color=style.MUTED if right else style.VERMILION, **look)
