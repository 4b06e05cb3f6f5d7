"""Summary of an evaluation, and the per-image results of every method stored next to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import COMPUTATION, FULL, CostTable
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.baselines.registry import MethodResult, Role
from dfs_rl.evaluation.metrics import (
    accuracy_error,
    accuracy_percent,
    class_accuracy,
    mean,
    paired_difference,
)
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.scoring import static_table_bits
from dfs_rl.evaluation.static_tables.search import SearchSummary
from dfs_rl.evaluation.timing import CostName, Timing, gate_time_sentences, timing_of
from dfs_rl.evaluation.verdict import (
    Comparison,
    beyond_marginals,
    budget_sentences,
    comparison_outcome,
    verdict_sentences,
)
from dfs_rl.utils.checkpoint import load_tensors, save_tensors

FORMAT = 6


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """Figures of one method on the reported split, averaged over its draws."""

    key: str  # key, label, role, chosen_on and detail: as in ``MethodResult``
    label: str
    role: Role
    n: int  # number of images
    accuracy: float  # in percent
    accuracy_error: float  # binomial standard error over the choice of images, not the seed
    draws: int  # number of runs, more than 1 for random methods only
    draws_deviation: float | None  # standard deviation of the accuracy, None for one draw
    computation: float  # mean in percent, gate, stem, shortcuts and head included
    computation_dfs: float  # mean in percent of the gated layers alone, as DFS counts
    bitops: float  # mean per image, everything included
    patterns: float  # number of distinct rows of options
    class_accuracy: tuple[float | None, ...]  # in percent, None for a class without images
    chosen_on: str | None
    detail: str
    table: tuple[int, ...] | None  # bits of each layer of a static bit table
    exit_shares: tuple[float, ...] = ()  # share of the images that take each exit, in [0, 1]
    milliseconds: float | None = None  # mean measured time per image, None without a profile

    def cost(self, name: CostName) -> float:
        """Return computation or measured time, which must be there."""
        value: float | None = getattr(self, name)
        assert value is not None, f"methods have {name}"
        return value


@dataclass(frozen=True, kw_only=True)
class CostShare:
    """Cost of one part outside the gated layers."""

    name: str  # "gate", "exits", or the name of a never-gated part
    macs: float  # mean per image; images may exit early or run twice
    bits: int
    percent: float  # of the computation of all gated layers at 32 bit


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """All figures of one evaluation."""

    format: int = FORMAT
    identity: str  # digest of weights, gate, data and search limits
    dataset: str
    fingerprint: str  # digest of the data set's content
    split: str  # reported split
    n: int  # number of its images
    class_names: tuple[str, ...]  # in label order
    options: tuple[int, ...]
    layers: int
    methods: tuple[MethodSummary, ...]  # the gate first if there is one
    comparisons: tuple[Comparison, ...]  # of the gate with each other method, in the same order
    beyond_marginals: bool | None  # see ``verdict.beyond_marginals``; None without a gate
    verdict: tuple[str, ...]  # sentences
    shares: tuple[CostShare, ...]  # of the gate and the fixed parts
    histogram: tuple[tuple[float, ...], ...]
    """Share of passes, in [0, 1], that run each layer at each option; empty without a gate. With
    exits, a last column has the share of passes that exited before the layer."""
    search: SearchSummary | None  # None without a search for the best static bit table
    exits_after: tuple[int, ...] = ()  # number of layers before each exit
    cost_model: str = COMPUTATION  # that all figures of computation follow
    timing: Timing | None = None  # how milliseconds were measured, None without them
    pass_histograms: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """Share of images that run each layer at each option, by pass; empty without further passes."""

    @property
    def by_key(self) -> dict[str, MethodSummary]:
        """Figures of each method, by its key."""
        return {method.key: method for method in self.methods}


def summarize(
    methods: Sequence[MethodResult],
    costs: CostTable,
    *,
    measured: CostTable | None = None,
    budget: float | None = None,
    identity: str,
    dataset: str,
    fingerprint: str,
    split: str,
    class_names: tuple[str, ...],
) -> EvaluationSummary:
    """Compute the summary of an evaluation.

    The result of the gate is the first of ``methods``, if there is one. ``measured`` are the same
    costs by the cost model ``latency``, None without measured times; ``budget`` is that of the
    gate's mean computation in percent. The arguments after it are as in ``EvaluationSummary``.
    """
    n_classes = len(class_names)
    summaries = tuple(_summarize_method(m, costs, measured, n_classes) for m in methods)
    records, gate = methods[0].records[0], summaries[0]
    comparisons: list[Comparison] = []
    verdict: tuple[str, ...] = ()
    histogram: tuple[tuple[float, ...], ...] = ()
    passes: tuple[tuple[tuple[float, ...], ...], ...] = ()
    if gate.role == "gate":
        pairs = zip(methods[1:], summaries[1:], strict=True)
        comparisons = [_compare(methods[0], gate, *pair) for pair in pairs]
        verdict = budget_sentences(gate.computation, budget, partial(costs.cost_text, digits=3))
        verdict += verdict_sentences(
            comparisons,
            accuracy=gate.accuracy,
            computation=gate.computation,
            patterns=gate.patterns,
            milliseconds=gate.milliseconds,
            cost_model=costs.cost_model,
        )
        if measured is not None:
            verdict += gate_time_sentences(records.computed_pass_macs, measured)
        histogram = tuple(map(tuple, records.histogram(costs.n_actions).tolist()))
        if records.earlier is not None:
            found = records.pass_histograms(costs.n_actions).tolist()
            passes = tuple(tuple(map(tuple, each)) for each in found)
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
        comparisons=tuple(comparisons),
        beyond_marginals=beyond_marginals(comparisons),
        verdict=verdict,
        shares=_shares(costs, records),
        histogram=histogram,
        search=next((method.search for method in methods if method.search is not None), None),
        exits_after=costs.exits_after,
        cost_model=costs.cost_model,
        timing=None if measured is None else timing_of(measured),
        pass_histograms=passes,
    )


def _summarize_method(
    method: MethodResult, costs: CostTable, measured: CostTable | None, n_classes: int
) -> MethodSummary:
    records, correct = method.records, _mean_correct(method)
    draws = [one.accuracy for one in records]
    accuracy, n = accuracy_percent(correct), len(records[0])
    exit_shares = zip(*(one.exit_shares(costs) for one in records), strict=True)
    return MethodSummary(
        key=method.key,
        label=method.label,
        role=method.role,
        n=n,
        accuracy=accuracy,
        accuracy_error=accuracy_error(accuracy, n),
        draws=len(draws),
        draws_deviation=torch.tensor(draws).std().item() if len(draws) > 1 else None,
        computation=mean([one.computation(costs).mean().item() for one in records]),
        computation_dfs=mean([one.computation(costs, "dfs").mean().item() for one in records]),
        bitops=mean([one.bitops(costs).mean().item() for one in records]),
        patterns=mean([float(one.patterns) for one in records]),
        class_accuracy=class_accuracy(correct, records[0].labels, n_classes),
        chosen_on=method.chosen_on,
        detail=method.detail,
        table=None if method.table is None else static_table_bits(method.table, costs.options),
        exit_shares=tuple(map(mean, exit_shares)),
        milliseconds=None
        if measured is None
        else mean([one.milliseconds(measured).mean().item() for one in records]),
    )


def _mean_correct(method: MethodResult) -> Tensor:
    """Return the share of draws that are right on each image, float64 ``[n]``."""
    return torch.stack([records.correct.double() for records in method.records]).mean(dim=0)


def _compare(
    gate: MethodResult, gate_summary: MethodSummary, baseline: MethodResult, summary: MethodSummary
) -> Comparison:
    difference = paired_difference(_mean_correct(gate), _mean_correct(baseline))
    relative = gate_summary.computation / summary.computation if summary.computation else None
    ours, theirs = gate_summary.milliseconds, summary.milliseconds
    return Comparison(
        key=baseline.key,
        label=baseline.label,
        role=baseline.role,
        **difference._asdict(),
        relative_computation=relative,
        outcome=comparison_outcome(difference, relative),
        relative_milliseconds=ours / theirs if ours is not None and theirs else None,
    )


def _shares(costs: CostTable, records: GateRecords) -> tuple[CostShare, ...]:
    """Return the mean cost of the gate and of all parts that are not gated."""

    def mean_runs(runs: Callable[[Tensor], Tensor]) -> float:
        """Return the mean number of passes of an image in which a part runs, given their layers."""
        return records.total(lambda o: runs(costs.n_layers_run(o)).double()).mean().item()

    parts: list[tuple[str, int, float, float]] = []  # name, bits, MACs and cost
    if records.gate_macs > 0:
        taken = records.gate_macs_taken
        macs = records.gate_macs if taken is None else taken.mean().item()
        parts.append(("gate", FULL, macs, costs.gate_cost(macs)))
    for part in costs.fixed:
        needed = 0 if part.layer is None else min(part.layer + 1, costs.n_layers)
        runs = mean_runs(partial(torch.ge, other=needed))
        parts.append((part.name, part.bits, part.macs * runs, costs.part_cost(part) * runs))
    for exit_ in costs.exits:
        leaves = mean_runs(partial(torch.eq, other=exit_.after))
        if leaves > 0:
            cost = costs.part_cost(exit_) * leaves
            parts.append(("exits", exit_.bits, exit_.macs * leaves, cost))
    shares: dict[tuple[str, int], tuple[float, float]] = {}
    for name, bits, macs, cost in parts:
        before = shares.get((name, bits), (0.0, 0.0))
        shares[name, bits] = before[0] + macs, before[1] + cost
    return tuple(
        CostShare(name=name, macs=float(macs), bits=bits, percent=costs.percent(cost))
        for (name, bits), (macs, cost) in shares.items()
    )


class PerImageResults(NamedTuple):
    """Results of a method on each image of a split, averaged over its draws."""

    correct: Tensor  # share of draws that classify the image correctly, float32 [n]
    computation: Tensor  # in percent, everything included, float32 [n]
    milliseconds: Tensor | None = None  # measured time, float32 [n]; None without a profile


Results = Mapping[str, PerImageResults]
"""Results on a split by the method's key."""


