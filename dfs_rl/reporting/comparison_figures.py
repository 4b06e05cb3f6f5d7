"""Figures of a comparison: accuracy, options over the budget, computation by difficulty."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from dfs_rl.costs import COMPUTATION, BitOptions
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns, Curve
from dfs_rl.evaluation.timing import CostName
from dfs_rl.reporting import alt_text, style
from dfs_rl.reporting.frontier import method_panels, pareto_plot, ranked_methods
from dfs_rl.reporting.render import Picture

_DIFFICULTY_SIZE = (8.6, 4.0)
_COLUMNS, _PANEL = 5, (1.75, 1.45)
_FEWEST_TICKS = 2
_MOST_LAYERS = 24
"""Maximum number of layers to show; of more layers, an evenly spaced subset is shown."""


def comparison_figures(comparison: ComparisonOfRuns) -> dict[str, Picture]:
    """Draw all figures of a comparison, by the names of their files.

    ``pareto`` is accuracy against computation, ``pareto_ms`` against measured time if there is any;
    ``methods`` has panels of the methods that are grey there, if there are any. ``difficulty`` is
    computation against difficulty, and ``options-1`` and so on have the shares of the options of
    each gate with several budgets.
    """

    def pareto(cost: CostName) -> Picture:
        figure, points = pareto_plot(comparison, cost)
        text = alt_text.of_pareto_plot(comparison, cost)
        return Picture(style.to_png(figure), text, points)

    figures = {"pareto": pareto("computation")}
    if comparison.timing is not None:
        figures["pareto_ms"] = pareto("milliseconds")
    if (panels := method_panels(comparison)) is not None:
        figures["methods"] = Picture(style.to_png(panels), alt_text.of_panels(comparison))
    difficulty = style.to_png(difficulty_plot(comparison))
    figures["difficulty"] = Picture(difficulty, alt_text.of_difficulty(comparison))
    gates = (curve for curve in comparison.curves if curve.baseline is None)
    for number, curve in enumerate(gates, start=1):
        about = curve, comparison.options, comparison.cost_model
        mix = Picture(style.to_png(bit_mix_plot(*about)), alt_text.of_bit_mix(*about))
        figures[f"options-{number}"] = mix
    return figures


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
    columns = min(len(panels), _COLUMNS)
    figure, grid = style.panel_grid(
        len(panels),
        columns,
        size=(_PANEL[0] * columns + 1.2, _PANEL[1] * -(-len(panels) // _COLUMNS) + 0.75),
        frame=(0.55, 0.5, 0.85, 0.4),
        gaps=(0.12, 0.32),
    )
    for axes, (name, values) in zip(grid, panels, strict=True):
        _stack(axes, np.asarray(curve.computations), values, BitOptions(options))
        axes.set_title(name, fontsize=style.SMALL_SIZE, pad=3)
    style.option_legend(figure, grid[0], "center right")
    style.label_panels(figure, f"{cost_model} per image, %", "passes, %")
    return figure


def _stack(
    axes: Axes, computations: NDArray[np.float64], shares: NDArray[np.float64], options: BitOptions
) -> None:
    low, high = float(computations.min()), float(computations.max())
    ticks = style.readable_ticks(low, high, fewest=_FEWEST_TICKS)
    if len(ticks) < _FEWEST_TICKS:
        ticks = sorted({float(f"{end:.2g}") for end in (low, high)})
    if low == high:  # constant computation: draw a band
        low, high = 0.9 * low, 1.1 * high
        computations, shares = np.array([low, high]), shares[[0, 0]]
    names, colours = zip(*style.action_styles(options, shares.shape[1]), strict=True)
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3}
    axes.stackplot(computations, *(100 * shares.T), colors=colours, labels=names, **look)
    axes.set(xscale="log", xlim=(low, high), ylim=(0, 100), yticks=[0, 50, 100])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(labelsize=style.SMALL_SIZE - 1)
    labels = axes.get_xticklabels()  # none above another panel
    if len(labels) > 1:  # inward, so that labels of neighbouring panels do not overlap
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")


@style.common_style()
def difficulty_plot(comparison: ComparisonOfRuns) -> Figure:
    """Draw each gate's computation per class of difficulty, relative to its mean.

    A gate that ignores its inputs is a horizontal line at 1; one that adapts to them rises to the
    right. Each budget of a gate is a line; colours are those of ``pareto_plot``.
    """
    coloured, _ = ranked_methods(comparison)
    looks = {method.name: (method.colour, method.marker) for method in coloured}
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
    # Grey lines first, so that the others are on top.
    for gate in sorted(comparison.computation_by_difficulty, key=lambda gate: gate.family in looks):
        colour, marker = looks.get(gate.family, (style.PALE, "."))
        relative = [np.nan if value is None else value for value in gate.relative]
        name = "other gates"
        if gate.family in looks:  # matplotlib omits names that begin with an underscore
            space = " " * gate.family.startswith("_")
            name = style.short_middle(space + gate.family, style.NAME_LENGTH)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
        label = None if name in named else name
        axes.plot(places, relative, label=label, lw=1.1, alpha=0.8, **look)
        named.add(name)
    axes.axhline(1.0, color=style.MUTED, lw=0.8, ls=style.DASHED)
    names = zip(comparison.difficulty, comparison.difficulty_shares, strict=True)
    axes.set_xticks(places, [f"{name}\n{100 * share:.1f} %" for name, share in names])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
