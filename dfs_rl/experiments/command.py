"""Entry point of the commands, without the code that does their work: help pages load quickly."""

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

from dfs_rl.utils.cli import run_command
from dfs_rl.utils.run_folder import program

COMMANDS = {
    "train_backbone": "dfs_rl.experiments.backbone_config:TrainBackboneConfig",
    "train_exits": "dfs_rl.experiments.backbone_config:TrainExitsConfig",
    "train_agent": "dfs_rl.experiments.agent_config:TrainAgentConfig",
    "train_gumbel": "dfs_rl.experiments.gumbel_config:TrainGumbelConfig",
    "train_static": "dfs_rl.experiments.search_config:TrainStaticConfig",
    "train_cascade": "dfs_rl.experiments.search_config:TrainCascadeConfig",
    "evaluate": "dfs_rl.experiments.config:EvaluateConfig",
    "compare": "dfs_rl.experiments.comparison_config:CompareConfig",
    "sweep": "dfs_rl.sweeping.config:SweepConfig",
    "export": "dfs_rl.experiments.deployment_config:ExportConfig",
    "profile": "dfs_rl.experiments.deployment_config:ProfileConfig",
}
"""Configurations of all commands, by name."""


def main_of(name: str) -> Callable[..., int]:
    """Return the ``main`` of a command: it takes arguments, runs and returns the exit code.

    The configuration describes the command as in ``DataSettings``. A command with a setting
    ``run_dir`` has a run folder of its own, which it can resume.
    """
    config_type: Any = resolve_name(COMMANDS[name])
    return partial(
        run_command,
        config_type.RUN,
        config_type,
        prog=program(config_type.KIND),
        description=config_type.DESCRIPTION,
        kind=config_type.KIND if hasattr(config_type, "run_dir") else None,
        commands=COMMANDS,
    )
