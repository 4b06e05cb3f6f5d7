"""A Gumbel gate without noise that learns one budget."""

import dfs_rl
from dfs_rl.agents.supervised.config import SupervisedConfig
from dfs_rl.agents.supervised.estimators import argmax_choice
from dfs_rl.agents.supervised.gumbel import GumbelTrainer
from dfs_rl.utils.config import PositiveFloat, configuration


@dfs_rl.register_method("toy_argmax")
@configuration
class ToyArgmaxConfig(SupervisedConfig):
    label = "toy argmax"
    trainer = f"{__name__}:ToyArgmaxTrainer"
    sharpness: PositiveFloat = 2.0


class ToyArgmaxTrainer(GumbelTrainer):
    def _estimator(self):
        return lambda logits: argmax_choice(logits * self._config.sharpness)
