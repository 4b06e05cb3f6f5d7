"""The summary of an evaluation: every method's figures, their differences and a verdict, as one record."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dfs_rl.costs import FULL, CostTable, relative_cost
from dfs_rl.evaluation.baselines.methods import MethodResult
from dfs_rl.evaluation.metrics import (
    accuracy_error,
    accuracy_percent,
    class_accuracy,
    paired_difference,
)
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.scoring import static_table_bits
from dfs_rl.evaluation.verdict import (
    Comparison,
    beyond_marginals,
    comparison_outcome,
    verdict_sentences,
)

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """Figures of one method on the reported split.

    Attributes:
        key: Stable name, see ``MethodResult``.
        label: Name in tables and plots.
        role: ``"gate"``, ``"fixed"``, ``"matched"`` or ``"oracle"``, see ``MethodResult``.
        n: Number of images.
        accuracy: Percent; the mean over the draws.
        accuracy_error: Binomial standard error in points: the choice of images, not the seed.
        draws: How many times it was run, more than 1 for random methods only.
        draws_deviation: Standard deviation of the accuracy over the draws, None for one draw.
        computation: Mean computation in percent, gate, stem, shortcuts and head included.
        computation_dfs: Mean computation in percent of the gated layers alone, as DFS counts.
        bitops: Mean BitOPs per image, everything included.
        patterns: Distinct rows of options; the mean over the draws.
        class_accuracy: Percent per class, None where the split has no image of it.
        chosen_on: Split that its choices were made on, None where there was nothing to choose.
        detail: What was chosen, in words.
        table: Bits of each layer that a static table comes to, None for all else.
        exit_shares: Share of the images that left by each exit, in [0, 1]; the mean over the draws.
    """

    key: str
    label: str
    role: str
    n: int
    accuracy: float
    accuracy_error: float
    draws: int
    draws_deviation: float | None
    computation: float
    computation_dfs: float
    bitops: float
    patterns: float
    class_accuracy: tuple[float | None, ...]
    chosen_on: str | None
    detail: str
    table: tuple[int, ...] | None
    exit_shares: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CostShare:
    """What is paid beside the gated layers.

    Attributes:
        name: ``gate``, ``exits``, or the name of a never-gated part.
        macs: MACs per image; the mean where some leave early or run twice.
        bits: Its precision.
        percent: Its computation in percent of all gated layers at 32 bit.
    """

    name: str
    macs: float
    bits: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """How hard the best static table was searched for; see ``SearchResult``."""

    accuracy: float
    computation: float
    budget: float
    tables: int
    images: int
    finalists: int
    exhaustive: bool


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """All figures of one evaluation.

    Attributes:
        format: Version of this record.
        identity: Digest of what was evaluated: weights, gate, data and search limits.
        dataset: Name of the data set.
        fingerprint: Its content.
        split: Reported split.
        n: Its number of images.
        class_names: In label order.
        options: The menu of bits.
        layers: Number of gated layers.
        methods: The gate first, if there is one.
        comparisons: The gate against each other method, in the same order.
        beyond_marginals: Whether the gate beats its mode table and its own options and patterns
            dealt out to other images; None without a gate.
        verdict: The same in words, one sentence each.
        shares: What the gate and the fixed parts cost.
        histogram: How often the gate ran each layer at each option, in [0, 1], a cascade in the
            pass that gave the answer; empty without one. Where there are exits, a last column has
            the share of images that had left.
        search: How the best static table was found, None without a gate.
        exits_after: After how many layers there is an exit.
    """

    format: int = FORMAT
    identity: str
    dataset: str
    fingerprint: str
    split: str
    n: int
    class_names: tuple[str, ...]
    options: tuple[int, ...]
    layers: int
    methods: tuple[MethodSummary, ...]
    comparisons: tuple[Comparison, ...]
    beyond_marginals: bool | None
    verdict: tuple[str, ...]
    shares: tuple[CostShare, ...]
    histogram: tuple[tuple[float, ...], ...]
    search: SearchSummary | None
    exits_after: tuple[int, ...] = ()

    def method(self, key: str) -> MethodSummary | None:
        """Return the method of that key, None if it was not run."""
        return next((method for method in self.methods if method.key == key), None)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated, for the head of a summary; fields as in ``EvaluationSummary``."""

    identity: str
    dataset: str
    fingerprint: str
    split: str
    class_names: tuple[str, ...]


