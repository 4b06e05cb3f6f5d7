"""The pictures of a comparison."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.reporting import style
from dfs_rl.reporting.bit_mix_plot import mix_plot
from dfs_rl.reporting.difficulty_plot import spending_plot
from dfs_rl.reporting.hover import PlacedPoint
from dfs_rl.reporting.pareto_plot import frontier_plot, placed_points


class ComparisonPictures(NamedTuple):
    """Pictures that concern all gates.

    Attributes:
        frontier: Accuracy against computation, as PNG.
        points: Where it shows what.
        spending: Computation against difficulty, as PNG.
        mixes: How the mix of options shifts with the budget, as PNG, by the label of the curve.
    """

    frontier: bytes
    points: Sequence[PlacedPoint]
    spending: bytes
    mixes: Mapping[str, bytes]


def comparison_pictures(comparison: ComparisonOfRuns) -> ComparisonPictures:
    """Draw them."""
    frontier = frontier_plot(comparison)
    return ComparisonPictures(
        frontier=style.to_png(frontier),
        points=placed_points(frontier, comparison),
        spending=style.to_png(spending_plot(comparison)),
        mixes={
            curve.label: style.to_png(mix_plot(curve, comparison.options))
            for curve in comparison.curves
            if curve.rival is None
        },
    )
