"""Hyperparameters of ``train_gumbel``'s methods, each default with its reason; free of torch, so that a help page is quick."""

import math
from dataclasses import dataclass
from typing import Literal

from dfs_rl.errors import ConfigError

RelaxedMethod = Literal["gumbel", "dfs"]
"""How a gate learns by supervision alone, see ``agents.supervised``."""
Method = Literal["gumbel", "dfs", "skipnet", "blockdrop"]
"""How a gate learns in ``train_gumbel``: by supervision, or as ``agents.skipnet`` and ``agents.blockdrop`` do."""

_EVEN = 0.5
"""Chance of each of two options where nothing is preferred."""


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Hyperparameters of gates that learn by supervision, or by reinforcement beside it.

    Attributes:
        batch_size: Images per step.
        learning_rate: Adam's step size at the start; it falls along a cosine to zero.
        temperature: Of the Gumbel-softmax at the start; for gumbel alone, as the next.
        final_temperature: At the end, reached exponentially: nearer to the draw, but with noisier gradients.
        price: Weight of computation relative to the budget: for good with dfs, and where it starts with the others.
        price_rate: How fast their price follows overspending: the change of its logarithm per step at twice the budget.
        distillation: Weight of the divergence from the full-precision network, beside the loss with labels; for gumbel and dfs.
        max_grad_norm: Gradient clipping.

    Raises:
        ConfigError: If a value is out of range.
    """

    batch_size: int = 64
    learning_rate: float = 0.01
    temperature: float = 2.0
    final_temperature: float = 0.5
    price: float = 0.1
    price_rate: float = 0.02
    distillation: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        positive = (
            "batch_size",
            "learning_rate",
            "temperature",
            "final_temperature",
            "price",
            "max_grad_norm",
        )
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be positive and finite."
                )
        if not 0 <= self.price_rate <= 1:
            raise ConfigError(f"price_rate is {self.price_rate}; it must lie in [0, 1].")
        if not 0 <= self.distillation < math.inf:
            raise ConfigError(
                f"distillation is {self.distillation}; it must be finite and not negative."
            )


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


@dataclass(frozen=True, kw_only=True)
class BlockDropConfig:
    """Hyperparameters of ``--method blockdrop``, beside those of all methods.

    Attributes:
        curriculum: Share of the training over which layers are opened, the last one first; the others run at their dearest
            option meanwhile, because from random options everywhere nothing is right and nothing can be learned.
        penalty: What a wrong answer costs, gamma of the paper; a right one earns 1 less the price of its computation.
        bound: Most that the chance of a draw can be, alpha of the paper, whose value it is; the rest goes to the other options.

    Raises:
        ConfigError: If a value is out of range.
    """

    curriculum: float = 0.3
    penalty: float = 1.0
    bound: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.curriculum <= 1:
            raise ConfigError(
                f"blockdrop.curriculum is {self.curriculum}; it must be above 0 and at most 1."
            )
        if not 0 <= self.penalty < math.inf:
            raise ConfigError(
                f"blockdrop.penalty is {self.penalty}; it must be finite and not negative."
            )
        if not _EVEN < self.bound <= 1:
            raise ConfigError(
                f"blockdrop.bound is {self.bound}; it must be above 0.5, below which likely options were drawn less often, and at "
                "most 1."
            )
