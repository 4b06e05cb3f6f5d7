"""Inputs and results of a comparison of runs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from dfs_rl.costs import COMPUTATION
from dfs_rl.evaluation.metrics import Interval
from dfs_rl.evaluation.summary import EvaluationSummary, PerImageResults, Results
from dfs_rl.evaluation.timing import CostName, Timing

GATE = "gate"
"""Kind of a point that is a gate, and key of a gate's per-image results."""
BEFORE = "_before"
"""Suffix of the keys of baselines on the backbone before co-training."""
DEPLOYABLE_BASELINES = ("static_table", "cascade", "tuned_rule", "exits")
"""Keys of the baselines that can be deployed instead of a gate."""
_GAINS = (*DEPLOYABLE_BASELINES, "patterns")  # baselines whose gains are columns of ``to_frame``
_SOMETIMES = ("tuned_rule", "exits")
"""Those that are columns only if a gate has several passes, or if the network has exits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedRun:
    """A run with the results of its evaluation."""

    path: str  # folder of the run, as given by the user
    settings: Mapping[str, object]  # flat configuration, by dotted name
    command: str  # command line that started the run
    evaluation: str  # command line that shows the evaluation
    backbone: str  # digest of the backbone's weights, before any co-training
    figure_prefix: str  # common prefix of the paths of the evaluation's figures
    images_seen: int  # number of training images, repeats counted
    seconds: float | None  # training time, None if not recorded
    summary: EvaluationSummary
    reported: Results  # per-image results on the reported split
    selection: Results  # and on the selection split, of methods that can be deployed

    @property
    def is_cotrained(self) -> bool:
        """True if the backbone was trained together with the gate."""
        return any(key.endswith(BEFORE) for key in self.reported)

    def best_reported(self, key: str) -> PerImageResults:
        """Return the results of a method on the reported split.

        A co-trained gate has each baseline before and after co-training; the more accurate one on
        the selection split counts.
        """
        chosen = {k: self.selection[k] for k in (key, f"{key}{BEFORE}") if k in self.selection}
        best = max(chosen, key=lambda k: float(chosen[k].correct.double().mean()), default=key)
        return self.reported[best]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of a figure over seeds."""

    mean: float
    deviation: float | None  # None for a single seed

    @property
    def is_significant(self) -> bool:
        """True for a gain of more than two standard deviations; False for a single seed."""
        return self.deviation is not None and self.mean > 2 * self.deviation


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of the values of all seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One gate or baseline, over its seeds; accuracy and computation are in percent."""

    label: str
    kind: str  # "gate", or the key of a baseline
    family: str  # label without budget or cost weight (gates), or without cost (baselines)
    runs: tuple[str, ...]  # folders
    seeds: tuple[int, ...]
    budget: float | None  # of the mean computation
    accuracy: Spread
    computation: Spread
    selection_accuracy: float  # on the selection split, where points are chosen
    selection_computation: float
    patterns: Spread | None = None  # number of distinct bit patterns of a gate
    gains: Mapping[str, Spread] = field(default_factory=dict)
    """Accuracy of a gate minus that of each baseline at up to 5 % more than its cost, in points."""
    complexity: int
    """Rank for ties: the number of distinct bits of a static bit table; a cascade or exits have
    more, and a gate has most."""
    better_than: tuple[str, ...] = ()
    """Baselines that a gate exceeds by more than two standard deviations over seeds and
    significantly over images. Those chosen from candidates that include uniform settings count only
    if it also exceeds every uniform setting of up to 5 % more cost."""
    tied: tuple[str, ...] = ()  # baselines whose difference is not significant over images
    cotrained: bool = False  # runs on the co-trained backbone
    milliseconds: Spread | None = None  # measured time per image, None without a profile
    selection_milliseconds: float | None = None

    def cost(self, name: CostName) -> Spread:
        """Return computation or measured time, which must be there."""
        value: Spread | None = getattr(self, name)
        assert value is not None, f"points have {name}"
        return value

    def selection_cost(self, name: CostName) -> float:
        """Return the mean computation or measured time on the selection split."""
        value: float | None = getattr(self, f"selection_{name}")
        assert value is not None, f"points have {name}"
        return value


@dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """Methods at one budget (``dfs_rl.evaluation.budgets``)."""

    budget: float
    recommended: str | None  # label of a point, None if no point is within the budget
    tied: tuple[str, ...]  # labels of the other points tied with it on the selection split
    methods: Mapping[str, str]  # label of each method's point, by family
    over_budget: tuple[str, ...]  # labels of those trained for the budget that exceed it


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Difference in accuracy between two gates of about the same cost, in points."""

    first: str
    second: str
    difference: float  # of the first minus the second, mean over seeds
    low: float  # ends of the 95 % interval over images
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Figures of a gate over all its budgets or cost weights, or of a baseline at the same costs.

    Hypervolumes are in percent of accuracy times decades of computation, bounded by the reference
    point of the comparison. Intervals are over images, of means over seeds.
    """

    label: str
    gate: str  # label of the gate that determines the costs
    baseline: str | None  # for example "cascades"; None for a gate
    points: int  # number of budgets or cost weights
    seeds: int  # number of seeds that have every point
    n_incomplete_seeds: int  # number of the others, which are left out
    hypervolume: Spread
    interval: Interval
    accuracy_at: Mapping[str, Spread]  # by computation, within the range of every seed
    accuracy_interval: Mapping[str, Interval]  # within the range in nearly every draw
    histograms: tuple[tuple[tuple[float, ...], ...], ...]
    """Share of passes per layer and option, averaged over seeds, ``[points, layers, options]``,
    cheapest first; empty for baselines."""
    computations: tuple[float, ...]  # mean of each point in percent, cheapest first


@dataclass(frozen=True, kw_only=True)
class CurvePair:
    """Difference in hypervolume between two curves over the same images."""

    first: str
    second: str
    difference: float  # of the first minus the second, each averaged over seeds
    interval: Interval  # over images
    spread: Spread | None  # over seeds; None for a single seed or different seeds


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Training cost of one kind of gate."""

    label: str
    trainings: int  # number of runs
    images: int  # of all runs, repeats counted
    seconds: float | None  # of all runs, None if not recorded for every one


