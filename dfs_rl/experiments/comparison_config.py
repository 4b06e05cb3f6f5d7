"""Configuration of ``compare``, and the kinds of gates that it can train; imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from dfs_rl.agents.hyperparameters import ALGORITHM_CONFIGS
from dfs_rl.agents.static.methods import STATIC_METHODS
from dfs_rl.agents.supervised.config import SUPERVISED_METHODS
from dfs_rl.costs import COMPUTATION, BudgetUnit, CostModelName
from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.costs.latency_profile import LatencySettings, check_cost
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.budgets import check_budget_unit
from dfs_rl.experiments.config import BackboneSettings, GateRunConfig
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.search_config import TrainCascadeConfig, TrainStaticConfig
from dfs_rl.gating.registry import layerwise_kinds
from dfs_rl.utils.config import Count, PositiveFloat, PositiveInt, configuration
from dfs_rl.utils.constants import Corruptions
from dfs_rl.utils.registry import NameIn

GATE_COMMANDS: Mapping[str, type[GateRunConfig]] = {
    config_type.KIND: config_type
    for config_type in (TrainAgentConfig, TrainGumbelConfig, TrainStaticConfig, TrainCascadeConfig)
}
"""Configurations of the commands that train gates, by the kind of their run folders."""


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """Kind of gate in a comparison, by the configuration that trains it and its own settings there.

    ``budget`` names the setting that receives the budget; it is ``None`` for a gate of which one
    training serves all budgets.
    """

    config_type: type[GateRunConfig]
    settings: Mapping[str, object]
    budget: Literal["budget", "per_input_budget"] | None = None
    is_seeded: bool = True  # if the gate depends on the seed


def gate_specs() -> dict[str, GateSpec]:
    """Return every kind of gate that a comparison can train, by name."""
    specs = {}
    for name, algorithm in ALGORITHM_CONFIGS.items():
        settings: dict[str, object] = {"algo": name}
        if algorithm.needs_budget:
            # The budget limits the computation; a small cost weight breaks ties.
            settings |= {"fixed_budget": True, "cost_weight": 0.1}
        specs[name] = GateSpec(
            config_type=TrainAgentConfig,
            settings=settings,
            budget="per_input_budget" if algorithm.needs_budget else None,
        )
        if not algorithm.needs_budget and TrainAgentConfig(algo=name).resolved_passes > 1:
            single = {"algo": name, "passes": 1}
            specs[f"{name}_single_pass"] = GateSpec(config_type=TrainAgentConfig, settings=single)
    layerwise = layerwise_kinds()
    for name, method in SUPERVISED_METHODS.items():
        for gate in layerwise if method.gate is None else ["ff"]:
            specs[name if method.gate else f"{name}_{gate}"] = GateSpec(
                config_type=TrainGumbelConfig,
                settings={"method": name, "gate": gate},
                budget=None if method.all_budgets else "budget",
            )
    for name, static in STATIC_METHODS.items():
        specs[f"static_{name}"] = GateSpec(
            config_type=TrainStaticConfig,
            settings={"method": name},
            budget="budget",
            is_seeded=static.is_seeded,
        )
    return specs


GateName = Annotated[str, NameIn(gate_specs)]

_TRAINING_FIELDS = (
    *("backbone", "weights", "image_size", "flip", "cost", "latency"),
    *("gates", "seeds", "timesteps", "agent", "gumbel"),
)
"""Settings that apply only to gates that are trained."""


@configuration
class CompareConfig(BackboneSettings):
    """Settings of ``compare``.

    Attributes:
        corruptions: Stream of images that gates are tuned and reported on, see train_agent; by
            default none, and for a finished run the one that it was tuned on.
        runs: Folders of finished gate runs; runs that differ only in seed or machine settings count
            as one gate. Without any, the gates are trained.
        dataset: Data set to train gates on; with runs, the new location of their data set, if it
            moved.
        budgets: Budgets on the mean computation. Gates for all budgets are set to each; the others
            are trained for each. Default 0.5, 0.75, 1, 1.5 and 3 percent for gates that are
            trained, none with the cost latency; finished runs keep their own.
        budget_unit: Unit of the budgets: percent of the gated layers in full precision, or ms per
            image with the cost latency. A comparison stores percent.
        gates: Kinds of gates to train. The budget of maskable_ppo bounds every single image, that
            of the others the mean.
        cost: Cost model of gates that are trained, see train_agent.
        latency: Measured times for the cost latency.
        seeds: Number of trainings of each gate.
        timesteps: Decisions that a gate learns from for each budget; a gate for all budgets learns
            from the sum.
        agent: YAML file with further settings of train_agent, for all gates that it trains.
        gumbel: YAML file with further settings of train_gumbel, for all gates that it trains.
        split: Split to report on; the recommendation is always chosen on val.
        search: Limits of the search for each gate's best static bit table.
        profile: File of python -m dfs_rl.profile whose times are reported as well; runs with the
            cost latency have one.
    """

    KIND: ClassVar = "compare"
    DESCRIPTION: ClassVar = """\
