"""Accuracy against computation of several gates over seeds, with baselines and references."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Point
from dfs_rl.reporting import style
from dfs_rl.reporting.hover import HoverPoint, hover_point
from dfs_rl.reporting.labels import Label, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = {
    "static_table": ("best static tables", style.BLUE, "s"),
    "cascade": ("confidence cascades", style.GREEN, "^"),
    "exits": ("confidence exits", style.ORANGE, "v"),
}
_SIZE = (8.6, 5.0)
_MARGINS = {"left": 0.08, "right": 0.98, "bottom": 0.11, "top": 0.91}
_NOTE_WIDTH = 130
_NOTE_LINES = 4
_NOTE_HEIGHT = 0.035
"""Characters and lines of the note at most, and line height as a fraction of the figure's."""
_BELOW = 3.0
"""Methods this many points below the relevant range are not drawn; a note lists such gates."""
_MARKER, _SMALL_MARKER, _MANY = 11.0, 7.0, 6
"""Normal and small marker size of gates in points, and number of gates for the small one."""
_ROOM = 0.12
"""Margin around the drawn points, as a fraction of their extent."""
_BEYOND = 5.0
"""A uniform setting is drawn as a line if it costs more than this multiple of the largest cost."""


class _Scene(NamedTuple):
    """Elements of the figure.

    Attributes:
        points: Gates and baselines.
        references: Uniform settings.
        levels: Uniform settings that are too expensive to draw as points.
        undrawn: Gates that are too inaccurate to draw.
    """

    points: list[Point]
    references: list[Point]
    levels: list[Point]
    undrawn: list[Point]


@style.plain_text()
def pareto_plot(comparison: ComparisonOfRuns) -> "Figure":
    """Draw the gates of a comparison over a logarithmic axis.

    Bars are one standard deviation over seeds, cut off at the frame. Gates far below the cheapest
    useful uniform setting are listed below the figure, and far more expensive uniform settings are
    lines, because both would compress the rest of the figure.
    """
    scene = _scene(comparison)
    figure = style.new_figure(*_SIZE)
    name = style.short_middle(comparison.dataset, style.NAME_LENGTH)
    title = f"{name}, {comparison.split} split, {comparison.n:,} images; bars ± 1 standard deviation over seeds"
    axes = _framed(figure, title, _note(scene.undrawn), cost_model=comparison.cost_model)
    lines = [_curve(axes, scene.references, style.MUTED, "o", None)]
    for kind, (name, colour, marker) in _CURVES.items():
        baselines = [point for point in scene.points if point.kind == kind]
        if baselines:
            lines.append(_curve(axes, baselines, colour, marker, name))
    labels = []
    size = _MARKER if len(comparison.families) < _MANY else _SMALL_MARKER
    for i, name in enumerate(comparison.families):
        points = [p for p in scene.points if p.kind == GATE and p.family == name]
        colour = style.GATE_COLOURS[i % len(style.GATE_COLOURS)]
        marker = style.GATE_MARKERS[i % len(style.GATE_MARKERS)]
        for point in points:
            lines += _draw(axes, point, colour, marker, size)
        if len(points) > 1:
            lines.append(_curve(axes, points, colour, marker, name))
        elif points:
            labels.append(_label(points[0], colour, weight="bold"))
    labels += [_label(point, style.MUTED) for point in scene.references]
    for level in scene.levels:
        axes.axhline(level.accuracy.mean, color=style.MUTED, lw=0.9, ls=(0, (1, 2)), zorder=2)
    _finish_axes(axes, [p.accuracy.mean for p in (*scene.points, *scene.references, *scene.levels)])
    left, right = axes.get_xlim()
    for level in scene.levels:
        height = level.accuracy.mean
        lines.append([(left, height), (right, height)])
        said = f"{level.label}, at {level.computation.mean:.3g} %"
        # Three quarters of the width in logarithmic scale.
        labels.append(Label(said, left ** (1 / 4) * right ** (3 / 4), height, style.MUTED))
    place_labels(axes, labels, [line for line in lines if len(line) > 1], style.SMALL_SIZE)
    named, _ = axes.get_legend_handles_labels()
    if named and len(lines) > 1:  # no corner is always free
        axes.legend(loc="best", fontsize=style.SMALL_SIZE, frameon=False)
    return figure


