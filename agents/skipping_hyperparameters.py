"""What SkipNet and BlockDrop take beside ``SupervisedConfig``, each default with its reason; free of torch, for quick help pages."""

import math
from dataclasses import dataclass

from dfs_rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SkipNetConfig:
    """Hyperparameters of ``--method skipnet``, beside those of all methods.

    Attributes:
        pretraining: Share of the training that is supervised alone, without a price: reinforcement from nothing stays at chance.
        entropy: Weight of an entropy bonus at the start, which falls linearly to 0: a gate that supervision has made sure of running
            a layer would hardly draw a skip again, whatever that earns.

    Raises:
        ConfigError: If a value is out of range.
    """

    pretraining: float = 0.1
    entropy: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.pretraining < 1:
            raise ConfigError(
                f"skipnet.pretraining is {self.pretraining}; it must be at least 0 and below 1, for the budget is held after it."
            )
        if not 0 <= self.entropy < math.inf:
            raise ConfigError(
                f"skipnet.entropy is {self.entropy}; it must be finite and not negative."
            )
