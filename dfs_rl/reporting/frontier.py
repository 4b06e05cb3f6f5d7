"""Accuracy over cost of a comparison: the best methods in colour, the others in grey and in panels.

Nobody tells fifteen lines apart by colour. The figure of all methods has the four best in colour
with their names at the lines, and each of the others has a panel of its own.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Point
from dfs_rl.evaluation.curves import CurvePoint, hypervolume
from dfs_rl.evaluation.timing import CostName
from dfs_rl.reporting import style
from dfs_rl.reporting.labels import Label, place_labels
from dfs_rl.reporting.render import HoverPoint, hover_point

_UNITS: dict[CostName, str] = {"computation": "%", "milliseconds": "ms"}
_SIZE = (8.6, 5.0)
_NOTE_WIDTH, _NOTE_LINES, _NOTE_HEIGHT = 130, 4, 0.035
"""Characters and lines of the note at most, and line height as a fraction of the figure's."""
_BELOW, _BELOW_IF_CHEAPER = 3.0, 15.0
"""Points this many percent below the relevant range are not drawn to scale."""
_MARGIN, _LEAST_MARGIN = 0.12, 0.1
"""Margin around the points, as a fraction of their extent, and the least one in decades."""
_BEYOND = 5.0
"""A uniform setting is drawn as a line if it costs more than this multiple of the largest cost."""
_COLUMNS, _PANEL_HEIGHT, _FRAME_HEIGHT = 4, 1.65, 1.1
"""Panels in a row, height of a panel, and height around all of them, in inches."""
_MARKER, _SMALL_MARKER, _MANY = 7.0, 4.5, 8
"""Normal and small marker size in points, and number of a method's points up to the normal one."""
_PANEL_NAME = 24  # maximum number of characters of a method's name above its panel


class Method(NamedTuple):
    """A gate over its budgets, or a baseline over all costs."""

    name: str  # family of its points
    points: Sequence[Point]  # cheapest first
    colour: str
    marker: str

    @property
    def is_gate(self) -> bool:
        """True for a gate, False for a baseline."""
        return self.points[0].kind == GATE


def ranked_methods(comparison: ComparisonOfRuns) -> tuple[list[Method], list[Method]]:
    """Return the methods in colour and those in grey, the best first.

    The rank is that of the hypervolume on the selection split, then of the highest accuracy there.
    The best gate always has a colour.
    """
    points: dict[str, list[Point]] = {}
    for point in sorted(comparison.points, key=lambda p: p.computation.mean):
        points.setdefault(point.family, []).append(point)
    corner = CurvePoint(comparison.reference_computation, comparison.reference_accuracy)

    def quality(name: str) -> tuple[float, float]:
        places = [
            CurvePoint(point.selection_computation, point.selection_accuracy)
            for point in points[name]
            if point.selection_computation > 0
        ]
        most = max(point.selection_accuracy for point in points[name])
        return hypervolume(places, reference_point=corner), most

    names = sorted(points, key=quality, reverse=True)
    first = names[: len(style.METHOD_STYLES)]
    gates = [name for name in names if points[name][0].kind == GATE]
    if gates and gates[0] not in first:
        first[-1] = gates[0]
    coloured = [
        Method(name, points[name], *look)
        for name, look in zip(first, style.METHOD_STYLES, strict=False)
    ]
    grey = [Method(name, points[name], style.PALE, "o") for name in names if name not in first]
    return coloured, grey


