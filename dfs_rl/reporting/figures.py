"""Figures of an evaluation: accuracy against computation, and options at each layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dfs_rl.costs import BitOptions
from dfs_rl.evaluation.summary import EvaluationSummary, MethodSummary
from dfs_rl.evaluation.timing import CostName
from dfs_rl.reporting import style
from dfs_rl.reporting.labels import Label, place_labels
from dfs_rl.utils.io import write_bytes_atomic

# Marker, colour and size of each kind of method.
_MARKER_STYLES = {
    "gate": ("*", style.VERMILION, 13.0),
    "static_table": ("s", style.BLUE, 6.0),
    "cascade": ("^", style.GREEN, 7.0),
    "tuned_rule": ("d", style.PURPLE, 7.0),
    "exits": ("v", style.INK, 7.0),
    "mode_table": ("D", style.MUTED, 5.5),
    "random": ("X", style.MUTED, 7.0),
    "patterns": ("P", style.MUTED, 7.0),
    "oracle": ("p", style.MUTED, 7.0),
    "static_table_before": ("s", style.MUTED, 6.0),
    "cascade_before": ("^", style.MUTED, 7.0),
    "tuned_rule_before": ("d", style.MUTED, 7.0),
}
_FIXED_STYLE = ("o", style.MUTED, 5.0)
# Reference methods more than this many points below the gate and its baselines are labelled at the
# lower edge: drawn to scale, "skip all" at chance would flatten all others.
_DEPTH = 12.0
_HEIGHT, _WIDTHS, _MARGINS = 4.2, (5.6, 3.1), 1.4
"""Height of the figure, widths of its panels, and width of all margins, in inches."""
# With more layers, bars are too narrow for numbers.
_NUMBERED_LAYERS = 14
_NUMBERED_PERCENT = 7
_EVERY_LAYER_TICKED = 20
_PASS_HEIGHT = 2.1
"""Height in inches of the bars of one of several passes."""


def write_figures(
    folder: Path, prefix: str, summary: EvaluationSummary, images: Figure | None
) -> None:
    """Write ``accuracy.png`` and, for a gate, ``options.png`` and ``images.png``, atomically.

    With measured times there is also ``accuracy_ms.png``. ``images`` is an ``images_plot``, None
    without a gate.
    """
    figures = {"accuracy": accuracy_plot(summary)}
    if summary.timing is not None:
        figures["accuracy_ms"] = accuracy_plot(summary, "milliseconds")
    if summary.histogram:
        passes = summary.pass_histograms or (summary.histogram,)
        figures["options"] = options_plot(passes, BitOptions(summary.options))
    if images is not None:
        figures["images"] = images
    for name, figure in figures.items():
        write_bytes_atomic(folder / f"{prefix}{name}.png", style.to_png(figure))


@style.common_style()
def accuracy_plot(summary: EvaluationSummary, cost: CostName = "computation") -> Figure:
    """Draw the accuracy of every method over its cost; bars are one standard error.

    With a gate there are two panels: all methods over a logarithmic axis, and a magnified view of
    the gate and its baselines of nearly the same cost.
    """
    drawn = [method for method in summary.methods if method.cost(cost) > 0]
    own = [method for method in drawn if method.role in ("gate", "matched")]
    widths = _WIDTHS if own else _WIDTHS[:1]
    width = sum(widths) + _MARGINS
    figure = style.new_figure(width, _HEIGHT)
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    figure.subplots_adjust(0.62 / width, 0.13, 1 - 0.16 / width, 0.9, wspace=0.14)
    name = style.short_middle(summary.dataset, style.NAME_LENGTH)
    about = f"{summary.split} split, {summary.n:,} images"
    panels[0].set(
        title=f"{name}, {about}; bars ± 1 standard error",
        xlabel=style.cost_axis(cost, summary),
        ylabel="accuracy, %",
    )
    _draw_overview(panels[0], drawn, own, cost)
    if own:
        title = "Near the gate's cost" if cost == "computation" else "Near the gate's time"
        panels[1].set(title=title, xlabel="the same, linear scale")
        _draw_near(panels[1], drawn, own, cost)
    return figure


def _draw_overview(
    axes: Axes, drawn: Sequence[MethodSummary], own: Sequence[MethodSummary], cost: CostName
) -> None:
    floor = min([m.accuracy for m in own] or [max(m.accuracy for m in drawn)]) - _DEPTH
    shown = [method for method in drawn if method.accuracy >= floor]
    below = [method for method in drawn if method.accuracy < floor]
    low, high = _span(shown)
    margin = max(0.12 * (high - low), 0.4)
    costs = [method.cost(cost) for method in drawn]
    axes.set(xscale="log", xlim=(min(costs) / 1.7, max(costs) * 1.7))
    axes.set_ylim(low - (1.6 if below else 1.0) * margin, min(high, 100.0) + margin)
    style.log_ticks(axes)

    # The other panel has enough space for the labels of the baselines.
    named = [method for method in shown if method.role != "matched"]
    labels = [_label(method, cost) for method in sorted(named, key=lambda m: m.role == "fixed")]
    bottom, top = axes.get_ylim()
    edge = bottom + 0.025 * (top - bottom)
    for method in below:
        axes.plot(method.cost(cost), edge, marker="v", markersize=5, color=style.MUTED, zorder=4)
        text = f"{method.label}, {method.accuracy:.1f} %"
        labels.append(Label(text, method.cost(cost), edge, style.MUTED))
    place_labels(axes, labels, _draw_points(axes, shown, cost))


def _draw_near(
    axes: Axes, drawn: Sequence[MethodSummary], own: Sequence[MethodSummary], cost: CostName
) -> None:
    costs = [method.cost(cost) for method in own]
    middle = (min(costs) + max(costs)) / 2
    reach = max(0.9 * (max(costs) - min(costs)), 0.08 * middle)
    low, high = _span(own)
    margin = max(0.2 * (high - low), 0.2)
    axes.set_xlim(max(middle - reach, 0.0), middle + reach)
    axes.set_ylim(low - margin, min(high, 100.0) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    inside = [
        method
        for method in drawn
        if method.role != "oracle"
        and abs(method.cost(cost) - middle) <= reach
        and low - margin <= method.accuracy <= high + margin
    ]
    labels = [_label(method, cost) for method in inside]
    place_labels(axes, labels, _draw_points(axes, inside, cost))


def _span(methods: Sequence[MethodSummary]) -> tuple[float, float]:
    """Return the lowest and the highest end of the methods' bars."""
    return (
        min(method.accuracy - method.accuracy_error for method in methods),
        max(method.accuracy + method.accuracy_error for method in methods),
    )


