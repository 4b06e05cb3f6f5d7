"""Figures of a comparison: Pareto front, options over the budget, computation by difficulty."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from dfs_rl.costs import COMPUTATION, BitOptions
from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Curve, Point
from dfs_rl.evaluation.timing import CostName
from dfs_rl.reporting import style
from dfs_rl.reporting.labels import Label, place_labels
from dfs_rl.reporting.render import HoverPoint, hover_point

_CURVES = {
    "static_table": ("best static tables", style.BLUE, "s"),
    "cascade": ("confidence cascades", style.GREEN, "^"),
    "tuned_rule": ("tuned rules", style.PURPLE, "D"),
    "exits": ("confidence exits", style.ORANGE, "v"),
}
_UNITS: dict[CostName, str] = {"computation": "%", "milliseconds": "ms"}
"""Unit of a cost."""
_PARETO_SIZE, _DIFFICULTY_SIZE = (8.6, 5.0), (8.6, 4.0)
_NOTE_WIDTH, _NOTE_LINES, _NOTE_HEIGHT = 130, 4, 0.035
"""Characters and lines of the note at most, and line height as a fraction of the figure's."""
_BELOW = 3.0
"""Methods this many points below the relevant range are not drawn; a note lists such gates."""
_MARKER, _SMALL_MARKER, _MANY = 11.0, 7.0, 6
"""Normal and small marker size of gates in points, and number of gates for the small one."""
_MARGIN = 0.12
"""Margin around the drawn points, as a fraction of their extent."""
_BEYOND = 5.0
"""A uniform setting is drawn as a line if it costs more than this multiple of the largest cost."""
_COLUMNS, _PANEL = 5, (1.75, 1.45)
_MOST_LAYERS = 24
"""Maximum number of layers to show; of more layers, an evenly spaced subset is shown."""


class ComparisonFigures(NamedTuple):
    """Figures of all gates, as PNG."""

    pareto: bytes  # accuracy against computation
    points: Sequence[HoverPoint]  # of that figure
    pareto_ms: bytes | None  # accuracy against measured time, None without it
    points_ms: Sequence[HoverPoint]
    difficulty: bytes  # computation against difficulty
    bit_mixes: Mapping[str, bytes]  # share of each option over the budget, by label of the curve


def comparison_figures(comparison: ComparisonOfRuns) -> ComparisonFigures:
    """Draw all figures of a comparison."""
    pareto, points = pareto_plot(comparison)
    pareto_ms: Figure | None = None
    points_ms: list[HoverPoint] = []
    if comparison.timing is not None:
        pareto_ms, points_ms = pareto_plot(comparison, "milliseconds")
    return ComparisonFigures(
        pareto=style.to_png(pareto),
        points=points,
        pareto_ms=None if pareto_ms is None else style.to_png(pareto_ms),
        points_ms=points_ms,
        difficulty=style.to_png(difficulty_plot(comparison)),
        bit_mixes={
            curve.label: style.to_png(
                bit_mix_plot(curve, comparison.options, comparison.cost_model)
            )
            for curve in comparison.curves
            if curve.baseline is None
        },
    )


