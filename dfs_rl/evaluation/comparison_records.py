"""What a comparison of runs is made from and what comes of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfs_rl.evaluation.per_image_results import SplitResults
from dfs_rl.evaluation.summary import EvaluationSummary

GATE = "gate"
"""Kind of a point that is a gate, and key of a gate's outcomes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedRun:
    """A run with what its evaluation found.

    Attributes:
        path: Its folder, as the user named it.
        settings: Its configuration, flat, by dotted name.
        command: The command line that made it.
        evaluation: The one that shows these figures.
        backbone: Digest of the backbone's weights, before co-training if there was any.
        figure_prefix: What the paths of its evaluation's pictures begin with.
        images_seen: How many images it learned from, repeats counted.
        seconds: How long that took, None where it was not recorded.
        summary: Figures of its gate and baselines.
        results: What each of them did with every image.
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


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: Its mean.
        deviation: Its standard deviation, None for a single seed.
    """

    mean: float
    deviation: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a figure would lie with other test images, in 95 of 100 cases.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One gate, over its seeds.

    Attributes:
        label: What tables and plots call it.
        kind: ``"gate"``, or the key of a baseline for a point that is one.
        family: Label of a gate without its budget or price, which all points of its curve share; of
            a baseline without its cost.
        runs: Folders of its runs.
        seeds: Their seeds.
        budget: What images may cost on average, in percent, if that was asked for.
        accuracy: In percent.
        computation: Mean over images in percent, everything included.
        selection_accuracy: Mean accuracy on the selection split, by which points are chosen.
        selection_computation: Mean computation there.
        patterns: Distinct bit patterns; of baselines None.
        gains: Accuracy minus that of each baseline at no more than its cost, in points, by the
            baseline's key; empty for baselines.
        better_than: The baselines that it is above by more than two standard deviations over seeds,
            and beyond chance over images. It is above none that is chosen from what includes
            uniform settings where it is not above each of those at no more than its cost.
        tied: The baselines that the images cannot tell it from.
        complexity: Of points that cannot be told apart the one with the lowest is taken. Of a
            static table it is the number of its distinct bits, 1 where it is uniform; that of a
            cascade or of exits is higher, and that of a gate higher still.
        cotrained: Whether it runs on what co-training made of the backbone.
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
    """What there is at one budget, see ``dfs_rl.evaluation.budgets``.

    Attributes:
        budget: What images may cost on average, in percent.
        recommended: Label of the point to ship there; None if nothing is as cheap.
        tied: Labels of the others there that the selection split cannot tell from it.
        methods: Label of the point that each method stands there with, by its family; a method that
            costs more has none.
        over_budget: Labels of those among them that were asked to keep to the budget and do not.
    """

    budget: float
    recommended: str | None
    tied: tuple[str, ...]
    methods: Mapping[str, str]
    over_budget: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two gates at about the same cost.

    Attributes:
        first: Label of the one.
        second: Label of the other.
        difference: Accuracy of the first minus that of the second, mean over their seeds, in
            points.
        low: Lower end of the 95 % interval over images.
        high: Upper end of it.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A kind of gate over all budgets or prices that it was trained for, or what one could ship instead at the same costs.

    Attributes:
        label: What tables call it.
        gate: Label of the gate at whose costs it is; its own for a gate.
        baseline: What it is without that gate, for example ``"confidence cascades"``; None for a
            gate.
        points: How many budgets or prices.
        seeds: How many seeds have all of them; the others do not count.
        n_incomplete_seeds: How many others there are.
        hypervolume: Area that it dominates in each seed, percent of accuracy times decades of
            computation, up to the comparison's worst accuracy and computation.
        interval: Of the area's mean over seeds, over images.
        accuracy_at: Accuracy at fixed computations, for those within the range of every seed.
        accuracy_interval: Of their means over seeds, over images; for those that are within the
            range in nearly every draw.
        histograms: How often each layer runs at each option, mean over seeds, ``[points, layers,
            options]``, cheapest first; empty for what could be shipped instead.
        computations: Mean computation at each of these points.
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
    """Two curves over the same images.

    Attributes:
        first: Label of the one.
        second: Label of the other.
        difference: Area of the first minus that of the second, means over their seeds.
        interval: Of it, over images.
        spread: Of it, over the seeds that both have; None for a single one, and for different ones.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    spread: Spread | None


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What it took to train one kind of gate.

    Attributes:
        label: What tables call it.
        trainings: How many there were.
        images: Images that all of them learned from, repeats counted.
        seconds: How long they took together, None where that was not recorded.
    """

    label: str
    trainings: int
    images: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ComputationByDifficulty:
    """How much a gate spends on images of different difficulty.

    Attributes:
        label: The gate.
        family: Its label without its budget or price.
        relative: Mean computation of the images of each class, over that of all images; None for a
            class of hardly any images.
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
        n: Its number of images.
        options: The menu of bits.
        points: Gates and their baselines, cheapest first.
        references: Uniform settings and full precision, cheapest first.
        budgets: What there is at each budget that gates were asked for, lowest first; empty if a
            gate has nothing at any of them.
        pairs: Gates that cost about the same, each with each.
        curves: Gates with more than one budget or price as curves, each with its baselines at the
            same costs.
        curve_pairs: Each curve of a gate with its baselines' and with every other gate's.
        reference_accuracy: Above which areas lie, in percent, see ``hypervolume_reference_point``.
        reference_computation: Left of which they lie, in percent.
        trainings: What training each kind of gate took.
        difficulty: Names of classes of images: which uniform bits are the fewest that classify them
            rightly.
        difficulty_shares: Share of the images in each.
        computation_by_difficulty: What each gate spends on them.
        pareto_front: Labels of the points, references among them, that are taken as more
            computation is allowed, cheapest first. They are chosen on the selection split as those
            at budgets are; the reported split has no part in it.
        verdict: What to ship, in sentences.
        differences: Which gates are above which, in sentences.
        failed: Runs that could not be evaluated, each with its reason.
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
    differences: tuple[str, ...]
    failed: Mapping[str, str]

    @property
    def families(self) -> list[str]:
        """Labels of the gates without budgets, in the order in which pictures colour them."""
        return list(dict.fromkeys(point.family for point in self.points if point.kind == GATE))