def _draw_points(axes: Axes, methods: Sequence[MethodSummary], cost: CostName) -> list[style.Line]:
    """Draw the methods, the fixed ones connected; return the lines that labels should avoid."""
    axes.grid()
    lines = []
    fixed = sorted((m.cost(cost), m.accuracy) for m in methods if m.role == "fixed")
    if fixed:
        lines.append(style.draw_curve(axes, fixed, style.MUTED))
    for method in methods:
        marker, colour, size = _MARKER_STYLES.get(method.key, _FIXED_STYLE)
        look: dict[str, Any] = {"marker": marker, "color": colour, "markersize": size}
        look["zorder"] = 5 if method.role == "gate" else 4
        place = method.cost(cost), method.accuracy
        lines += style.draw_point(axes, place, (None, method.accuracy_error), **look)
    return [line for line in lines if len(line) > 1]


def _label(method: MethodSummary, cost: CostName) -> Label:
    colour = _MARKER_STYLES.get(method.key, _FIXED_STYLE)[1]
    weight = "bold" if method.role == "gate" else "normal"
    return Label(method.label, method.cost(cost), method.accuracy, colour, weight)


@style.common_style()
def options_plot(
    histograms: Sequence[Sequence[Sequence[float]]] | NDArray[np.float64], options: BitOptions
) -> Figure:
    """Draw a panel for each pass that ran, one stacked bar per layer, cheap options at the bottom.

    The histograms have the share of all images at each option, ``[passes, layers, options]``; with
    exits, a last column has the share that has left the network. A panel has the shares of the
    images that run its pass.
    """
    shares = np.asarray(histograms, dtype=np.float64)
    running = shares.sum(axis=2).mean(axis=1)  # [passes]
    n_passes, layers = int((running > 0).sum()), np.arange(1, shares.shape[1] + 1)
    width = max(4.6, min(9.0, 1.9 + 0.52 * len(layers)))
    height = n_passes * _PASS_HEIGHT + 0.6 if n_passes > 1 else 3.6
    figure = style.new_figure(width, height)
    panels = figure.subplots(n_passes, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(
        0.55 / width, 0.5 / height, 1 - 0.9 / width, 1 - 0.43 / height, hspace=0.28
    )
    panels[-1].set(xlabel="gated layer", xlim=(0.4, len(layers) + 0.6))
    if len(layers) <= _EVERY_LAYER_TICKED:
        panels[-1].set_xticks(layers)
    for number, axes in enumerate(panels):
        title, share = "Options chosen at each layer", "images, %"
        if n_passes > 1:
            title = f"Pass {number + 1}, {100 * running[number]:.3g} % of the images"
            share = "images of the pass, %"
        axes.set(title=title, ylabel=share, ylim=(0, 100))
        _stack_options(axes, layers, 100 * shares[number] / running[number], options)
    style.option_legend(panels[0], panels[0], "upper left", (1.0, 1.02))
    return figure


def _stack_options(
    axes: Axes, layers: NDArray[np.int64], percent: NDArray[np.float64], options: BitOptions
) -> None:
    """Draw the stacked bars of one pass, ``[layers, options]``, with readable numbers in them."""
    bottom = np.zeros(len(layers))
    styles = style.action_styles(options, percent.shape[1])
    for (name, colour), part in zip(styles, percent.T, strict=True):
        look: dict[str, Any] = {"width": 0.82, "edgecolor": "white", "linewidth": 0.5}
        bars = axes.bar(layers, part, bottom=bottom, color=colour, label=name, **look)
        if len(layers) <= _NUMBERED_LAYERS:
            axes.bar_label(
                bars,
                [f"{p:.0f}" if p >= _NUMBERED_PERCENT else "" for p in part],
                label_type="center",
                fontsize=style.SMALL_SIZE - 1,
                color=style.text_colour(colour),
            )
        bottom += part
