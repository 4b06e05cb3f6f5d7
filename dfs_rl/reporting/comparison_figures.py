"""All figures of a comparison."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.reporting import style
from dfs_rl.reporting.bit_mix_plot import bit_mix_plot
from dfs_rl.reporting.difficulty_plot import difficulty_plot
from dfs_rl.reporting.hover import HoverPoint
from dfs_rl.reporting.pareto_plot import hover_points, pareto_plot


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
            curve.label: style.to_png(
                bit_mix_plot(curve, comparison.options, comparison.cost_model)
            )
            for curve in comparison.curves
            if curve.baseline is None
        },
    )
