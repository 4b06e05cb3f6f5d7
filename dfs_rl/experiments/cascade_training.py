"""Configuration and command record of ``train_cascade``."""

from dfs_rl.experiments.command import GateTrainingCommand
from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.utils.config import PositiveFloat, configuration


@configuration
class TrainCascadeConfig(GateRunConfig):
    """Settings of ``train_cascade``.

    Attributes:
        budget: Upper bound on the mean computation in percent, both passes of images that run twice
            included; a single image may cost the sum of both passes.
    """

    budget: PositiveFloat = 1.0


COMMAND = GateTrainingCommand(
    kind="train_cascade",
    description="Choose a confidence cascade: a cheap pass for every image, an expensive one for "
    "unsure answers.",
    config_type=TrainCascadeConfig,
    module="dfs_rl.experiments.cascade_search",
)