def _framed(figure: "Figure", title: str, note: Sequence[str], *, cost_model: str) -> "Axes":
    """Return empty axes under a title, with the lines of a note below them."""
    bottom = _MARGINS["bottom"] + _NOTE_HEIGHT * len(note)
    figure.subplots_adjust(**{**_MARGINS, "bottom": bottom})
    for row, line in enumerate(reversed(note)):
        y = _NOTE_HEIGHT * (row + 1 / 3)
        figure.text(_MARGINS["left"], y, line, fontsize=style.SMALL_SIZE, color=style.MUTED)
    axes = style.pareto_axes(figure, accuracy="accuracy, %", cost_model=cost_model)
    style.title(axes, title)
    return axes


def _scene(comparison: ComparisonOfRuns) -> _Scene:
    """Select the elements that are drawn to scale."""
    lowest = comparison.reference_accuracy - _BELOW
    drawn = [point for point in comparison.points if point.accuracy.mean >= lowest]
    if not any(point.kind == GATE for point in drawn):
        drawn = list(comparison.points)
    undrawn = [p for p in comparison.points if p.kind == GATE and p not in drawn]
    floor = min(point.accuracy.mean for point in drawn) - _BELOW
    references = [point for point in comparison.references if point.accuracy.mean >= floor]
    dearest = max(point.computation.mean for point in drawn)
    levels = [p for p in references if p.computation.mean > _BEYOND * dearest]
    references = [p for p in references if p not in levels]
    return _Scene(drawn, references, levels, undrawn)


def _note(undrawn: Sequence[Point]) -> list[str]:
    """Return the lines of the note about gates that are not drawn."""
    told: dict[str, list[str]] = {}
    for point in undrawn:
        figures = f"{point.accuracy.mean:.1f} % at {point.computation.mean:.3g} %"
        found = told.setdefault(point.family, [])
        if figures not in found:
            found.append(figures)
    listed = "; ".join(f"{family} ({', '.join(figures)})" for family, figures in told.items())
    if not told:
        return []
    return textwrap.wrap(
        f"Below what is drawn: {listed}.", _NOTE_WIDTH, max_lines=_NOTE_LINES, placeholder=" ..."
    )


def hover_points(figure: "Figure", comparison: ComparisonOfRuns) -> list[HoverPoint]:
    """Return the hover tooltips of ``pareto_plot``."""
    (axes,) = figure.axes
    scene = _scene(comparison)
    points = []
    for point in (*scene.points, *scene.references):
        text = f"{point.label}: {point.accuracy.mean:.2f} % right at {point.computation.mean:.3g} %"
        if len(point.seeds) > 1:
            text += f", {len(point.seeds)} seeds"
        points.append(hover_point(axes, point.computation.mean, point.accuracy.mean, text))
    return points


def _curve(
    axes: "Axes", points: list[Point], colour: str, marker: str, name: str | None
) -> list[tuple[float, float]]:
    places = [(point.computation.mean, point.accuracy.mean) for point in points]
    axes.plot(
        *zip(*places, strict=True),
        color=colour,
        marker=marker,
        markersize=5,
        lw=0.9,
        ls=(0, (4, 3)),
        label=None if name is None else style.legend_name(name),
        zorder=3,
    )
    return places


def _draw(
    axes: "Axes", point: Point, colour: str, marker: str, size: float
) -> list[list[tuple[float, float]]]:
    """Draw a gate; return its bars, which labels should avoid."""
    x, y = point.computation.mean, point.accuracy.mean
    dx, dy = point.computation.deviation or 0.0, point.accuracy.deviation or 0.0
    axes.errorbar(
        x,
        y,
        xerr=point.computation.deviation,
        yerr=point.accuracy.deviation,
        marker=marker,
        markersize=size,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=0.9,
        linestyle="none",
        zorder=5,
    )
    left = max(x - dx, x / 10)  # a logarithmic axis ends above zero
    return [[(left, y), (x + dx, y)], [(x, y - dy), (x, y + dy)]]


def _label(point: Point, colour: str, *, weight: str = "normal") -> Label:
    return Label(point.label, point.computation.mean, point.accuracy.mean, colour, weight)


def _finish_axes(axes: "Axes", accuracies: Sequence[float]) -> None:
    """Set margins and final limits of the axes, which labels require."""
    axes.margins(x=_ROOM)
    axes.set_xlim(*axes.get_xlim())
    low, high = min(accuracies), max(accuracies)
    room = _ROOM * max(high - low, 1.0)
    axes.set_ylim(low - room, high + room)
    style.log_ticks(axes)
