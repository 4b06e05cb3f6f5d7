"""``python -m dfs_rl.train_static``: find one table of bits for all images, the baseline of every gate that looks at its image."""

from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.experiments.gate_run import GateTrainingCommand
from dfs_rl.utils.config import PositiveFloat, PositiveInt, Seed, configuration


@configuration
class TrainStaticConfig(GateRunConfig):
    """Settings of ``train_static``.

    Attributes:
        method: A learner that gives layer after layer its bits, as HAQ does, or a greedy search by
            sensitivity.
        budget: Upper bound on computation in percent, stem and head included; a table has no gate
            to pay for.
        episodes: Tables that a learner tries; a greedy search ends by itself.
        images: Images of the agent split that each table is tried on.
        seed: Same seed, same machine, same threads: same table. A greedy search draws nothing.
    """

    method: StaticMethod = "ddpg"
    budget: PositiveFloat = 1.0
    episodes: PositiveInt = 600
    images: PositiveInt = 1000
    seed: Seed = 0


COMMAND = GateTrainingCommand(
    kind="train_static",
    description="Find one table of bits for all images, by reinforcement or by a greedy search.",
    config_type=TrainStaticConfig,
    module="dfs_rl.experiments.static_search",
)