def per_image_results_of(
    methods: Sequence[MethodResult], costs: CostTable, measured: CostTable | None = None
) -> tuple[Results, Results]:
    """Average every method's records over its draws, on the reported and on the selection split.

    The latter has only methods that can be deployed; ``measured`` is as in ``summarize``.
    """

    def average(records: Sequence[GateRecords]) -> PerImageResults:
        values = [[r.correct.double() for r in records], [r.computation(costs) for r in records]]
        if measured is not None:
            values.append([r.milliseconds(measured) for r in records])
        return PerImageResults(*(torch.stack(each).mean(dim=0).float() for each in values))

    return (
        {method.key: average(method.records) for method in methods},
        {m.key: average([m.selection]) for m in methods if m.selection is not None},
    )


def save_per_image_results(path: Path, reported: Results, selection: Results) -> None:
    """Write per-image results atomically."""
    tensors = {
        f"{split}/{key}/{name}": value
        for split, results in (("reported", reported), ("selection", selection))
        for key, of_method in results.items()
        for name, value in of_method._asdict().items()
        if value is not None
    }
    save_tensors(path, tensors)


def load_per_image_results(path: Path) -> tuple[Results, Results]:
    """Load per-image results of the reported and of the selection split.

    Raises:
        CheckpointError: If the file is missing, damaged or has other contents.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {"reported": {}, "selection": {}}
    try:
        for name, tensor in load_tensors(path).items():
            split, key, field = name.split("/")
            found[split].setdefault(key, {})[field] = tensor
        reported, selection = (
            {key: PerImageResults(**fields) for key, fields in of_split.items()}
            for of_split in found.values()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no per-image results of an evaluation.") from error
    return reported, selection
