"""Figures of a comparison: Pareto front, options over the budget, computation by difficulty."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from dfs_rl.costs import BitOptions
from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Curve, Point
from dfs_rl.reporting import style
from dfs_rl.reporting.labels import Label, place_labels
from dfs_rl.reporting.render import HoverPoint, hover_point

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
_COLUMNS = 5
_PANEL = (1.75, 1.45)
_MOST_LAYERS = 24
"""Maximum number of layers to show; of more layers, an evenly spaced subset is shown."""
_DIFFICULTY_SIZE = (8.6, 4.0)


class ComparisonFigures(NamedTuple):
    """Figures of all gates.

    Attributes:
        pareto_front: Accuracy against computation, as PNG.
        points: Hover texts of its points.
        computation_by_difficulty: Computation against difficulty, as PNG.
        bit_mixes: Share of each option over the budget, as PNG, by the label of the curve.
    """

    pareto_front: bytes
    points: Sequence[HoverPoint]
    computation_by_difficulty: bytes
    bit_mixes: Mapping[str, bytes]


def comparison_figures(comparison: ComparisonOfRuns) -> ComparisonFigures:
    """Draw all figures of a comparison."""
    pareto_front = pareto_plot(comparison)
    return ComparisonFigures(
        pareto_front=style.to_png(pareto_front),
        points=hover_points(pareto_front, comparison),
        computation_by_difficulty=style.to_png(difficulty_plot(comparison)),
        bit_mixes={
            curve.label: style.to_png(bit_mix_plot(curve, comparison.options))
            for curve in comparison.curves
            if curve.baseline is None
        },
    )


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
def pareto_plot(comparison: ComparisonOfRuns) -> Figure:
    """Draw the gates of a comparison over a logarithmic axis.

    Bars are one standard deviation over seeds, cut off at the frame. Gates far below the cheapest
    useful uniform setting are listed below the figure, and far more expensive uniform settings are
    lines, because both would compress the rest of the figure.
    """
    scene = _scene(comparison)
    figure = style.new_figure(*_SIZE)
    name = style.short_middle(comparison.dataset, style.NAME_LENGTH)
    title = f"{name}, {comparison.split} split, {comparison.n:,} images; bars ± 1 standard deviation over seeds"
    axes = _framed(figure, title, _note(scene.undrawn))
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
    place_labels(axes, labels, [line for line in lines if len(line) > 1])
    named, _ = axes.get_legend_handles_labels()
    if named and len(lines) > 1:  # no corner is always free
        axes.legend(loc="best", fontsize=style.SMALL_SIZE, frameon=False)
    return figure


def _framed(figure: Figure, title: str, note: Sequence[str]) -> Axes:
    """Return empty axes under a title, with the lines of a note below them."""
    bottom = _MARGINS["bottom"] + _NOTE_HEIGHT * len(note)
    figure.subplots_adjust(**{**_MARGINS, "bottom": bottom})
    for row, line in enumerate(reversed(note)):
        y = _NOTE_HEIGHT * (row + 1 / 3)
        figure.text(_MARGINS["left"], y, line, fontsize=style.SMALL_SIZE, color=style.MUTED)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.grid(visible=True, which="major", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(style.COMPUTATION_LOG)
    axes.set_ylabel("accuracy, %")
    style.tidy(axes)
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


def hover_points(figure: Figure, comparison: ComparisonOfRuns) -> list[HoverPoint]:
    """Return the hover tooltips of ``pareto_plot``."""
    (axes,) = figure.axes
    scene = _scene(comparison)
    points = []
    for point in (*scene.points, *scene.references):
        text = f"{point.label}: {point.accuracy.mean:.2f} % at {point.computation.mean:.3g} % computation"
        if len(point.seeds) > 1:
            text += f", {len(point.seeds)} seeds"
        points.append(hover_point(axes, point.computation.mean, point.accuracy.mean, text))
    return points


def _curve(
    axes: Axes, points: list[Point], colour: str, marker: str, name: str | None
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
    axes: Axes, point: Point, colour: str, marker: str, size: float
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


def _finish_axes(axes: Axes, accuracies: Sequence[float]) -> None:
    """Set margins and final limits of the axes, which labels require."""
    axes.margins(x=_ROOM)
    axes.set_xlim(*axes.get_xlim())
    low, high = min(accuracies), max(accuracies)
    room = _ROOM * max(high - low, 1.0)
    axes.set_ylim(low - room, high + room)
    style.log_ticks(axes)


@style.plain_text()
def bit_mix_plot(curve: Curve, options: tuple[int, ...]) -> Figure:
    """Draw the share of each option over mean computation, for all layers and for each layer.

    The figure follows Figures 12 to 15 of Shen et al. (AAAI 2020).

    Args:
        curve: Curve of a gate.
        options: Bit options, ascending.
    """
    shares = np.asarray(curve.histograms, dtype=np.float64)  # [points, layers, options]
    layers = shares.shape[1]
    shown = np.unique(np.linspace(0, layers - 1, min(layers, _MOST_LAYERS)).round().astype(int))
    panels = [("all layers", shares.mean(axis=1))]
    panels += [(f"layer {layer + 1}", shares[:, layer]) for layer in shown.tolist()]
    rows = -(-len(panels) // _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    figure = style.new_figure(_PANEL[0] * columns + 1.2, _PANEL[1] * rows + 0.75)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    width, height = figure.get_figwidth(), figure.get_figheight()
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - 0.85 / width,
        bottom=0.5 / height,
        top=1 - 0.4 / height,
        wspace=0.12,
        hspace=0.32,
    )
    for axes, (name, values) in zip(grid.flat, panels, strict=False):
        _panel(axes, name, np.asarray(curve.computations), values, BitOptions(options))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for column in range(columns):  # the lowest panel has the tick labels of its column
        for axes in [axes for axes in grid[:, column] if axes.get_visible()][:-1]:
            axes.tick_params(labelbottom=False)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        names[::-1],
        loc="center right",
        frameon=False,
        fontsize=style.SMALL_SIZE,
        handlelength=1.0,
    )
    figure.supxlabel("computation per image, %", fontsize=style.SMALL_SIZE, y=0.04)
    figure.supylabel("images, %", fontsize=style.SMALL_SIZE, x=0.01)
    return figure


def _panel(
    axes: Axes,
    name: str,
    computations: NDArray[np.float64],
    shares: NDArray[np.float64],
    options: BitOptions,
) -> None:
    spent = computations.tolist()
    low, high = min(spent), max(spent)
    if low == high:  # constant computation: draw a band
        low, high = 0.9 * low, 1.1 * high
        computations, shares = np.array([low, high]), shares[[0, 0]]
    names, colours = zip(*style.action_styles(options, shares.shape[1]), strict=True)
    axes.stackplot(
        computations,
        *(100 * shares.T),
        colors=colours,
        labels=names,
        edgecolor="white",
        linewidth=0.3,
    )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    ends = [low, high] if len(set(spent)) > 1 else [spent[0]]
    axes.set_xticks(ends, [f"{float(f'{end:.2g}'):g}" for end in ends])  # 100, not 1e+02
    axes.tick_params(labelsize=style.SMALL_SIZE - 1)
    # Align labels inwards, so that those of neighbouring panels do not overlap.
    if len(ends) > 1:
        axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.set_title(name, fontsize=style.SMALL_SIZE, loc="left", pad=3)


@style.plain_text()
def difficulty_plot(comparison: ComparisonOfRuns) -> Figure:
    """Draw each gate's computation per class of difficulty, relative to its mean.

    A gate that ignores its inputs is a horizontal line at 1; one that adapts to them rises to the
    right. Each budget of a gate is a line.
    """
    figure = style.new_figure(*_DIFFICULTY_SIZE)
    figure.subplots_adjust(left=0.08, right=0.7, bottom=0.2, top=0.9)
    axes = figure.add_subplot()
    style.tidy(axes)
    axes.grid(visible=True, axis="y", color=style.FAINT, linewidth=0.6)
    places = np.arange(len(comparison.difficulty))
    families = comparison.families
    named: set[str] = set()
    for gate in comparison.computation_by_difficulty:
        i = families.index(gate.family)
        values = [np.nan if value is None else value for value in gate.relative]
        axes.plot(
            places,
            values,
            color=style.GATE_COLOURS[i % len(style.GATE_COLOURS)],
            marker=style.GATE_MARKERS[i % len(style.GATE_MARKERS)],
            markersize=5,
            lw=1.1,
            alpha=0.8,
            label=None if gate.family in named else style.legend_name(gate.family),
        )
        named.add(gate.family)
    axes.axhline(1.0, color=style.MUTED, lw=0.8, ls=(0, (4, 3)))
    names = zip(comparison.difficulty, comparison.difficulty_shares, strict=True)
    axes.set_xticks(places, [f"{name}\n{100 * share:.1f} %" for name, share in names])
    axes.set_xlabel(
        "fewest uniform bits that are right, and share of the images; nothing is said of fewer "
        "than 10"
    )
    axes.set_ylabel("computation relative to the gate's mean")
    style.title(axes, "What gates spend on easy and on hard images")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=style.SMALL_SIZE
    )
    return figure
