"""Kinds of gates that a comparison can train, from the registries; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dfs_rl.agents.hyperparameters import ALGORITHM_CONFIGS
from dfs_rl.agents.static.methods import STATIC_METHODS
from dfs_rl.agents.supervised.config import SUPERVISED_METHODS
from dfs_rl.experiments import (
    agent_training,
    cascade_training,
    static_training,
    supervised_training,
)
from dfs_rl.experiments.command import GateTrainingCommand
from dfs_rl.gating.registry import GATES, ONE_SHOT
from dfs_rl.utils.registry import NameIn

COMMANDS: Mapping[str, GateTrainingCommand[Any]] = {
    command.kind: command
    for command in (
        agent_training.COMMAND,
        supervised_training.COMMAND,
        static_training.COMMAND,
        cascade_training.COMMAND,
    )
}
"""Commands that train gates, by the kind of their run folders."""


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """Kind of gate in a comparison.

    Attributes:
        command: Command that trains it.
        settings: Settings that select this kind.
        budget: Name of the setting that receives the budget; ``None`` for a gate of which one
            training serves all budgets.
        uses_timesteps: True if ``timesteps`` sets the length of its training; otherwise its
            command's default does.
        is_seeded: True if the gate depends on the seed.
    """

    command: GateTrainingCommand[Any]
    settings: Mapping[str, object]
    budget: Literal["budget", "per_input_budget"] | None
    uses_timesteps: bool = True
    is_seeded: bool = True


def _rl_spec(algorithm: str) -> GateSpec:
    if ALGORITHM_CONFIGS[algorithm].needs_budget:
        # The budget limits the computation; a small cost weight breaks ties.
        settings = {"algo": algorithm, "fixed_budget": True, "cost_weight": 0.1}
        return GateSpec(
            command=agent_training.COMMAND, settings=settings, budget="per_input_budget"
        )
    return GateSpec(command=agent_training.COMMAND, settings={"algo": algorithm}, budget=None)


def _supervised_spec(method: str, gate: str) -> GateSpec:
    return GateSpec(
        command=supervised_training.COMMAND,
        settings={"method": method, "gate": gate},
        budget=None if SUPERVISED_METHODS[method].all_budgets else "budget",
    )


def _static_spec(method: str) -> GateSpec:
    return GateSpec(
        command=static_training.COMMAND,
        settings={"method": method},
        budget="budget",
        uses_timesteps=False,
        is_seeded=STATIC_METHODS[method].is_seeded,
    )


def gate_specs() -> dict[str, GateSpec]:
    """Return every kind of gate that a comparison can train, by name."""
    specs = {name.replace("_", "-"): _rl_spec(name) for name in ALGORITHM_CONFIGS}
    layerwise = [name for name in GATES if name != ONE_SHOT]
    for name, method in SUPERVISED_METHODS.items():
        shown = name.replace("_", "-")
        if method.gate is not None:
            specs[shown] = _supervised_spec(name, "ff")
        else:
            specs |= {f"{shown}-{kind}": _supervised_spec(name, kind) for kind in layerwise}
    static = {f"static-{name.replace('_', '-')}": _static_spec(name) for name in STATIC_METHODS}
    return specs | static


GateName = Annotated[str, NameIn(gate_specs)]
