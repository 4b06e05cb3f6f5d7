"""Hyperparameters of co-training, with the reasons for their defaults; imports no torch."""

from typing import Literal

from dfs_rl.utils.config import NonNegativeFloat, PositiveInt, PositiveUnitInterval, configuration

BackboneMode = Literal["frozen", "co-train"]
"""Backbone mode: fixed weights, or weights trained under the gate's choices."""


@configuration
class CoTrainConfig:
    """Hyperparameters of the backbone, with ``--backbone-mode co-train``.

    Attributes:
        batch_size: Training images per step; the backbone takes one step per update of the gate.
            These images count towards --timesteps like those of the gate, so both modes process
            the same number of images.
        learning_rate: Constant learning rate of Adam; small, because the norms keep their
            calibrated statistics.
        distillation: Weight of the gated pass's divergence from the full-precision pass, added to
            its cross-entropy.
        full_precision: Weight of the full-precision pass's cross-entropy, which keeps the teacher
            from drifting.
    """

    batch_size: PositiveInt = 64
    learning_rate: PositiveUnitInterval = 1e-4
    distillation: NonNegativeFloat = 1.0
    full_precision: NonNegativeFloat = 1.0

    def gate_timesteps(self, timesteps: int, images: int) -> int:
        """Return the part of ``timesteps`` left for the gate, whose updates have ``images``."""
        return timesteps * images // (images + self.batch_size)


@configuration
class LabelCoTrainConfig(CoTrainConfig):
    """Hyperparameters of the backbone with a supervised gate; by default those of DFS."""

    distillation: NonNegativeFloat = 0.0
    full_precision: NonNegativeFloat = 0.0
