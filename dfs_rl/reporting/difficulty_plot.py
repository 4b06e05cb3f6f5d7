"""Computation of gates by the difficulty of images."""

from typing import TYPE_CHECKING

import numpy as np

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.reporting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = (8.6, 4.0)


@style.plain_text()
def difficulty_plot(comparison: ComparisonOfRuns) -> "Figure":
    """Draw each gate's computation per class of difficulty, relative to its mean.

    A gate that ignores its inputs is a horizontal line at 1; one that adapts to them rises to the
    right. Each budget of a gate is a line.
    """
    figure = style.new_figure(*_SIZE)
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
