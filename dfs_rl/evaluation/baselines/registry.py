"""Protocol and registry of the baselines that gates are compared with.

A module of your own adds one::

    @register_baseline("cheapest")
    def cheapest(setup: EvaluationSetup) -> Iterator[MethodResult]:
        yield replace(setup.uniform[0], key="cheapest", label="cheapest option")
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import StaticTable
from dfs_rl.evaluation.static_tables.search import CachedScores, SearchSummary
from dfs_rl.evaluation.verdict import with_cost_tolerance

Role = Literal["gate", "fixed", "matched", "oracle"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodResult:
    """Result of a gate or of a baseline.

    Attributes:
        key: Stable name in files, for example ``gate``, ``uniform_8`` or ``static_table``.
        label: Name in tables and plots.
        records: Records of each draw on the reported split; one draw for deterministic methods.
        role: ``"gate"``; ``"fixed"`` for points with a cost of their own; ``"matched"`` for
            baselines at the cost of the gate; ``"oracle"`` for what needs the labels.
        selection: Records on the selection split for methods that can be deployed, else None.
        chosen_on: Split used to choose the parameters, None if there are none.
        detail: Description of the chosen parameters.
        table: Static bit table, None for other methods.
        search: Effort of the search for the table, None without a search.
    """

    key: str
    label: str
    records: tuple[GateRecords, ...]
    role: Role = "matched"
    selection: GateRecords | None = None
    chosen_on: str | None = None
    detail: str = ""
    table: StaticTable | None = None
    search: SearchSummary | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSetup:
    """Backbone, images and gate that all baselines of an evaluation share.

    Attributes:
        backbone: Backbone on the device of both splits.
        gate: Records of the gate on the reported split.
        gate_selection: Records of the gate on the selection split.
        uniform: Results of ``uniform_baselines`` on both splits.
        reported: Split that figures are reported on.
        selection: Split that parameters are chosen on.
        reported_name: Name of the reported split.
        selection_name: Name of the selection split.
        before_cotraining: Backbone before it was trained with the gate, None if it was not.
            Co-training makes a backbone worse at options that the gate does not choose, so
            baselines run on the earlier backbone too.
        search: Limits of the search for the best static bit table; None for the defaults.
        batch_size: Number of images per batch.
        progress: Callback that receives the name of each baseline before it runs.
        cached_scores: Scores of earlier searches, as in ``search_static_table``.
    """

    backbone: WalkableBackbone
    gate: GateRecords
    gate_selection: GateRecords
    uniform: Sequence[MethodResult]
    reported: ImageSet
    selection: ImageSet
    reported_name: str = "test"
    selection_name: str = "val"
    before_cotraining: WalkableBackbone | None = None
    search: SearchConfig | None = None
    batch_size: int = BATCH_SIZE
    progress: Callable[[str], None] = lambda _: None
    cached_scores: CachedScores | None = None

    @property
    def budget(self) -> float:
        """Bound on the mean computation of matched baselines on the selection split, in percent.

        The tolerance of the gate's cost is included, because a gate counts as no more expensive
        than a baseline within it.
        """
        costs = self.backbone.costs
        return with_cost_tolerance(self.gate_selection.computation(costs).mean().item())


Baseline = Callable[[EvaluationSetup], Iterable[MethodResult]]
"""Function that yields results; none if it does not apply to the gate or the backbone."""

BASELINES: dict[str, Baseline] = {}
"""Baselines by name, in the order of tables and files."""


def register_baseline(name: str) -> Callable[[Baseline], Baseline]:
    """Return a decorator that adds a function to ``BASELINES``."""

    def register(baseline: Baseline) -> Baseline:
        if name in BASELINES:
            raise ConfigError(f"baseline {name!r} is already registered; choose another name.")
        BASELINES[name] = baseline
        return baseline

    return register


def run_baselines(setup: EvaluationSetup, names: Iterable[str] | None = None) -> list[MethodResult]:
    """Run baselines in the order of ``BASELINES``.

    Args:
        setup: Backbone, images and gate.
        names: Names of the baselines; None for all that apply.

    Raises:
        ConfigError: If a name is unknown, or a named baseline does not apply.
    """
    wanted = list(BASELINES if names is None else names)
    for name in wanted:
        if name not in BASELINES:
            raise ConfigError(f"baseline is {name!r}; allowed are {', '.join(BASELINES)}.")
    found: list[MethodResult] = []
    for name in (name for name in BASELINES if name in wanted):
        setup.progress(f"baseline {name}")
        results = list(BASELINES[name](setup))
        if names is not None and not results:
            raise ConfigError(f"baseline {name!r} does not apply to this gate and backbone.")
        found += results
    return found
