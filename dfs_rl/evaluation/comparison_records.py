"""Inputs and results of a comparison of runs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dfs_rl.costs import COMPUTATION
from dfs_rl.evaluation.metrics import Interval
from dfs_rl.evaluation.per_image_results import PerImageResults, SplitResults
from dfs_rl.evaluation.summary import EvaluationSummary

GATE = "gate"
"""Kind of a point that is a gate, and key of a gate's per-image results."""


BEFORE = "_before"
"""Suffix of the keys of baselines on the backbone before co-training."""
DEPLOYABLE_BASELINES = ("static_table", "cascade", "exits")
"""Keys of the baselines that can be deployed instead of a gate."""
_GAINS = ("static_table", "cascade", "exits", "patterns")
"""Baselines whose gains are columns of ``to_frame``; exits only if the network has them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedRun:
    """A run with the results of its evaluation.

    Attributes:
        path: Folder of the run, as given by the user.
        settings: Flat configuration, by dotted name.
        command: Command line that started the run.
        evaluation: Command line that shows the evaluation.
        backbone: Digest of the backbone's weights, before any co-training.
        figure_prefix: Common prefix of the paths of the evaluation's figures.
        images_seen: Number of training images, repeats counted.
        seconds: Training time in seconds, None if not recorded.
        summary: Figures of the gate and its baselines.
        results: Per-image results of the gate and its baselines.
    """

    path: str
    settings: Mapping[str, object]
    command: str
    evaluation: str
    backbone: str
    figure_prefix: str
    images_seen: int
    seconds: float | None
    summary: EvaluationSummary
    results: SplitResults

    @property
    def is_cotrained(self) -> bool:
        """True if the backbone was trained together with the gate."""
        return any(key.endswith(BEFORE) for key in self.results.reported)

    def best_reported(self, key: str) -> PerImageResults:
        """Return the results of a method on the reported split.

        A co-trained gate has each baseline before and after co-training; the more accurate one on
        the selection split counts.
        """
        chosen = self.results.selection
        keys = [k for k in (key, f"{key}{BEFORE}") if k in chosen]
        if len(keys) > 1:
            key = max(keys, key=lambda k: float(chosen[k].correct.double().mean()))
        return self.results.reported[key]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of a figure over seeds.

    Attributes:
        mean: Mean over seeds.
        deviation: Standard deviation over seeds, None for a single seed.
    """

    mean: float
    deviation: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of the values of all seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One gate or baseline, over its seeds.

    Attributes:
        label: Name in tables and plots.
        kind: ``"gate"``, or the key of a baseline.
        family: Label without budget or cost weight for a gate, shared by all points of its curve;
            label without cost for a baseline.
        runs: Folders of the runs.
        seeds: Seeds of the runs.
        budget: Budget of the mean computation in percent, None if the gate has none.
        accuracy: Accuracy in percent.
        computation: Mean computation over images in percent, everything included.
        selection_accuracy: Mean accuracy in percent on the selection split, used to choose points.
        selection_computation: Mean computation in percent on the selection split.
        patterns: Number of distinct bit patterns, None for baselines.
        gains: Accuracy minus that of each baseline at no more than the gate's cost, in points, by
            the baseline's key; empty for baselines.
        better_than: Baselines that the gate exceeds by more than two standard deviations over
            seeds and significantly over images. Baselines chosen from candidates that include
            uniform settings count only if the gate also exceeds every uniform setting of no larger
            cost.
        tied: Baselines whose difference from the gate is not significant over images.
        complexity: Rank for ties: the point with the smallest complexity is chosen. A static bit
            table has the number of its distinct bits, 1 if uniform; a cascade or exits have more,
            and a gate has most.
        cotrained: True if the point runs on the co-trained backbone.
    """

    label: str
    kind: str
    family: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: float | None
    accuracy: Spread
    computation: Spread
    selection_accuracy: float
    selection_computation: float
    patterns: Spread | None
    gains: Mapping[str, Spread]
    complexity: int
    better_than: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    cotrained: bool = False


@dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """Methods at one budget (``dfs_rl.evaluation.budgets``).

    Attributes:
        budget: Bound on the mean computation in percent.
        recommended: Label of the recommended point, None if no point is within the budget.
        tied: Labels of the other points that are statistically tied on the selection split.
        methods: Label of each method's point, by family; methods that cost more have no entry.
        over_budget: Labels of the points among them that were trained for the budget and exceed
            it.
    """

    budget: float
    recommended: str | None
    tied: tuple[str, ...]
    methods: Mapping[str, str]
    over_budget: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Difference in accuracy between two gates of about the same cost.

    Attributes:
        first: Label of the first gate.
        second: Label of the second gate.
        difference: Accuracy of the first minus that of the second, mean over seeds, in points.
        low: Lower end of the 95 % interval over images.
        high: Upper end of the 95 % interval over images.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Figures of a gate over all its budgets or cost weights, or of a baseline at the same costs.

    Attributes:
        label: Name in tables.
        gate: Label of the gate that determines the costs; the curve's own label for a gate.
        baseline: Name of the baseline, for example ``"confidence cascades"``; None for a gate.
        points: Number of budgets or cost weights.
        seeds: Number of seeds that have every point; other seeds are left out.
        n_incomplete_seeds: Number of seeds that are left out.
        hypervolume: Hypervolume over seeds, in percent of accuracy times decades of computation,
            bounded by the reference point of the comparison.
        interval: Interval of the mean hypervolume over images.
        accuracy_at: Accuracy at fixed computations, for those within the range of every seed.
        accuracy_interval: Interval over images of these accuracies, averaged over seeds; for
            computations within the range in nearly every draw.
        histograms: Share of images per layer and option, averaged over seeds, ``[points, layers,
            options]``, cheapest first; empty for baselines.
        computations: Mean computation of each point in percent, cheapest first.
    """

    label: str
    gate: str
    baseline: str | None
    points: int
    seeds: int
    n_incomplete_seeds: int
    hypervolume: Spread
    interval: Interval
    accuracy_at: Mapping[str, Spread]
    accuracy_interval: Mapping[str, Interval]
    histograms: tuple[tuple[tuple[float, ...], ...], ...]
    computations: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CurvePair:
    """Difference in hypervolume between two curves over the same images.

    Attributes:
        first: Label of the first curve.
        second: Label of the second curve.
        difference: Hypervolume of the first minus that of the second, each averaged over seeds.
        interval: Interval of the difference over images.
        spread: Spread of the difference over seeds; None for a single seed or different seeds.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    spread: Spread | None


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Training cost of one kind of gate.

    Attributes:
        label: Name in tables.
        trainings: Number of training runs.
        images: Total number of training images, repeats counted.
        seconds: Total training time in seconds, None if it was not recorded for every run.
    """

    label: str
    trainings: int
    images: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ComputationByDifficulty:
    """Computation of a gate on images of different difficulty.

    Attributes:
        label: Label of the gate.
        family: Label of the gate without budget or cost weight.
        relative: Mean computation of each difficulty class divided by that of all images; None for
            a class with too few images.
    """

    label: str
    family: str
    relative: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class ComparisonOfRuns:
    """All figures of a comparison of runs.

    Attributes:
        dataset: Name of the data set.
        split: The reported split.
        n: Number of images in the reported split.
        options: Bit options.
        points: Gates and their baselines, cheapest first.
        references: Uniform settings and full precision, cheapest first.
        budgets: Results at each budget of the gates, lowest first; empty if a gate has no point at
            any budget.
        pairs: Pairs of gates of about the same cost.
        curves: Curves of the gates with more than one budget or cost weight, each with its
            baselines at the same costs.
        curve_pairs: Comparison of each gate's curve with those of its baselines and other gates.
        reference_accuracy: Accuracy of the reference point of hypervolumes in percent
            (``hypervolume_reference_point``).
        reference_computation: Computation of that reference point in percent.
        trainings: Training cost of each kind of gate.
        difficulty: Names of the difficulty classes of images: the cheapest uniform setting that
            classifies them correctly.
        difficulty_shares: Share of the images in each difficulty class.
        computation_by_difficulty: Computation of each gate in the difficulty classes.
        pareto_front: Labels of the points, references included, that are recommended as the
            allowed computation grows, cheapest first. They are chosen on the selection split, like
            those at budgets, never on the reported split.
        verdict: Recommended points and gates better than their baselines, in sentences.
        failed: Reason of each run that could not be evaluated, by the run.
        cost_model: Cost model that all figures of computation follow.
    """

    dataset: str
    split: str
    n: int
    options: tuple[int, ...]
    points: tuple[Point, ...]
    references: tuple[Point, ...]
    budgets: tuple[BudgetResult, ...]
    pairs: tuple[Pair, ...]
    curves: tuple[Curve, ...]
    curve_pairs: tuple[CurvePair, ...]
    reference_accuracy: float
    reference_computation: float
    trainings: tuple[TrainingCost, ...]
    difficulty: tuple[str, ...]
    difficulty_shares: tuple[float, ...]
    computation_by_difficulty: tuple[ComputationByDifficulty, ...]
    pareto_front: tuple[str, ...]
    verdict: tuple[str, ...]
    failed: Mapping[str, str]
    cost_model: str = COMPUTATION

    def to_frame(self) -> pd.DataFrame:
        """Return one row per point: means and standard deviations over seeds, gains included."""
        rows = []
        exits = any("exits" in point.gains for point in self.points)
        gains = [key for key in _GAINS if key != "exits" or exits]
        for point in (*self.points, *self.references):
            row = {"label": point.label, "kind": point.kind, "seeds": len(point.seeds)}
            fields = {"accuracy": point.accuracy, "computation": point.computation}
            for name, value in {**fields, **{key: point.gains.get(key) for key in gains}}.items():
                row[f"{name}_mean"] = None if value is None else value.mean
                row[f"{name}_sd"] = None if value is None else value.deviation
            rows.append(row)
        frame = pd.DataFrame(rows)  # None becomes NaN
        return frame.astype({name: float for name in frame if name.endswith(("_mean", "_sd"))})

    @property
    def families(self) -> list[str]:
        """Labels of the gates without budgets, in the order of their colors in figures."""
        return list(dict.fromkeys(point.family for point in self.points if point.kind == GATE))