@style.common_style()
def pareto_plot(
    comparison: ComparisonOfRuns, cost: CostName = "computation"
) -> tuple[Figure, list[HoverPoint]]:
    """Draw the gates of a comparison over a logarithmic axis; also return the points' tooltips.

    Bars are one standard deviation over seeds, cut off at the frame. Gates far below the cheapest
    useful uniform setting are listed below the figure, and far more expensive uniform settings are
    lines, because both would compress the rest of the figure.
    """
    lowest = comparison.reference_accuracy - _BELOW
    points, uniform = (
        sorted(group, key=lambda point: point.cost(cost).mean)
        for group in (comparison.points, comparison.references)
    )
    shown = [point for point in points if point.accuracy.mean >= lowest]
    if not any(point.kind == GATE for point in shown):
        shown = points
    floor = min(point.accuracy.mean for point in shown) - _BELOW
    most = _BEYOND * max(point.cost(cost).mean for point in shown)
    uniform = [point for point in uniform if point.accuracy.mean >= floor]
    references = [point for point in uniform if point.cost(cost).mean <= most]
    note = _note([p for p in points if p.kind == GATE and p not in shown], cost)

    figure = style.new_figure(*_PARETO_SIZE)
    bottom = 0.11 + _NOTE_HEIGHT * len(note)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=bottom, top=0.91)
    for row, line in enumerate(reversed(note)):
        y = _NOTE_HEIGHT * (row + 1 / 3)
        figure.text(0.08, y, line, fontsize=style.SMALL_SIZE, color=style.MUTED)
    label = style.cost_axis(cost, comparison)
    axes = figure.add_subplot(xscale="log", xlabel=label, ylabel="accuracy, %")
    axes.grid()
    name = style.short_middle(comparison.dataset, style.NAME_LENGTH)
    about = f"{comparison.split} split, {comparison.n:,} images"
    axes.set_title(f"{name}, {about}; bars ± 1 standard deviation over seeds")

    lines, labels = _draw_methods(axes, shown, references, comparison.families, cost)
    labels += [Label(point.label, *_place(point, cost), style.MUTED) for point in references]
    accuracies = [point.accuracy.mean for point in (*shown, *uniform)]
    margin = _MARGIN * max(max(accuracies) - min(accuracies), 1.0)
    axes.margins(x=_MARGIN)
    left, right = axes.set_xlim(*axes.get_xlim())  # labels require final limits
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
    style.log_ticks(axes)
    for level in uniform:
        if level not in references:
            height = level.accuracy.mean
            axes.axhline(height, color=style.MUTED, lw=0.9, ls=(0, (1, 2)), zorder=2)
            lines.append([(left, height), (right, height)])
            text = f"{level.label}, at {level.cost(cost).mean:.3g} {_UNITS[cost]}"
            # Three quarters of the width in logarithmic scale.
            labels.append(Label(text, left ** (1 / 4) * right ** (3 / 4), height, style.MUTED))
    place_labels(axes, labels, [line for line in lines if len(line) > 1])
    if axes.get_legend_handles_labels()[0] and len(lines) > 1:  # no corner is always free
        axes.legend(loc="best")
    kind = comparison.cost_model if cost == "computation" else "measured"
    return figure, [_tooltip(axes, p, cost, kind) for p in (*shown, *references)]


def _draw_methods(
    axes: Axes,
    shown: Sequence[Point],
    references: Sequence[Point],
    families: Sequence[str],
    cost: CostName,
) -> tuple[list[style.Line], list[Label]]:
    """Draw uniform settings, baselines and gates; return their lines and labels of lone gates."""
    settings = [_place(point, cost) for point in references]
    lines = [style.draw_curve(axes, settings, style.MUTED, marker="o")]
    for kind, (name, colour, marker) in _CURVES.items():
        places = [_place(point, cost) for point in shown if point.kind == kind]
        if places:
            lines.append(style.draw_curve(axes, places, colour, marker=marker, name=name))
    labels = []
    size = _MARKER if len(families) < _MANY else _SMALL_MARKER
    for i, name in enumerate(families):
        points = [p for p in shown if p.kind == GATE and p.family == name]
        colour, marker = style.gate_style(i)
        look = {"color": colour, "marker": marker, "markersize": size, "zorder": 5}
        for point in points:
            errors = point.cost(cost).deviation, point.accuracy.deviation
            lines += style.draw_point(axes, _place(point, cost), errors, **look)
        if len(points) > 1:
            places = [_place(point, cost) for point in points]
            lines.append(style.draw_curve(axes, places, colour, marker=marker, name=name))
        elif points:
            labels.append(Label(points[0].label, *_place(points[0], cost), colour, "bold"))
    return lines, labels


def _note(undrawn: Sequence[Point], cost: CostName) -> list[str]:
    """Return the lines of the note about gates that are not drawn."""
    figures: dict[str, list[str]] = {}
    for point in undrawn:
        text = f"{point.accuracy.mean:.1f} % at {point.cost(cost).mean:.3g} {_UNITS[cost]}"
        figures.setdefault(point.family, []).append(text)
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


