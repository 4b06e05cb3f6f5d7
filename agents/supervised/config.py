"""Hyperparameters of ``train_gumbel``'s methods, each default with its reason; free of torch, so that a help page is quick."""

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
"""Methods by supervision alone, see ``dfs_rl.agents.supervised.relaxed``."""
Method = Literal["gumbel", "dfs", "skipnet", "blockdrop"]
"""How a gate learns in ``train_gumbel``: by supervision, or as the modules ``skipnet`` and ``blockdrop`` do."""

_EVEN = 0.5
"""Chance of each of two options where nothing is preferred."""


@configuration
class SupervisedConfig:
    """Hyperparameters of gates that learn by supervision, or by reinforcement beside it.

    Attributes:
        batch_size: Images per step.
        learning_rate: Adam's step size at the start; it falls along a cosine to zero.
        temperature: Of the Gumbel-softmax at the start; for gumbel alone, as the next.
        final_temperature: At the end, reached exponentially: nearer to the draw, but with noisier
            gradients.
        multiplier: Weight of computation relative to the budget: for good with dfs, and where it
            starts with the others.
        multiplier_lr: How fast their price follows overspending: the change of its logarithm per
            step at twice the budget.
        distillation: Weight of the divergence from the full-precision network, beside the loss with
            labels; for gumbel and dfs.
        max_grad_norm: Gradient clipping.

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
    """Hyperparameters of ``--method skipnet``, beside those of all methods.

    Attributes:
        pretraining: Share of the training that is supervised alone, without a price: reinforcement
            from nothing stays at chance.
        ent_coef: Weight of an entropy bonus at the start, which falls linearly to 0: a gate that
            supervision has made sure of running a layer would hardly draw a skip again, whatever
            that earns.

    Raises:
        ConfigError: If a value is out of range.
    """

    pretraining: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ent_coef: NonNegativeFloat = 0.3


@configuration
class BlockDropConfig:
    """Hyperparameters of ``--method blockdrop``, beside those of all methods.

    Attributes:
        curriculum: Share of the training over which layers are opened, the last one first; the
            others run at their dearest option meanwhile, because from random options everywhere
            nothing is right and nothing can be learned.
        penalty: What a wrong answer costs, gamma of the paper; a right one earns 1 less the price
            of its computation.
        bound: Most that the chance of a draw can be, alpha of the paper, whose value it is; the
            rest goes to the other options.

    Raises:
        ConfigError: If a value is out of range.
    """

    curriculum: PositiveUnitInterval = 0.3
    penalty: NonNegativeFloat = 1.0
    bound: Annotated[float, Field(gt=_EVEN, le=1)] = 0.8
