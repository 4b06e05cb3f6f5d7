"""Settings of ``train_static``; imports no torch, to keep help pages quick."""

from typing import ClassVar

from dfs_rl.agents.static.methods import StaticMethodName
from dfs_rl.experiments.config import DEFAULT_BUDGET, GateRunConfig
from dfs_rl.utils.config import PositiveFloat, PositiveInt, Seed, configuration


@configuration
class TrainStaticConfig(GateRunConfig):
    """Settings of ``train_static``.

    Attributes:
        method: Learner that chooses the bits layer by layer, as in HAQ, "greedy" search by
            sensitivity, or local "search", which also tries skips and exits.
        budget: Upper bound on the computation, stem and head included; a static bit table has no
            gate that costs anything.
        episodes: Number of tables that a learner or a local search tries; a greedy search ends by
            itself.
        images: Images of the agent split that each table is tried on.
        seed: Seed of all random draws; same seed, machine and threads give the same table.
            Greedy and search do not depend on it.
    """

    KIND: ClassVar = "train_static"
    DESCRIPTION: ClassVar = """\
Find one static bit table for all images, by reinforcement learning or by a search.

Examples:
  python -m dfs_rl.train_static --budget 0.8
  python -m dfs_rl.train_static --method greedy --budget 0.8
  python -m dfs_rl.train_static --method sac --dataset uoft-cs/cifar10 --backbone runs/net"""
    MODULE: ClassVar = "dfs_rl.experiments.static_search"
    FIRST: ClassVar = (
        *("method", "dataset", "backbone", "budget", "budget_unit"),
        *("episodes", "images", "seed", "run_dir"),
    )

    method: StaticMethodName = "ddpg"
    budget: PositiveFloat = DEFAULT_BUDGET
    episodes: PositiveInt = 600
    images: PositiveInt = 1000
    seed: Seed = 0

    @property
    def uses_exits(self) -> bool:
        """True if the table may take a backbone's exits."""
        return self.method == "search"
