"""Protocol and registry of the baselines that gates are compared with.

A module of your own adds one::

    @register_baseline("cheapest")
    def cheapest(setup: EvaluationSetup) -> Iterator[MethodResult]:
        yield replace(setup.uniform[0], key="cheapest", label="cheapest option")
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import FULL, SKIP, BitOptions
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.pass_outputs import PassOutputs, rule_settings, run_settings
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import StaticTable
from dfs_rl.evaluation.static_tables.search import CachedScores, SearchSummary
from dfs_rl.evaluation.verdict import with_cost_tolerance
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.rules import Rule, RulePass
from dfs_rl.utils.registry import Registry

Role = Literal["gate", "fixed", "matched", "oracle"]
"""``fixed`` has its own cost, ``matched`` that of the gate; ``oracle`` needs the labels."""
OutputCache = dict[tuple[str, bool], PassOutputs]
"""Outputs of ``rule_settings`` by the name of the split and whether the images are mirrored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodResult:
    """Result of a gate or of a baseline."""

    key: str  # stable name in files, for example "gate", "uniform_8" or "static_table"
    label: str  # name in tables and plots
    records: tuple[GateRecords, ...]  # of each draw on the reported split; one without chance
    role: Role = "matched"
    selection: GateRecords | None = None  # on the selection split if it can be deployed
    chosen_on: str | None = None  # split used to choose the parameters, None if there are none
    detail: str = ""  # description of the chosen parameters
    table: StaticTable | None = None  # None if it is no static bit table
    search: SearchSummary | None = None  # effort of the search for the table


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSetup:
    """Backbone, images and gate that all baselines of an evaluation share."""

    backbone: GatedBackbone  # on the device of both splits
    gate: GateRecords  # on the reported split
    gate_selection: GateRecords  # on the selection split
    reported: ImageSet  # split that figures are reported on
    selection: ImageSet  # split that parameters are chosen on
    reported_name: str = "test"
    selection_name: str = "val"
    before_cotraining: GatedBackbone | None = None
    """Backbone before it was trained with the gate, if it was. Co-training makes a backbone worse
    at options that the gate does not choose, so baselines run on the earlier one too."""
    passes: PassSettings = SINGLE_PASS  # that the gate may run
    search: SearchConfig | None = None  # None for the default limits
    batch_size: int = BATCH_SIZE
    progress: Callable[[str], None] = lambda _: None  # receives the name of each baseline
    cached_scores: CachedScores = field(default_factory=dict)  # as in ``search_static_table``
    cached_outputs: OutputCache = field(default_factory=dict)

    @cached_property
    def uniform(self) -> list[MethodResult]:
        """Results of each bit option at all layers, on both splits."""
        options, first = self.backbone.options, range(len(self.backbone.options))
        reported, selection = self.outputs("reported"), self.outputs("selection")
        return uniform_baselines(options, reported.select(first), selection.select(first))

    @cached_property
    def _settings(self) -> Sequence[RulePass]:
        known = self.cached_outputs.get((self.selection_name, False))
        if known is not None:
            return known.settings
        return rule_settings(self.backbone, self.selection, mirrored=False)

    def outputs(
        self, on: Literal["reported", "selection"] = "reported", *, mirrored: bool = False
    ) -> PassOutputs:
        """Return the outputs of all settings of rules on a split, each run once.

        The first are each bit option at all layers. ``mirrored`` adds those on the mirror images.
        """
        images = self.reported if on == "reported" else self.selection
        name = self.reported_name if on == "reported" else self.selection_name
        if (name, mirrored) not in self.cached_outputs:
            settings = [replace(each, mirrored=mirrored) for each in self._settings]
            self.cached_outputs[name, mirrored] = run_settings(
                self.backbone, images, settings, batch_size=self.batch_size
            )
        found = self.cached_outputs[name, mirrored]
        return self.outputs(on).with_settings(found) if mirrored else found

    @property
    def budget(self) -> float:
        """Bound on the mean computation of matched baselines on the selection split, in percent.

        It includes the tolerance, because a gate counts as no more expensive than a baseline in it.
        """
        spent = self.gate_selection.computation(self.backbone.costs)
        return with_cost_tolerance(spent.mean().item())


def uniform_baselines(
    options: BitOptions, reported: PassOutputs, selection: PassOutputs
) -> list[MethodResult]:
    """Return the results of each bit option at all layers, from ``run_uniform``."""
    methods = []
    for bits, setting in zip(options, reported.settings, strict=True):
        label = {SKIP: "skip all", FULL: "full precision"}.get(bits, f"uniform {bits} bit")
        records, chosen = (
            outputs.records(Rule(passes=(setting,)), "last", name=label)
            for outputs in (reported, selection)
        )
        methods.append(
            MethodResult(
                key="full" if bits == FULL else f"uniform_{bits}",
                label=label,
                role="fixed",
                records=(records,),
                selection=chosen,
                detail="no gated layer runs" if bits == SKIP else "",
                table=setting.options,
            )
        )
    return methods


Baseline = Callable[[EvaluationSetup], Iterable[MethodResult]]
"""Function that yields results; none if it does not apply to the gate or the backbone."""

BASELINES: Registry[Baseline] = Registry("baseline")
"""Baselines by name, in the order of tables and files."""


def register_baseline(
    name: str, *, applies: Callable[[EvaluationSetup], bool] = lambda _: True
) -> Callable[[Baseline], Baseline]:
    """Return a decorator that adds a function to ``BASELINES``; it runs where it ``applies``."""

    def register(baseline: Baseline) -> Baseline:
        def run(setup: EvaluationSetup) -> Iterator[MethodResult]:
            if applies(setup):
                setup.progress(f"baseline {name}")
                yield from baseline(setup)

        BASELINES.add(name, run)
        return baseline

    return register


def run_baselines(
    setup: EvaluationSetup, names: Collection[str] | None = None
) -> list[MethodResult]:
    """Run the baselines that apply, or those named, in the order of ``BASELINES``.

    Raises:
        ConfigError: If a named baseline does not apply, or two methods have the same key.
    """
    found: list[MethodResult] = []
    for name, baseline in BASELINES.items():
        if names is not None and name not in names:
            continue
        results = list(baseline(setup))
        if names is not None and not results:
            raise ConfigError(f"baseline {name!r} does not apply to this gate and backbone.")
        found += results
        keys = ["gate", *(method.key for method in found)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ConfigError(
                f"baseline {name!r} yields a method with the key {twice[0]!r}, which another one "
                "has; give it a key of its own, under which files store its results."
            )
    return found