def summarize(
    methods: Sequence[MethodResult], costs: CostTable, subject: Subject
) -> EvaluationSummary:
    """Boil methods down to a summary.

    Args:
        methods: The gate first if there is one, then everything it is compared with.
        costs: What options cost.
        subject: What was evaluated.
    """
    summaries = tuple(
        summarize_method(method, costs, len(subject.class_names)) for method in methods
    )
    gate = methods[0] if methods[0].role == "gate" else None
    comparisons: tuple[Comparison, ...] = ()
    if gate is not None:
        comparisons = tuple(
            _compare(gate, baseline, summaries[0], summary)
            for baseline, summary in zip(methods[1:], summaries[1:], strict=True)
        )
    searches = [method.search for method in methods if method.search is not None]
    learned = beyond_marginals(comparisons)
    records = methods[0].records[0]
    return EvaluationSummary(
        identity=subject.identity,
        dataset=subject.dataset,
        fingerprint=subject.fingerprint,
        split=subject.split,
        n=len(records),
        class_names=subject.class_names,
        options=costs.options.values,
        layers=costs.n_layers,
        methods=summaries,
        comparisons=comparisons,
        beyond_marginals=learned,
        verdict=verdict_sentences(comparisons, summaries[0].accuracy, summaries[0].patterns)
        if gate
        else (),
        shares=_shares(costs, records),
        histogram=_histogram(records, costs.n_actions) if gate else (),
        exits_after=costs.exits_after,
        search=SearchSummary(
            **{name: getattr(searches[0], name) for name in SearchSummary.__dataclass_fields__}
        )
        if searches
        else None,
    )


def summarize_method(method: MethodResult, costs: CostTable, n_classes: int) -> MethodSummary:
    """Return the figures of one method, averaged over its draws."""
    outcome = _mean_correct(method)
    draws = [records.accuracy for records in method.records]
    accuracy = accuracy_percent(outcome)
    first = method.records[0]
    return MethodSummary(
        key=method.key,
        label=method.label,
        role=method.role,
        n=len(first),
        accuracy=accuracy,
        accuracy_error=accuracy_error(accuracy, len(first)),
        draws=len(draws),
        draws_deviation=torch.tensor(draws).std().item() if len(draws) > 1 else None,
        computation=_mean([r.computation(costs).mean().item() for r in method.records]),
        computation_dfs=_mean([r.computation(costs, "dfs").mean().item() for r in method.records]),
        bitops=_mean([r.bitops(costs).mean().item() for r in method.records]),
        patterns=_mean([float(r.patterns) for r in method.records]),
        class_accuracy=class_accuracy(outcome, first.labels, n_classes),
        chosen_on=method.chosen_on,
        detail=method.detail,
        table=None if method.table is None else static_table_bits(method.table, costs.options),
        exit_shares=_exit_shares(method, costs),
    )


def _mean_correct(method: MethodResult) -> torch.Tensor:
    """How often each image was classified rightly over the draws; float64 ``[n]`` in [0, 1]."""
    return torch.stack([records.correct.double() for records in method.records]).mean(dim=0)


def _compare(
    gate: MethodResult, baseline: MethodResult, gate_summary: MethodSummary, summary: MethodSummary
) -> Comparison:
    difference = paired_difference(_mean_correct(gate), _mean_correct(baseline))
    relative = gate_summary.computation / summary.computation if summary.computation > 0 else None
    return Comparison(
        key=baseline.key,
        label=baseline.label,
        role=baseline.role,
        difference=difference.difference,
        low=difference.low,
        high=difference.high,
        relative_computation=relative,
        outcome=comparison_outcome(difference, relative),
    )


def _shares(costs: CostTable, records: GateRecords) -> tuple[CostShare, ...]:
    gate, taken = [], records.gate_macs_taken
    if records.gate_macs > 0:
        macs = records.gate_macs if taken is None else taken.mean().item()
        gate = [_share("gate", macs, FULL, costs)]
    n_layers_run = costs.n_layers_run(records.options)  # [n]
    # A cascade walks to the end, and some images do so twice.
    passes = 1.0
    if records.first_pass is not None:
        passes += records.first_pass.escalated.double().mean().item()
    fixed: dict[tuple[str, int], float] = {}
    for part in costs.fixed:
        needed = 0 if part.layer is None else min(part.layer + 1, costs.n_layers)
        reached = (n_layers_run >= needed).double().mean().item()
        key = (part.name, part.bits)
        fixed[key] = fixed.get(key, 0.0) + part.macs * reached * passes
    for leaves, exit_ in zip(records.exit_shares(costs), costs.exits, strict=True):
        if leaves > 0:
            key = ("exits", exit_.bits)
            fixed[key] = fixed.get(key, 0.0) + exit_.macs * leaves
    return (*gate, *(_share(name, macs, bits, costs) for (name, bits), macs in fixed.items()))


def _share(name: str, macs: float, bits: int, costs: CostTable) -> CostShare:
    percent = 100.0 * macs * relative_cost(bits) / costs.total_macs
    return CostShare(name=name, macs=float(macs), bits=bits, percent=percent)


def _exit_shares(method: MethodResult, costs: CostTable) -> tuple[float, ...]:
    draws = [records.exit_shares(costs) for records in method.records]
    return tuple(_mean(shares) for shares in zip(*draws, strict=True))


def _histogram(records: GateRecords, n_options: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in records.histogram(n_options).tolist())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
