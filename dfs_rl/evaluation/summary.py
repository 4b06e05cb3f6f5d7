"""Summary of an evaluation: figures of every method, their differences and a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dfs_rl.costs import COMPUTATION, FULL, CostTable
from dfs_rl.evaluation.baselines.registry import MethodResult, Role
from dfs_rl.evaluation.metrics import (
    accuracy_error,
    accuracy_percent,
    class_accuracy,
    paired_difference,
)
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.scoring import static_table_bits
from dfs_rl.evaluation.static_tables.search import SearchSummary
from dfs_rl.evaluation.verdict import (
    Comparison,
    beyond_marginals,
    comparison_outcome,
    verdict_sentences,
)

FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """Figures of one method on the reported split.

    Attributes:
        key: Stable name, as in ``MethodResult``.
        label: Name in tables and plots.
        role: Role, as in ``MethodResult``.
        n: Number of images.
        accuracy: Accuracy in percent, averaged over draws.
        accuracy_error: Binomial standard error in points, over the choice of images, not the seed.
        draws: Number of runs, more than 1 for random methods only.
        draws_deviation: Standard deviation of the accuracy over the draws, None for one draw.
        computation: Mean computation in percent, gate, stem, shortcuts and head included.
        computation_dfs: Mean computation in percent of the gated layers alone, as DFS counts.
        bitops: Mean BitOPs per image, everything included.
        patterns: Number of distinct rows of options, averaged over draws.
        class_accuracy: Accuracy of each class in percent, None for a class without images.
        chosen_on: Split used to choose the method's parameters, None if it has none.
        detail: Description of the chosen parameters.
        table: Bits of each layer of a static bit table, None for other methods.
        exit_shares: Share of the images that take each exit, in [0, 1], averaged over draws.
    """

    key: str
    label: str
    role: Role
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
    """Cost of one part outside the gated layers.

    Attributes:
        name: ``gate``, ``exits``, or the name of a never-gated part.
        macs: Mean MACs per image; images may exit early or run twice.
        bits: Precision of the part.
        percent: Computation of the part in percent of all gated layers at 32 bit.
    """

    name: str
    macs: float
    bits: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """All figures of one evaluation.

    Attributes:
        format: Version of this record.
        identity: Digest of weights, gate, data and search limits.
        dataset: Name of the data set.
        fingerprint: Digest of the data set's content.
        split: Reported split.
        n: Number of images in the reported split.
        class_names: Class names in label order.
        options: Bit options.
        layers: Number of gated layers.
        methods: Figures of each method, the gate first if there is one.
        comparisons: Comparison of the gate with each other method, in the same order.
        beyond_marginals: True if the gate beats its mode table and its own options and patterns
            shuffled across images; None without a gate.
        verdict: Verdict, one sentence per entry.
        shares: Cost of the gate and the fixed parts.
        histogram: Share of images, in [0, 1], that run each layer at each option; the pass that
            made the prediction for a cascade; empty without a gate. With exits, a last column has
            the share of images that exited before the layer.
        search: Search for the best static bit table, None without a search.
        exits_after: Number of layers before each exit.
        cost_model: Cost model that all figures of computation follow.
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
    cost_model: str = COMPUTATION

    def method(self, key: str) -> MethodSummary | None:
        """Return the figures of the method with a key, None if the method was not run."""
        return next((method for method in self.methods if method.key == key), None)


def summarize(
    methods: Sequence[MethodResult],
    costs: CostTable,
    *,
    identity: str,
    dataset: str,
    fingerprint: str,
    split: str,
    class_names: tuple[str, ...],
) -> EvaluationSummary:
    """Compute the summary of an evaluation.

    Args:
        methods: Results of the gate, if there is one, followed by those of the baselines.
        costs: Cost table of the backbone.
        identity: As in ``EvaluationSummary``.
        dataset: As in ``EvaluationSummary``.
        fingerprint: As in ``EvaluationSummary``.
        split: As in ``EvaluationSummary``.
        class_names: As in ``EvaluationSummary``.
    """
    summaries = tuple(_summarize_method(method, costs, len(class_names)) for method in methods)
    has_gate = methods[0].role == "gate"
    comparisons = tuple(
        _compare(methods[0], baseline, summaries[0], summary)
        for baseline, summary in zip(methods[1:], summaries[1:], strict=True)
        if has_gate
    )
    records = methods[0].records[0]
    return EvaluationSummary(
        identity=identity,
        dataset=dataset,
        fingerprint=fingerprint,
        split=split,
        n=len(records),
        class_names=class_names,
        options=costs.options.values,
        layers=costs.n_layers,
        methods=summaries,
        comparisons=comparisons,
        beyond_marginals=beyond_marginals(comparisons),
        verdict=verdict_sentences(comparisons, summaries[0].accuracy, summaries[0].patterns)
        if has_gate
        else (),
        shares=_shares(costs, records),
        histogram=tuple(map(tuple, records.histogram(costs.n_actions).tolist()))
        if has_gate
        else (),
        search=next((method.search for method in methods if method.search is not None), None),
        exits_after=costs.exits_after,
        cost_model=costs.cost_model,
    )


def _summarize_method(method: MethodResult, costs: CostTable, n_classes: int) -> MethodSummary:
    """Return the figures of one method, averaged over its draws."""
    correct = _mean_correct(method)
    draws = [records.accuracy for records in method.records]
    accuracy = accuracy_percent(correct)
    first = method.records[0]
    exit_shares = zip(*(records.exit_shares(costs) for records in method.records), strict=True)
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
        class_accuracy=class_accuracy(correct, first.labels, n_classes),
        chosen_on=method.chosen_on,
        detail=method.detail,
        table=None if method.table is None else static_table_bits(method.table, costs.options),
        exit_shares=tuple(_mean(shares) for shares in exit_shares),
    )


def _mean_correct(method: MethodResult) -> torch.Tensor:
    """Return the share of draws that classify each image correctly, float64 ``[n]``."""
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
    # Every pass of a cascade runs to the head, and escalated images need two passes.
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
    return CostShare(name=name, macs=float(macs), bits=bits, percent=costs.percent(macs, bits))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