@style.common_style()
def pareto_plot(
    comparison: ComparisonOfRuns, cost: CostName = "computation"
) -> tuple[Figure, list[HoverPoint]]:
    """Draw the methods of a comparison over a logarithmic axis; also return the points' tooltips.

    Bars are one standard deviation over seeds, cut off at the frame. Points of coloured gates far
    below the cheapest useful uniform setting are listed below the figure, and far more expensive
    uniform settings are lines, because both would compress the rest of the figure.
    """
    coloured, grey = ranked_methods(comparison)
    candidates = [point for method in coloured for point in method.points]
    drawn = [point for point in candidates if _is_near(comparison, point)]
    if not any(point.kind == GATE for point in drawn):
        drawn = candidates
    floor = min(point.accuracy.mean for point in drawn) - _BELOW
    most = _BEYOND * max(point.cost(cost).mean for point in drawn)
    uniform = sorted(
        (point for point in comparison.references if point.accuracy.mean >= floor),
        key=lambda point: point.cost(cost).mean,
    )
    references = [point for point in uniform if point.cost(cost).mean <= most]
    note = _note([p for p in candidates if p.kind == GATE and p not in drawn], cost)

    figure = style.new_figure(*_SIZE)
    figure.subplots_adjust(0.08, 0.11 + _NOTE_HEIGHT * len(note), 0.98, 0.91)
    for row, line in enumerate(reversed(note)):
        y = _NOTE_HEIGHT * (row + 1 / 3)
        figure.text(0.08, y, line, fontsize=style.SMALL_SIZE, color=style.MUTED)
    label = style.cost_axis(cost, comparison)
    axes = figure.add_subplot(xscale="log", xlabel=label, ylabel="accuracy, %")
    axes.grid()
    name = style.short_middle(comparison.dataset, style.NAME_LENGTH)
    axes.set_title(f"{name}, {comparison.split} split, {comparison.n:,} images{_bars(drawn)}")
    _set_limits(axes, [*drawn, *references], cost, [point.accuracy.mean for point in uniform])

    settings = [_place(point, cost) for point in references]
    lines = [style.draw_curve(axes, settings, style.MUTED, marker="o", zorder=2.5)]
    lines += [_draw_grey(axes, method, cost) for method in grey]
    labels = []
    for number, method in enumerate(coloured):
        points = [point for point in method.points if point in drawn]
        if not points:
            continue
        lines += _draw_method(axes, method, points, cost, is_best=number == 0)
        others = [p for other in coloured if other != method for p in other.points]
        at = _most_apart(axes, points, [*others, *references], cost)
        text = points[0].label if len(points) == 1 else method.name
        labels.append(Label(text, *_place(at, cost), method.colour, "bold"))
    labels += [Label(point.label, *_place(point, cost), style.MUTED) for point in references]
    left, right = axes.get_xlim()
    for level in uniform:
        if level not in references:
            height = level.accuracy.mean
            axes.axhline(height, color=style.MUTED, lw=0.9, ls=(0, (1, 2)), zorder=2)
            lines.append([(left, height), (right, height)])
            text = f"{level.label}, at {level.cost(cost).mean:.3g} {_UNITS[cost]}"
            # Three quarters of the width in logarithmic scale.
            labels.append(Label(text, left ** (1 / 4) * right ** (3 / 4), height, style.MUTED))
    if grey:
        axes.legend(loc="best")
    place_labels(axes, labels, [line for line in lines if len(line) > 1])
    bottom, top = axes.get_ylim()
    places = [(point, *_place(point, cost)) for method in grey for point in method.points]
    inside = [p for p, x, y in places if left <= x <= right and bottom <= y <= top]
    kind = comparison.cost_model if cost == "computation" else "measured"
    return figure, [_tooltip(axes, p, cost, kind) for p in (*inside, *drawn, *references)]


