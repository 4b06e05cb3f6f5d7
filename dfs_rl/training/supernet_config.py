"""Settings of a supernet's training; imports no torch, to keep help pages quick."""

from typing import Annotated, Literal

from pydantic import Field

from dfs_rl.utils.config import (
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    configuration,
)
from dfs_rl.utils.constants import OptimizerName, Precision


@configuration
class SupernetConfig:
    """Settings of a supernet's training.

    Attributes:
        warmup: Share of the epochs, rounded down, that run the largest bit width alone, in [0, 1];
            with the recipe adn they also train the network that skips every path.
        batch_size: Images per step, at least 2.
        optimizer: "sgd", with Nesterov momentum, or "adamw", with gradients clipped to a norm of 1;
            "auto" selects the network's default, AdamW for transformers.
        learning_rate: Peak learning rate; it rises over the first 5 % of all steps and falls along
            a cosine to zero. By default 0.1 with SGD and 0.001 with AdamW.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: Weight decay of convolution and linear weights; quantizer scales, norms and
            biases have none. By default 0.0005 with SGD and 0.05 with AdamW.
        pad: Zero padding in pixels before the random crop, at most the images' shorter side; by
            default an eighth of it.
        alpha: Weight of the labels with the recipe adn, in (0, 1); distillation has the rest. With
            the other recipes both have weight 1.
        feature_weight: Weight of the mean squared distance between the outputs of the layers in the
            two passes of a step, with the recipes elastic and adn of the stages; 0 or more. By
            default 0; with elastic 0.3; with adn 1, or 0.1 for transformers. It suits activations
            of about unit size.
        calibration_rounds: Batches at each bit option that measure the norms at the end, at least
            1.
        precision: Number format of the training; "auto" multiplies in bfloat16 where the hardware
            is fast at it.
    """

    warmup: UnitInterval = 0.3
    batch_size: Annotated[PositiveInt, Field(ge=2)] = 128
    optimizer: OptimizerName | Literal["auto"] = "auto"
    learning_rate: PositiveFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat | None = None
    pad: NonNegativeInt | None = None
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    feature_weight: NonNegativeFloat | None = None
    calibration_rounds: Count = 12
    precision: Precision = "auto"
