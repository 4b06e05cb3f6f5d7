"""What the walk, the environments and evaluation need of a network: one contract for training and prepared forms."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from dfs_rl.cost import BitOptions, CostTable


class GatedLayer(Protocol):
    """A layer that can run at any option of the menu; 0 bit leaves only its shortcut."""

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        """Run every sample of ``hidden`` ``[batch, channels, height, width]`` at ``bits``."""
        ...


@runtime_checkable
class WalkableBackbone(Protocol):
    """A stem, an ordered list of gated layers and a head, with what a gate may look at in between.

    Attributes:
        options: The menu of every gated layer.
        costs: What each choice costs.
        layers: The gated layers, in order.
        feature_channels: Channels of the activation that enters each gated layer, one number per layer.
    """

    options: BitOptions
    costs: CostTable
    feature_channels: tuple[int, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images it takes."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of logits."""
        ...

    @property
    def feature_mean(self) -> Tensor:
        """Mean of ``feature`` before each gated layer, float32 ``[layers, max channels]``, zero-padded."""
        ...

    @property
    def feature_std(self) -> Tensor:
        """Standard deviation of ``feature`` before each gated layer, float32 ``[layers, max channels]``, one-padded."""
        ...

    @property
    def layers(self) -> Sequence[GatedLayer]:
        """The gated layers, in order."""
        ...

    def stem(self, images: Tensor) -> Tensor:
        """Turn raw images, uint8 ``[batch, c, h, w]`` (or float in [0, 1]), into the first activation; normalises them itself."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Turn the last activation into logits, float32 ``[batch, classes]``."""
        ...

    def feature(self, hidden: Tensor) -> Tensor:
        """Pool an activation to float32 ``[batch, channels]`` for the gate."""
        ...
