"""Share of each bit option over the budget of a gate."""

from typing import TYPE_CHECKING

import numpy as np

from dfs_rl.costs import BitOptions
from dfs_rl.evaluation.comparison_records import Curve
from dfs_rl.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_COLUMNS = 5
_PANEL = (1.75, 1.45)
_MOST_LAYERS = 24
"""Maximum number of layers to show; of more layers, an evenly spaced subset is shown."""


@style.plain_text()
def bit_mix_plot(
    curve: Curve, options: tuple[int, ...], cost_model: str = "computation"
) -> "Figure":
    """Draw the share of each option over mean computation, for all layers and for each layer.

    The figure follows Figures 12 to 15 of Shen et al. (AAAI 2020).

    Args:
        curve: Curve of a gate.
        options: Bit options, ascending.
        cost_model: Cost model of the horizontal axis.
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
    figure.supxlabel(f"{cost_model} per image, %", fontsize=style.SMALL_SIZE, y=0.04)
    figure.supylabel("images, %", fontsize=style.SMALL_SIZE, x=0.01)
    return figure


def _panel(
    axes: "Axes",
    name: str,
    computations: "NDArray[np.float64]",
    shares: "NDArray[np.float64]",
    options: BitOptions,
) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

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
