"""Kinds of gates that a comparison can train, from the registries; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from dfs_rl.agents.hyperparameters import ALGORITHM_CONFIGS
from dfs_rl.agents.static.methods import STATIC_METHODS
from dfs_rl.agents.supervised.config import SUPERVISED_METHODS
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.experiments.cascade_config import TrainCascadeConfig
from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.experiments.static_config import TrainStaticConfig
from dfs_rl.experiments.supervised_training import TrainGumbelConfig
from dfs_rl.gating.registry import layerwise_kinds
from dfs_rl.utils.registry import NameIn

GATE_COMMANDS: Mapping[str, type[GateRunConfig]] = {
    config_type.KIND: config_type
    for config_type in (TrainAgentConfig, TrainGumbelConfig, TrainStaticConfig, TrainCascadeConfig)
}
"""Configurations of the commands that train gates, by the kind of their run folders."""


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """Kind of gate in a comparison.

    Attributes:
        config_type: Configuration of the command that trains it.
        settings: Settings that select this kind.
        budget: Name of the setting that receives the budget; ``None`` for a gate of which one
            training serves all budgets.
        is_seeded: True if the gate depends on the seed.
    """

    config_type: type[GateRunConfig]
    settings: Mapping[str, object] = field(default_factory=dict)
    budget: Literal["budget", "per_input_budget"] | None = None
    is_seeded: bool = True


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
