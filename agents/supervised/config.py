"""Hyperparameters of ``train_gumbel``'s methods, with the reasons for their defaults.

The module does not import torch, so that help pages load quickly.
"""

from typing import Annotated, Literal

from pydantic import Field

from dfs_rl.utils.config import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    configuration,
)

RelaxedMethod = Literal["gumbel", "dfs"]
"""Method by supervision alone, which learns on a frozen or co-trained backbone."""
Method = Literal["gumbel", "dfs", "skipnet", "blockdrop"]
"""Training method of ``train_gumbel``."""

_EVEN = 0.5
"""Probability of each of two equally likely options."""


@configuration
class SupervisedConfig:
    """Hyperparameters of all methods of ``train_gumbel``.

    Attributes:
        batch_size: Images per step.
        learning_rate: Initial learning rate of Adam, annealed along a cosine to zero.
        temperature: Initial temperature of the Gumbel-softmax; for gumbel alone.
        final_temperature: Final temperature, reached exponentially; a lower one is closer to the
            samples, with noisier gradients. For gumbel alone.
        multiplier: Weight of computation relative to the budget: constant with dfs, the initial
            Lagrange multiplier with the other methods.
        multiplier_lr: Learning rate of the Lagrange multiplier: the change of its logarithm per
            step at twice the budget.
        distillation: Weight of the divergence from the full-precision backbone, added to the loss
            with labels; for gumbel and dfs.
        max_grad_norm: Maximum norm of the gradient, for clipping.

    Raises:
        ConfigError: If a value is out of range.
    """

    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 0.01
    temperature: PositiveFloat = 2.0
    final_temperature: PositiveFloat = 0.5
    multiplier: PositiveFloat = 0.1
    multiplier_lr: UnitInterval = 0.02
    distillation: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0


@configuration
class SkipNetConfig:
    """Hyperparameters of ``--method skipnet``, in addition to those of all methods.

    Attributes:
        pretraining: Initial share of the training with supervision alone and no cost term, because
            reinforcement learning from scratch stays at chance.
        ent_coef: Initial weight of the entropy bonus, which falls linearly to 0; without it, a gate
            that supervision has made confident to run a layer would rarely sample a skip.

    Raises:
        ConfigError: If a value is out of range.
    """

    pretraining: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ent_coef: NonNegativeFloat = 0.3


@configuration
class BlockDropConfig:
    """Hyperparameters of ``--method blockdrop``, in addition to those of all methods.

    Attributes:
        curriculum: Share of the training over which layers open, the last one first; until then
            a layer runs at its largest option, because with random options at all layers no answer
            is right and the gate cannot learn.
        penalty: Penalty of a wrong answer, gamma in the paper; a right one earns 1 minus its
            weighted cost.
        bound: Upper bound on sampling probabilities, alpha in the paper, with the paper's value;
            the rest is spread over the other options.

    Raises:
        ConfigError: If a value is out of range.
    """

    curriculum: PositiveUnitInterval = 0.3
    penalty: NonNegativeFloat = 1.0
    bound: Annotated[float, Field(gt=_EVEN, le=1)] = 0.8