@dataclass(frozen=True, kw_only=True)
class ComputationByDifficulty:
    """Mean computation of a gate in each difficulty class, divided by that of all images."""

    label: str
    family: str
    relative: tuple[float | None, ...]  # None for a class with too few images


@dataclass(frozen=True, kw_only=True)
class ComparisonOfRuns:
    """All figures of a comparison of runs; all choices are made on the selection split."""

    dataset: str
    split: str  # the reported split
    n: int  # number of its images
    options: tuple[int, ...]
    points: tuple[Point, ...]  # gates and their baselines, cheapest first
    references: tuple[Point, ...]  # uniform settings and full precision, cheapest first
    budgets: tuple[BudgetResult, ...]  # lowest first; empty if a gate has no point at any
    pairs: tuple[Pair, ...]
    curves: tuple[Curve, ...]  # gates with more than one budget, each with its baselines
    curve_pairs: tuple[CurvePair, ...]  # each gate against its baselines and other gates
    reference_accuracy: float  # of the reference point of hypervolumes, in percent
    reference_computation: float
    trainings: tuple[TrainingCost, ...]
    difficulty: tuple[str, ...]  # classes: the cheapest uniform setting that is correct
    difficulty_shares: tuple[float, ...]  # share of the images in each class
    computation_by_difficulty: tuple[ComputationByDifficulty, ...]
    pareto_front: tuple[str, ...]  # labels of the points recommended as the cost may grow
    verdict: tuple[str, ...]  # sentences
    failed: Mapping[str, str]  # reason of each run that could not be evaluated
    cost_model: str = COMPUTATION
    timing: Timing | None = None  # how milliseconds were measured, None without them
    pareto_front_milliseconds: tuple[str, ...] = ()  # as ``pareto_front``, by measured time

    def to_frame(self) -> pd.DataFrame:
        """Return one row per point: means and standard deviations over seeds, gains included."""
        rows = []
        found = {key for point in self.points for key in point.gains}
        gains = [key for key in _GAINS if key not in _SOMETIMES or key in found]
        names = ["accuracy", "computation", *(["milliseconds"] if self.timing else []), *gains]
        for point in (*self.points, *self.references):
            row = {"label": point.label, "kind": point.kind, "seeds": len(point.seeds)}
            for name in names:
                value = point.gains.get(name) if name in gains else getattr(point, name)
                row[f"{name}_mean"] = None if value is None else value.mean
                row[f"{name}_sd"] = None if value is None else value.deviation
            rows.append(row)
        frame = pd.DataFrame(rows)  # None becomes NaN
        return frame.astype({name: float for name in frame if name.endswith(("_mean", "_sd"))})
