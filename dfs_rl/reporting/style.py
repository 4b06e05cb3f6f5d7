"""Common style of all figures: sizes, colours, and figures without pyplot's global state."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from dfs_rl.costs import FULL, SKIP, BitOptions
from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.evaluation.summary import EvaluationSummary
from dfs_rl.evaluation.timing import CostName

DPI, _BOARD_DPI = 200, 100
TITLE_SIZE, SMALL_SIZE = 10.5, 8.0
INK, MUTED, PALE, FAINT = "#222222", "#6b6b6b", "#a6a6a6", "#dddddd"

# Distinguishable from each other, from MUTED and from INK with any colour vision (Machado et al.,
# 2009; at least 19 apart in CIELAB), and dark enough for text on white.
VERMILION = "#d04a0c"
BLUE = "#1f66e0"
GREEN = "#00703c"
PURPLE = "#a0309a"

_EDGE = 0.05  # inches between the edge of a figure, a label of its axes and their tick labels
NAME_LENGTH = 40
"""Maximum number of characters of a data set's or gate's name in figures."""
_MACHINE_LENGTH = 20
DASHED = (0, (4, 3))
METHOD_STYLES = ((VERMILION, "*"), (BLUE, "s"), (GREEN, "^"), (PURPLE, "D"))
"""Colour and marker of each method in colour; more colours are not distinguishable by everyone."""
_TICK_STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
"""Ticks of a decade, coarsest first."""
_ALONE = 6  # number of decades from which the powers of ten are ticks enough

Line = list[tuple[float, float]]
"""Polyline, in data units."""
Colour = tuple[float, float, float]
_SKIP_COLOUR: Colour = (0.89, 0.89, 0.89)
_LEFT_COLOUR: Colour = (0.99, 0.84, 0.68)
_LIGHT = 0.55  # luminance from which black text reads better than white
_LIGHTEST, _DARKEST = 0.22, 1.0  # range of the map distinguishable from white and black
_SETTINGS: Any = {  # names are literal types in some releases of matplotlib
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.0,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": TITLE_SIZE,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.fontsize": SMALL_SIZE,
    "legend.frameon": False,
    **{f"{axis}tick.color": MUTED for axis in "xy"},
    **{f"{axis}tick.labelcolor": INK for axis in "xy"},
    **{f"{axis}tick.labelsize": SMALL_SIZE for axis in "xy"},
}


@contextmanager
def plain_text() -> Iterator[None]:
    """Disable markup in text while a figure is measured, drawn or rendered.

    Names of folders, classes and gates can contain any character. Dollar signs do not start
    mathematics, LaTeX is off even if the user's matplotlib settings enable it, and characters that
    the font lacks become boxes without a warning.
    """
    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@contextmanager
def common_style() -> Iterator[None]:
    """Draw with plain text, two grey spines, small ticks and titles at the left edge."""
    with plain_text(), rc_context(_SETTINGS):
        yield


def cost_axis(cost: CostName, figures: EvaluationSummary | ComparisonOfRuns) -> str:
    """Return the label of a logarithmic axis of computation or measured time."""
    if cost == "computation":
        full = figures.options[-1] if figures.cost_model == LATENCY else FULL
        return f"{figures.cost_model} per image, % of all gated layers at {full} bit, log scale"
    assert figures.timing is not None, "measured times have their conditions"
    timing, machine = figures.timing, short_middle(figures.timing.machine, _MACHINE_LENGTH)
    return f"measured ms per image, log scale ({machine}, {timing.runtime}, {timing.load})"


def option_colours(options: BitOptions) -> list[Colour]:
    """Return one colour per option: grey for a skipped layer, then from light to dark by bits."""
    running = [bits for bits in options if bits != SKIP]
    places = np.linspace(_LIGHTEST, _DARKEST, num=max(len(running), 2))[: len(running)]
    scale: list[Colour] = [tuple(map(float, colormaps["YlGnBu"](at)[:3])) for at in places]  # type: ignore[misc]
    return [_SKIP_COLOUR] * (len(options) - len(running)) + scale


def action_styles(options: BitOptions, n_actions: int) -> list[tuple[str, Colour]]:
    """Return name and colour of every option and, with one more action, of a left network."""
    styles = list(zip(map(option_name, options), option_colours(options), strict=True))
    return [*styles, *[("has left", _LEFT_COLOUR)] * (n_actions - len(options))]


def option_legend(
    parent: Axes | Figure, axes: Axes, loc: str, anchor: tuple[float, float] | None = None
) -> None:
    """Add a legend of the options drawn on ``axes``, in the order of a stack."""
    handles, names = axes.get_legend_handles_labels()
    look: dict[str, Any] = {"loc": loc, "bbox_to_anchor": anchor}
    parent.legend(handles[::-1], names[::-1], handlelength=1.1, handleheight=1.1, **look)


def text_colour(background: Sequence[float]) -> str:
    """Return the more readable text colour, dark or white, on ``background`` (red, green, blue)."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > _LIGHT else "white"


