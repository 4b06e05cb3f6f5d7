"""Alternative texts of figures: what a figure shows, in words and numbers from its records."""

from collections.abc import Sequence

import numpy as np

from dfs_rl.costs import COMPUTATION
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns, Curve, EvaluatedRun
from dfs_rl.evaluation.timing import CostName
from dfs_rl.reporting.frontier import Method, point_text, ranked_methods
from dfs_rl.reporting.style import option_name

_MOST_POINTS = 12  # maximum number of uniform settings or gates that a text names
_LEAST = 0.005  # smallest share of an option that a text names


def of_pareto_plot(comparison: ComparisonOfRuns, cost: CostName = "computation") -> str:
    """Return the accuracies and costs of the methods in colour, and of uniform settings."""
    coloured, grey = ranked_methods(comparison)
    against = comparison.cost_model if cost == "computation" else "measured time"
    settings = [f"{p.label} {point_text(p, cost)}" for p in comparison.references[:_MOST_POINTS]]
    images = f"{comparison.n:,} {comparison.split} images of {comparison.dataset}"
    parts = [
        f"Accuracy against {against} on {images}, the best method on val first.",
        *(f"{_range(method, cost)}." for method in coloured),
        *([f"Uniform settings: {'; '.join(settings)}."] if settings else []),
        *([f"In grey: {', '.join(method.name for method in grey)}."] if grey else []),
    ]
    return " ".join(parts)


def of_panels(comparison: ComparisonOfRuns) -> str:
    """Return the accuracies and costs of the methods in panels, and of the best one."""
    (best, *_), grey = ranked_methods(comparison)
    ranges = " ".join(f"{_range(method, 'computation')}." for method in grey)
    return (
        f"A panel for each other method, accuracy against {comparison.cost_model}. {ranges} "
        f"In grey in each panel: {_range(best, 'computation')}."
    )


def of_bit_mix(curve: Curve, options: Sequence[int], cost_model: str = COMPUTATION) -> str:
    """Return the shares of the options over all layers at the lowest and at the highest cost."""
    shares = np.asarray(curve.histograms, dtype=np.float64).mean(axis=1).tolist()
    ends = sorted({0, len(shares) - 1})
    at = "; ".join(f"at {curve.computations[i]:.3g} %: {_shares(shares[i], options)}" for i in ends)
    return f"Options of {curve.label}, mean share over all layers, {cost_model} {at}."


def of_difficulty(comparison: ComparisonOfRuns) -> str:
    """Return the cost of gates in colour on the easiest and hardest images, over their mean."""
    coloured, _ = ranked_methods(comparison)
    names = {method.name for method in coloured}
    gates = [gate for gate in comparison.computation_by_difficulty if gate.family in names]
    texts = []
    for gate in gates[:_MOST_POINTS]:
        known = [
            f"{value:.2f} ({name})"
            for name, value in zip(comparison.difficulty, gate.relative, strict=True)
            if value is not None
        ]
        ends = [known[0], known[-1]] if len(known) > 1 else known
        texts.append(f"{gate.label}: {' to '.join(ends) or 'too few images'}")
    return (
        f"{comparison.cost_model.capitalize()} relative to a gate's mean, from the easiest to the "
        f"hardest images, by the cheapest uniform setting that is right. {'; '.join(texts)}."
    )


def of_options(run: EvaluatedRun, label: str) -> str:
    """Return the share of each option at the first, middle and last layer of a gate."""
    histogram, passes = run.summary.histogram, run.summary.pass_histograms
    layers = sorted({0, len(histogram) // 2, len(histogram) - 1})
    texts = (f"layer {i + 1}: {_shares(histogram[i], run.summary.options)}" for i in layers)
    over = ", over all passes" if passes else ""
    runs = [
        f"pass {i + 1}: {100 * sum(layers[0]):.3g} % of the images"
        for i, layers in enumerate(passes)
    ]
    parts = [*texts, *runs]
    return f"Options that {label} chooses at each layer{over}. {'; '.join(parts)}."


def of_images(run: EvaluatedRun, label: str) -> str:
    """Return the range of the cost of images, and the accuracies on the cheap and costly halves."""
    results = run.reported["gate"]
    spent, correct = results.computation.double(), results.correct.double()
    order, half = spent.argsort(stable=True), len(spent) // 2
    most = f"{spent.max():.3g} % {run.summary.cost_model}"
    if spent.min() == spent.max():
        return f"Images and the bits of {label} at each layer. All cost {most}."
    cheap, costly = (100 * correct[i].mean().item() for i in (order[:half], order[half:]))
    return (
        f"Cheapest and most expensive images and the bits of {label} at each layer. Images cost "
        f"{spent.min():.3g} to {most}; {cheap:.1f} % of the cheaper half and {costly:.1f} % of "
        "the other half are right."
    )


def _range(method: Method, cost: CostName) -> str:
    """Return the cheapest and the most expensive point of a method."""
    points = sorted(method.points, key=lambda point: point.cost(cost).mean)
    ends = [points[0], points[-1]] if len(points) > 1 else points
    return f"{method.name}: {' to '.join(point_text(point, cost) for point in ends)}"


def _shares(shares: Sequence[float], options: Sequence[int]) -> str:
    """Return the shares of options that are chosen; one more share is that of a left network."""
    names = [*map(option_name, options), *["has left"] * (len(shares) - len(options))]
    pairs = zip(names, shares, strict=True)
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in pairs if share >= _LEAST)
