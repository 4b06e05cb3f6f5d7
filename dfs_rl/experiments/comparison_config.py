"""Configuration of ``compare``."""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from dfs_rl.costs import COMPUTATION, BudgetUnit, CostModelName
from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.costs.latency_profile import LatencySettings, check_cost
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.experiments.config import BackboneSettings, StreamSettings, check_budget_unit
from dfs_rl.experiments.gate_kinds import GateName
from dfs_rl.utils.config import PositiveFloat, PositiveInt, configuration

_TRAINING_FIELDS = (
    *("backbone", "weights", "image_size", "flip", "cost", "latency"),
    *("gates", "seeds", "timesteps", "agent", "gumbel"),
)
"""Settings that apply only to gates that are trained."""


@configuration
class CompareConfig(StreamSettings, BackboneSettings):
    """Settings of ``compare``.

    Attributes:
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

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    dataset: str | None = None
    budgets: tuple[PositiveFloat, ...] = ()
    budget_unit: BudgetUnit = "percent"
    gates: tuple[GateName, ...] = ("ppo", "gumbel_ff", "gumbel_lstm", "dfs_ff", "dfs_lstm")
    cost: CostModelName = COMPUTATION
    latency: LatencySettings = field(default=LatencySettings())
    seeds: PositiveInt = 3
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
        if self.runs and asked:
            raise ConfigError(
                f"{asked[0]} is {getattr(self, asked[0])}, which is for gates that are trained, "
                f"but {self.runs[0]} is a finished run; leave out one or the other."
            )
        if not self.gates:
            raise ConfigError("gates is empty; name at least one.")
        _check_once("runs", [run.resolve() for run in self.runs])
        _check_once("budgets", self.budgets)
        _check_once("gates", self.gates)


def _check_once(name: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{name} has {value} more than once; each counts once.")