def option_name(bits: int) -> str:
    """Return the name of an option in legends."""
    return "skip" if bits == SKIP else f"{bits} bit"


def short_middle(text: str, length: int) -> str:
    """Return ``text`` cut to ``length`` characters in its middle, since ends tell names apart."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[-end:]}"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches, rendered with Agg."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    n: int,
    columns: int,
    size: tuple[float, float],
    frame: tuple[float, float, float, float],
    gaps: tuple[float, float],
    *,
    sharex: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``n`` panels in rows; the lowest of a column has its tick labels.

    ``size`` and ``frame`` (left, bottom, right, top) are in inches, ``gaps`` between panels are
    fractions of their width and height.
    """
    (width, height), (left, bottom, right, top) = size, frame
    figure = new_figure(width, height)
    grid = figure.subplots(-(-n // columns), columns, squeeze=False, sharex=sharex, sharey=True)
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height, *gaps
    )
    for number, axes in enumerate(grid.flat):
        axes.set_visible(number < n)
        # With a size of their own, ticks are the same after the settings of ``common_style`` end.
        axes.tick_params(labelbottom=number + columns >= n, labelsize=SMALL_SIZE)
    return figure, list(grid.flat[:n])


def label_panels(figure: Figure, x: str, y: str) -> None:
    """Label the axes of a finished grid of panels; make room for the widest tick labels."""
    width, height = figure.get_size_inches()
    figure.supxlabel(x, fontsize=SMALL_SIZE, y=_EDGE / height)
    label = figure.supylabel(y, fontsize=SMALL_SIZE, x=_EDGE / width)
    boxes = [axes.yaxis.get_tightbbox() for axes in figure.axes if axes.get_visible()]
    ticks = min(box.x0 for box in boxes if box is not None)
    overlap = label.get_window_extent().x1 / figure.dpi + _EDGE - ticks / figure.dpi
    figure.subplots_adjust(left=figure.subplotpars.left + max(0.0, overlap) / width)


def draw_curve(
    axes: Axes,
    places: Line,
    colour: str,
    **look: Any,  # noqa: ANN401 - properties of the line
) -> Line:
    """Draw a dashed line, and return it for ``place_labels``."""
    usual: dict[str, Any] = {"color": colour, "ls": DASHED, "lw": 0.9, "markersize": 5, "zorder": 3}
    axes.plot(*zip(*places, strict=True), **{**usual, **look})
    return places


def draw_point(
    axes: Axes,
    place: tuple[float, float],
    errors: tuple[float | None, float | None],
    **look: Any,  # noqa: ANN401 - properties of its marker
) -> list[Line]:
    """Draw a point with bars of horizontal and vertical errors, and return the bars."""
    (x, y), (dx, dy) = place, errors
    bars: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6, "elinewidth": 0.9}
    axes.errorbar(x, y, xerr=dx, yerr=dy, linestyle="none", **bars, **look)
    left = max(x - (dx or 0.0), x / 10)  # a logarithmic axis ends above zero
    horizontal = [] if dx is None else [[(left, y), (x + dx, y)]]
    return [*horizontal, *([] if dy is None else [[(x, y - dy), (x, y + dy)]])]


def readable_ticks(low: float, high: float, *, fewest: int = 4) -> list[float]:
    """Return round values for a logarithmic axis, as 0.5, 1, 2, 5, if possible ``fewest``."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in _TICK_STEPS:
        ticks = [float(t) for t in np.outer(decades, steps).ravel() if low <= t <= high]
        if len(ticks) >= (fewest if len(steps) > 1 else _ALONE):
            return ticks
    values = MaxNLocator(fewest + 1, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low <= value <= high]


def log_ticks(axes: Axes) -> None:
    """Set readable ticks of a logarithmic horizontal axis with final limits."""
    ticks = readable_ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())


@plain_text()
def to_png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


@plain_text()
def to_array(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure for TensorBoard, at each validation: uint8 ``[height, width, 3]``."""
    figure.set_dpi(_BOARD_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(pixels[..., :3])
