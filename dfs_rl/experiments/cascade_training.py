"""``python -m dfs_rl.train_cascade``: choose a confidence cascade, the rival of every gate that learns, and make it a run."""

from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.experiments.gate_run import GateCommand
from dfs_rl.utils.config import Positive, configuration


@configuration
class TrainCascadeConfig(GateRunConfig):
    """Settings of ``train_cascade``.

    Attributes:
        budget: Upper bound on the mean computation in percent, both passes of images that run twice included; a single image may cost
            as much as both.
    """

    budget: Positive = 1.0


COMMAND = GateCommand(
    kind="train_cascade",
    description="Choose a confidence cascade: a cheap pass for every image, a dearer one where the first is unsure.",
    config_type=TrainCascadeConfig,
    module="dfs_rl.experiments.cascade_search",
)