@style.common_style()
def bit_mix_plot(curve: Curve, options: tuple[int, ...], cost_model: str = COMPUTATION) -> Figure:
    """Draw the share of each option over mean computation, for all layers and for each layer.

    The figure follows Figures 12 to 15 of Shen et al. (AAAI 2020).
    """
    shares = np.asarray(curve.histograms, dtype=np.float64)  # [points, layers, options]
    layers = shares.shape[1]
    shown = np.unique(np.linspace(0, layers - 1, min(layers, _MOST_LAYERS)).round().astype(int))
    panels = [("all layers", shares.mean(axis=1))]
    panels += [(f"layer {layer + 1}", shares[:, layer]) for layer in shown.tolist()]
    rows, columns = -(-len(panels) // _COLUMNS), min(len(panels), _COLUMNS)
    width, height = _PANEL[0] * columns + 1.2, _PANEL[1] * rows + 0.75
    figure = style.new_figure(width, height)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - 0.85 / width,
        bottom=0.5 / height,
        top=1 - 0.4 / height,
        wspace=0.12,
        hspace=0.32,
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for number, (axes, (name, values)) in enumerate(zip(grid.flat, panels, strict=False)):
        _stack(axes, np.asarray(curve.computations), values, BitOptions(options))
        axes.set_title(name, fontsize=style.SMALL_SIZE, pad=3)
        if number + columns < len(panels):  # the lowest panel has the tick labels of its column
            axes.tick_params(labelbottom=False)
    style.option_legend(figure, grid[0, 0], "center right")
    figure.supxlabel(f"{cost_model} per image, %", fontsize=style.SMALL_SIZE, y=0.04)
    figure.supylabel("images, %", fontsize=style.SMALL_SIZE, x=0.01)
    return figure


def _stack(
    axes: Axes,
    computations: NDArray[np.float64],
    shares: NDArray[np.float64],
    options: BitOptions,
) -> None:
    low, high = float(computations.min()), float(computations.max())
    ends = sorted({low, high})
    if low == high:  # constant computation: draw a band
        low, high = 0.9 * low, 1.1 * high
        computations, shares = np.array([low, high]), shares[[0, 0]]
    names, colours = zip(*style.action_styles(options, shares.shape[1]), strict=True)
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3}
    axes.stackplot(computations, *(100 * shares.T), colors=colours, labels=names, **look)
    axes.set(xscale="log", xlim=(low, high), ylim=(0, 100), yticks=[0, 50, 100])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ends, [f"{float(f'{end:.2g}'):g}" for end in ends])  # 100, not 1e+02
    axes.tick_params(labelsize=style.SMALL_SIZE - 1)
    if len(ends) > 1:  # inward, so that labels of neighbouring panels do not overlap
        axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.get_xticklabels()[-1].set_horizontalalignment("right")


@style.common_style()
def difficulty_plot(comparison: ComparisonOfRuns) -> Figure:
    """Draw each gate's computation per class of difficulty, relative to its mean.

    A gate that ignores its inputs is a horizontal line at 1; one that adapts to them rises to the
    right. Each budget of a gate is a line.
    """
    figure = style.new_figure(*_DIFFICULTY_SIZE)
    figure.subplots_adjust(left=0.08, right=0.7, bottom=0.2, top=0.9)
    axes = figure.add_subplot(
        title=f"{comparison.cost_model.capitalize()} on easy and on hard images",
        xlabel="cheapest uniform setting that is right, and share of the images",
        ylabel=f"{comparison.cost_model} relative to the gate's mean",
    )
    axes.grid(axis="y")
    places = np.arange(len(comparison.difficulty))
    named: set[str] = set()
    for gate in comparison.computation_by_difficulty:
        colour, marker = style.gate_style(comparison.families.index(gate.family))
        relative = [np.nan if value is None else value for value in gate.relative]
        label = None if gate.family in named else style.legend_name(gate.family)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
        axes.plot(places, relative, label=label, lw=1.1, alpha=0.8, **look)
        named.add(gate.family)
    axes.axhline(1.0, color=style.MUTED, lw=0.8, ls=style.DASHED)
    names = zip(comparison.difficulty, comparison.difficulty_shares, strict=True)
    axes.set_xticks(places, [f"{name}\n{100 * share:.1f} %" for name, share in names])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