Compare gates of several kinds, newly trained or from finished runs, with each other and with
their baselines, and recommend one.

Examples:
  python -m dfs_rl.compare runs/ppo runs/gumbel --budgets 0.5 1
  python -m dfs_rl.compare --dataset digits --gates ppo gumbel_ff --timesteps 1e5
  python -m dfs_rl.compare runs/ppo runs/cascade --profile profile.json"""
    RUN: ClassVar = "dfs_rl.experiments.comparison:run"
    FIRST: ClassVar = (
        *("runs", "dataset", "backbone", "budgets", "budget_unit", "gates", "seeds"),
        *("timesteps", "run_dir"),
    )

    corruptions: Corruptions | None = None
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    dataset: str | None = None
    budgets: tuple[PositiveFloat, ...] = ()
    budget_unit: BudgetUnit = "percent"
    gates: tuple[GateName, ...] = ("ppo", "gumbel_ff", "gumbel_lstm", "dfs_ff", "dfs_lstm")
    cost: CostModelName = COMPUTATION
    latency: LatencySettings = field(default=LatencySettings())
    seeds: Count = 3
    timesteps: PositiveInt = 600_000
    agent: Path | None = None
    gumbel: Path | None = None
    split: Literal["test", "val"] = "test"
    search: SearchConfig = field(default_factory=SearchConfig)
    profile: Path | None = None

    def __post_init__(self) -> None:
        check_cost(self.cost, self.latency)
        if not self.runs:
            check_budget_unit(self.budget_unit, self.cost)
        if self.budget_unit == "ms" and not self.budgets:
            raise ConfigError("budget_unit is 'ms', but budgets is empty; give budgets in ms.")
        if self.cost == LATENCY and not self.budgets:
            raise ConfigError("cost is latency, which has no default budgets; give --budgets.")
        asked = [
            name
            for name in _TRAINING_FIELDS
            if getattr(self, name) != getattr(type(self), name, None)
        ]
        if not self.runs and self.dataset is None:
            raise ConfigError(
                f"no data set is given, and {asked[0]} is for gates that are trained; name with "
                "--dataset what to train them on."
                if asked
                else "no run is given; name the folders of runs to compare, or with --dataset "
                "what to train gates on."
            )
        check_suits_runs(self, asked)
        if not self.gates:
            raise ConfigError("gates is empty; name at least one.")
        _check_once("runs", [run.resolve() for run in self.runs])
        _check_once("budgets", self.budgets)
        _check_once("gates", self.gates)


def check_suits_runs(config: CompareConfig, given: Iterable[str]) -> None:
    """Raise ConfigError if a given setting is for gates that are trained, but runs are compared."""
    asked = [name for name in _TRAINING_FIELDS if name in given]
    if config.runs and asked:
        raise ConfigError(
            f"{asked[0]} is {getattr(config, asked[0])}, which is for gates that are trained, "
            f"but {config.runs[0]} is a finished run; leave out one or the other."
        )


def _check_once(name: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{name} has {value} more than once; each counts once.")
