"""Configuration and command record of ``train_static``."""

from dfs_rl.agents.static.methods import StaticMethodName
from dfs_rl.experiments.command import GateTrainingCommand
from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.utils.config import PositiveFloat, PositiveInt, Seed, configuration


@configuration
class TrainStaticConfig(GateRunConfig):
    """Settings of ``train_static``.

    Attributes:
        method: Learner that chooses the bits layer by layer, as in HAQ, or greedy search by
            sensitivity.
        budget: Upper bound on the computation in percent, stem and head included; a static bit
            table has no gate that costs anything.
        episodes: Number of tables that a learner tries; a greedy search ends by itself.
        images: Images of the agent split that each table is tried on.
        seed: Seed of all random draws; same seed, machine and threads give the same table. A greedy
            search draws nothing.
    """

    method: StaticMethodName = "ddpg"
    budget: PositiveFloat = 1.0
    episodes: PositiveInt = 600
    images: PositiveInt = 1000
    seed: Seed = 0


COMMAND = GateTrainingCommand(
    kind="train_static",
    description="Search a static bit table by reinforcement learning or greedily.",
    config_type=TrainStaticConfig,
    module="dfs_rl.experiments.static_search",
)
