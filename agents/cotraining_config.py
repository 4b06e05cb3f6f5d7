"""How a backbone learns beside its gate, each default with its reason; free of torch, so that a help page is quick."""

from typing import Literal

from dfs_rl.utils.config import NonNegativeFloat, PositiveInt, PositiveUnitInterval, configuration

BackboneMode = Literal["frozen", "co-train"]
"""Whether the backbone stays as it is, or learns under its gate's choices."""


@configuration
class CoTrainConfig:
    """How the backbone learns beside the gate, with ``--backbone-mode co-train``.

    Attributes:
        batch_size: Training images per step; one step goes with each update of the gate. They count
            towards --timesteps like the gate's own images, so both modes see equally many.
        learning_rate: Adam's step size, constant; small, because the norms keep the statistics they
            were calibrated to.
        distillation: Weight of the gated pass's divergence from the full-precision pass, beside its
            loss with labels.
        full_precision: Weight of the full-precision pass's own loss with labels, which keeps the
            teacher from drifting.

    Raises:
        ConfigError: If a value is out of range.
    """

    batch_size: PositiveInt = 64
    learning_rate: PositiveUnitInterval = 1e-4
    distillation: NonNegativeFloat = 1.0
    full_precision: NonNegativeFloat = 1.0

    def gate_timesteps(self, timesteps: int, images: int) -> int:
        """Return how many of ``timesteps`` are the gate's, each of whose updates walks ``images`` beside a batch of the backbone's."""
        return timesteps * images // (images + self.batch_size)


@configuration
class LabelCoTrainConfig(CoTrainConfig):
    """How the backbone learns with a supervised gate: from labels alone by default, as in the paper of DFS."""

    distillation: NonNegativeFloat = 0.0
    full_precision: NonNegativeFloat = 0.0