@style.common_style()
def method_panels(comparison: ComparisonOfRuns) -> Figure | None:
    """Draw each method that is grey in ``pareto_plot`` in a panel, with the best method in grey.

    Points far below the relevant range are triangles at the lower edge, with their accuracy.
    Return None if every method has a colour there.
    """
    coloured, grey = ranked_methods(comparison)
    if not grey:
        return None
    best = coloured[0]
    cost: CostName = "computation"
    drawn = [point for method in (best, *grey) for point in method.points]
    shown = [point for point in drawn if _is_near(comparison, point)] or drawn
    width, height = _SIZE[0], _PANEL_HEIGHT * -(-len(grey) // _COLUMNS) + _FRAME_HEIGHT
    figure, panels = style.panel_grid(
        len(grey),
        min(len(grey), _COLUMNS),
        size=(width, height),
        frame=(0.5, 0.5, 0.1, 0.6),
        gaps=(0.08, 0.24),
        sharex=True,
    )
    about = f"Each other method, with {style.short_middle(best.name, style.NAME_LENGTH)} in grey"
    figure.text(0.1 / width, 1 - 0.22 / height, about + _bars(shown), fontsize=style.TITLE_SIZE)
    for method, axes in zip(grey, panels, strict=True):
        axes.set(xscale="log")
        axes.grid()
        _set_limits(axes, shown, cost, [])
        axes.set_title(style.short_middle(method.name, _PANEL_NAME), fontsize=9.0, pad=3)
        look: dict[str, Any] = {"ls": "-", "lw": 1.6, "marker": "o", "markersize": 2.5}
        style.draw_curve(axes, [_place(p, cost) for p in best.points], style.PALE, **look)
        inside = [point for point in method.points if point.accuracy.mean >= axes.get_ylim()[0]]
        _draw_method(axes, method._replace(colour=style.INK), inside, cost)
        _mark_below(axes, [point for point in method.points if point not in inside], cost)
    style.log_ticks(panels[0])
    label = f"{comparison.cost_model} per image, %, log scale"
    style.label_panels(figure, label, "accuracy, %")
    return figure


def _is_near(comparison: ComparisonOfRuns, point: Point) -> bool:
    """Return True if a point is not far below the cheapest useful uniform setting.

    Where a point costs less than that, farther below is a part of the trade-off.
    """
    accuracy = comparison.reference_accuracy
    uniform = [p.computation.mean for p in comparison.references if p.accuracy.mean >= accuracy]
    is_cheaper = point.computation.mean < min(uniform, default=0.0)
    return point.accuracy.mean >= accuracy - (_BELOW_IF_CHEAPER if is_cheaper else _BELOW)


def _set_limits(
    axes: Axes, points: Sequence[Point], cost: CostName, accuracies: Sequence[float]
) -> None:
    """Set final limits around points and further accuracies, and readable ticks."""
    decades = [np.log10(point.cost(cost).mean) for point in points if point.cost(cost).mean > 0]
    pad = max(_MARGIN * (max(decades) - min(decades)), _LEAST_MARGIN)
    axes.set_xlim(10 ** (min(decades) - pad), 10 ** (max(decades) + pad))
    heights = [*(point.accuracy.mean for point in points), *accuracies]
    margin = _MARGIN * max(max(heights) - min(heights), 1.0)
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    style.log_ticks(axes)


def _draw_method(
    axes: Axes, method: Method, points: Sequence[Point], cost: CostName, *, is_best: bool = False
) -> list[style.Line]:
    """Draw points with bars, connected; return the lines that labels should avoid."""
    if not points:
        return []
    look: dict[str, Any] = {"lw": 1.6, "ls": "-"} if is_best else {}
    places = [_place(point, cost) for point in points]
    lines = [style.draw_curve(axes, places, method.colour, zorder=4, **look)]
    size = _MARKER if len(points) <= _MANY and method.colour != style.INK else _SMALL_MARKER
    if method.marker == "*":
        size *= 1.6  # a star looks smaller than other markers
    mark: dict[str, Any] = {"color": method.colour, "marker": method.marker, "markersize": size}
    for point, place in zip(points, places, strict=True):
        errors = point.cost(cost).deviation, point.accuracy.deviation
        lines += style.draw_point(axes, place, errors, zorder=5, **mark)
    return lines


def _draw_grey(axes: Axes, method: Method, cost: CostName) -> style.Line:
    """Draw a method without bars; gates and baselines have one entry each in a legend."""
    name = "other gates" if method.is_gate else "other baselines"
    if name in axes.get_legend_handles_labels()[1]:
        name = "_"
    places = [_place(point, cost) for point in method.points]
    look: dict[str, Any] = {"marker": "." if method.is_gate else "s", "markersize": 3}
    return style.draw_curve(axes, places, style.PALE, ls="-", zorder=2, label=name, **look)


def _mark_below(axes: Axes, points: Sequence[Point], cost: CostName) -> None:
    """Mark points below the frame at its lower edge, with their accuracies."""
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    edge, labels = bottom + 0.04 * (top - bottom), []
    # From the right, because a label is best at the upper right of its point.
    for point in sorted(points, key=lambda point: -point.cost(cost).mean):
        at = min(max(point.cost(cost).mean, left), right)
        axes.plot(at, edge, marker="v", markersize=4, color=style.INK)
        label = Label(f"{point.accuracy.mean:.0f} %", at, edge, style.INK)
        if label not in labels:
            labels.append(label)
    if labels:
        place_labels(axes, labels, [])


def _most_apart(
    axes: Axes, points: Sequence[Point], others: Sequence[Point], cost: CostName
) -> Point:
    """Return the point that is farthest from its nearest other one in the figure."""
    if not others:
        return points[-1]
    ours, theirs = (
        axes.transData.transform([_place(point, cost) for point in group])
        for group in (points, others)
    )
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=2).min(axis=1)
    return points[int(distances.argmax())]


def point_text(point: Point, cost: CostName) -> str:
    """Return the accuracy and the cost of a point."""
    return f"{point.accuracy.mean:.1f} % at {point.cost(cost).mean:.3g} {_UNITS[cost]}"


def _bars(points: Sequence[Point]) -> str:
    """Return what bars are; nothing without several seeds."""
    seeds = {len(point.seeds) for point in points if point.accuracy.deviation is not None}
    if not seeds:
        return ""
    number = f"{seeds.pop()} " if len(seeds) == 1 else ""
    return f"; bars ± 1 standard deviation over {number}seeds"


def _note(undrawn: Sequence[Point], cost: CostName) -> list[str]:
    """Return the lines of the note about gates that are not drawn."""
    figures: dict[str, list[str]] = {}
    for point in undrawn:
        figures.setdefault(point.family, []).append(point_text(point, cost))
    gates = "; ".join(f"{name} ({', '.join(dict.fromkeys(f))})" for name, f in figures.items())
    note = f"Too inaccurate to draw: {gates}." if gates else ""
    return textwrap.wrap(note, _NOTE_WIDTH, max_lines=_NOTE_LINES, placeholder=" ...")


def _tooltip(axes: Axes, point: Point, cost: CostName, kind: str) -> HoverPoint:
    x, y = _place(point, cost)
    seeds = f", {len(point.seeds)} seeds" if len(point.seeds) > 1 else ""
    spent = f"{x:.3g} {_UNITS[cost]} {kind}"
    return hover_point(axes, x, y, f"{point.label}: {y:.2f} % at {spent}{seeds}")


def _place(point: Point, cost: CostName) -> tuple[float, float]:
    return point.cost(cost).mean, point.accuracy.mean
