"""Hyperparameters, each default with its reason; free of torch, so that a help page is quick."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dfs_rl.errors import ConfigError

AlgorithmName = Literal["ppo", "a2c"]
Method = Literal["gumbel", "dfs"]
"""How a gate learns by supervision, see ``agents.supervised``."""
GateKind = Literal["ff", "lstm"]
"""A small network for each layer, or one LSTM for all."""
StaticMethod = Literal["ddpg", "td3", "sac", "ppo", "greedy"]
"""How one table for all images is found, see ``agents.static_methods``."""
FeatureChoice = Literal["confidence", "all"]
"""What a gate looks at: how sure a probe is, or the pooled channels beside it."""


OVERSHOOT = 50.0
"""Price of each fraction of computation above a budget: of an image's for an agent, of the mean where a supervised gate is chosen."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Hyperparameters of ``--algo ppo``.

    Attributes:
        learning_rate: Adam's step size at the start; by default inversely proportional to the timesteps, see ``step_sizes``.
        final_learning_rate: Step size at the end, reached linearly, because the last decisions are close calls that a large step
            undoes; by default a twentieth of the first.
        entropy: Weight of the entropy bonus at the start, which keeps the first good table from ending the search; it falls
            linearly to 0, because a gate that is deployed deterministic should end deterministic.
        epochs: Passes over each rollout; more than 4 buys little for twice the time.
        minibatches: Minibatches per pass; a minibatch of envs x layers / 4 runs at the speed of memory, not of Python.
        clip_range: PPO's bound on the change of probability per update.
        gae_lambda: Bias against variance of the advantage with one rollout per image; unused with several.
        value_weight: Weight of the critic's loss; actor and critic share no weights, so it only matters through gradient clipping.
        max_grad_norm: Gradient clipping.
    """

    learning_rate: float | None = None
    final_learning_rate: float | None = None
    entropy: float = 0.03
    epochs: int = 4
    minibatches: int = 4
    clip_range: float = 0.2
    gae_lambda: float = 0.95
    value_weight: float = 0.5
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        _require(
            self, positive=("learning_rate", "epochs", "minibatches", "clip_range", "max_grad_norm")
        )


@dataclass(frozen=True, kw_only=True)
class A2CConfig:
    """Hyperparameters of ``--algo a2c``.

    Attributes:
        learning_rate: RMSprop's step size at the start; as for PPO.
        final_learning_rate: Step size at the end; as for PPO.
        entropy: As for PPO.
        gae_lambda: As for PPO.
        value_weight: As for PPO.
        max_grad_norm: Gradient clipping.
    """

    learning_rate: float | None = None
    final_learning_rate: float | None = None
    entropy: float = 0.03
    gae_lambda: float = 0.95
    value_weight: float = 0.5
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        _require(self, positive=("learning_rate", "max_grad_norm"))


AlgorithmConfig = PPOConfig | A2CConfig

PATH_LENGTH = 12_000.0
LARGEST_STEP = 0.03


class StepSizes(NamedTuple):
    """Where the linear schedule of step sizes starts and ends."""

    start: float
    end: float


def step_sizes(config: AlgorithmConfig, timesteps: int) -> StepSizes:
    """Return the step sizes that a configuration asks for, or the defaults for a training of ``timesteps``.

    The default start is ``PATH_LENGTH / timesteps``, at most ``LARGEST_STEP``. Adam moves a weight by about its step size
    whatever the gradient, so this keeps the way it can go in all the same. It is a rule through two points, not a law: on
    digits with 600,000 steps 0.01 to 0.03 did best and gates trained with 0.003 stayed near one table for all images; on a
    ResNet-20 with about 3,000,000 steps 0.003 did better than 0.02, in one run each.
    """
    start = config.learning_rate
    if start is None:
        start = min(LARGEST_STEP, PATH_LENGTH / timesteps)
    end = config.final_learning_rate
    return StepSizes(start, start / 20 if end is None else end)


@dataclass(frozen=True, kw_only=True)
class CoTrainConfig:
    """How the backbone learns beside the gate, with ``--backbone-mode co-train``.

    Attributes:
        batch_size: Training images per step; one step follows each update of the gate. They count towards --timesteps like
            the gate's own images, so both modes see equally many.
        learning_rate: Adam's step size, constant; small, because the norms keep the statistics they were calibrated to.
        distillation: Weight of the gated pass's divergence from the full-precision pass, beside its loss with labels.
        full_precision: Weight of the full-precision pass's own loss with labels, which keeps the teacher from drifting.

    Raises:
        ConfigError: If a value is out of range.
    """

    batch_size: int = 64
    learning_rate: float = 1e-4
    distillation: float = 1.0
    full_precision: float = 1.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"cotrain.batch_size is {self.batch_size}; it must be at least 1.")
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(
                f"cotrain.learning_rate is {self.learning_rate}; it must be positive and at most 1."
            )
        for name in ("distillation", "full_precision"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"cotrain.{name} is {getattr(self, name)}; it must not be negative."
                )


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Hyperparameters of gates that learn by supervision.

    Attributes:
        batch_size: Images per step.
        learning_rate: Adam's step size at the start; it falls along a cosine to zero.
        temperature: Of the Gumbel-softmax at the start.
        final_temperature: At the end, reached exponentially: nearer to the draw, but with noisier gradients.
        price: Weight of computation relative to the budget: where it starts with gumbel, and for good with dfs.
        price_rate: How fast gumbel's price follows overspending: the change of its logarithm per step at twice the budget.
        distillation: Weight of the divergence from the full-precision network, beside the loss with labels.
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


def _require(config: AlgorithmConfig, *, positive: Sequence[str]) -> None:
    for name in positive:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; it must be positive.")
    for name in ("learning_rate", "final_learning_rate"):
        value = getattr(config, name)
        if value is not None and value > 1.0:
            raise ConfigError(
                f"{name} is {value}; it must be at most 1, above which every training diverges."
            )
    for name in ("final_learning_rate", "entropy", "value_weight"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise ConfigError(f"{name} is {value}; it must not be negative.")
    if not 0.0 <= config.gae_lambda <= 1.0:
        raise ConfigError(f"gae_lambda is {config.gae_lambda}; it must lie in [0, 1].")
