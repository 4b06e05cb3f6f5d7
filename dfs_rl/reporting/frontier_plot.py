"""Accuracy against computation of many gates: points over seeds, rivals joined to curves, references behind them."""

from typing import TYPE_CHECKING

from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Point
from dfs_rl.reporting import style
from dfs_rl.reporting.labels import Label, place_labels
from dfs_rl.reporting.placed import PlacedPoint, placed

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
_BELOW = 6.0
"""References this many points below every gate are left out: drawn to scale they would flatten everything else."""


def frontier_plot(comparison: ComparisonOfRuns) -> "Figure":
    """Draw every gate of a comparison over a logarithmic axis; bars are one standard deviation over seeds."""
    figure = style.new_figure(*_SIZE)
    figure.subplots_adjust(**_MARGINS)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.grid(visible=True, which="major", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    style.tidy(axes)
    axes.set_xlabel("computation per image, % of all gated layers at 32 bit, log scale")
    axes.set_ylabel("accuracy, %")
    style.title(
        axes,
        f"{comparison.dataset}, {comparison.split} split, {comparison.n:,} images; bars ± 1 standard deviation over seeds",
    )
    floor = min(point.accuracy.mean for point in comparison.points) - _BELOW
    references = [point for point in comparison.references if point.accuracy.mean >= floor]
    lines = [_curve(axes, references, style.MUTED, "o", None)]
    for kind, (name, colour, marker) in _CURVES.items():
        rivals = [point for point in comparison.points if point.kind == kind]
        if rivals:
            lines.append(_curve(axes, rivals, colour, marker, name))
    labels = []
    for i, name in enumerate(comparison.families):
        points = [p for p in comparison.points if p.kind == GATE and p.family == name]
        colour = style.GATE_COLOURS[i % len(style.GATE_COLOURS)]
        marker = style.GATE_MARKERS[i % len(style.GATE_MARKERS)]
        for point in points:
            _draw(axes, point, colour, marker)
        if len(points) > 1:
            lines.append(_curve(axes, points, colour, marker, name))
        else:
            labels.append(_label(points[0], colour, weight="bold"))
    labels += [_label(point, style.MUTED) for point in references]
    _finish_axes(axes)
    place_labels(axes, labels, [line for line in lines if len(line) > 1], style.SMALL_SIZE)
    if len(lines) > 1:  # the lower right is free only where no gate spends much
        axes.legend(loc="best", fontsize=style.SMALL_SIZE, frameon=False)
    return figure


def placed_points(figure: "Figure", comparison: ComparisonOfRuns) -> list[PlacedPoint]:
    """Return where ``frontier_plot`` drew what, for a page that tells more where one points at it."""
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    points = []
    for point in (*comparison.points, *comparison.references):
        if not low <= point.accuracy.mean <= high:
            continue
        text = f"{point.label}: {point.accuracy.mean:.2f} % right at {point.computation.mean:.3g} %"
        if len(point.seeds) > 1:
            text += f", {len(point.seeds)} seeds"
        points.append(placed(axes, point.computation.mean, point.accuracy.mean, text))
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
        label=name,
        zorder=3,
    )
    return places


def _draw(axes: "Axes", point: Point, colour: str, marker: str) -> None:
    axes.errorbar(
        point.computation.mean,
        point.accuracy.mean,
        xerr=point.computation.deviation,
        yerr=point.accuracy.deviation,
        marker=marker,
        markersize=11,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=0.9,
        linestyle="none",
        zorder=5,
    )


def _label(point: Point, colour: str, *, weight: str = "normal") -> Label:
    return Label(point.label, point.computation.mean, point.accuracy.mean, colour, weight)


def _finish_axes(axes: "Axes") -> None:
    """Leave room around what was drawn and fix the limits, which labels need."""
    axes.margins(x=0.12, y=0.12)
    axes.set_xlim(*axes.get_xlim())
    axes.set_ylim(*axes.get_ylim())
    style.log_ticks(axes)
