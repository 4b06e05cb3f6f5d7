"""What the walk, the environments and evaluation need of a network: one contract for training and prepared forms."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable

OptimizerName = Literal["sgd", "adamw"]
Recipe = Literal["supernet", "adn"]
"""What is distilled into beside the whole network: low settings, or also the one that skips every path."""


class GatedLayer(Protocol):
    """A layer that can run at any option of the menu; 0 bit leaves its shortcut and whatever else no gate decides about.

    One that computes something at 0 bit says so by an attribute ``runs_when_skipped`` that is true, see ``runs_when_skipped``.
    """

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        """Run every sample of ``hidden`` ``[batch, channels, height, width]`` at ``bits``."""
        ...


def runs_when_skipped(layer: GatedLayer) -> bool:
    """Whether a layer runs a part of itself at 0 bit; most leave only a shortcut, so that their skipped samples need not move."""
    return bool(getattr(layer, "runs_when_skipped", False))


CONFIDENCE_SIZE = 3
"""How many numbers say how sure a network is halfway; the first of every ``feature``."""


def confidence_sizes(feature_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many of each layer's features a gate looks at that looks at the confidence alone."""
    return tuple(min(size, CONFIDENCE_SIZE) for size in feature_sizes)


@runtime_checkable
class WalkableBackbone(Protocol):
    """A stem, an ordered list of gated layers and a head, with what a gate may look at in between.

    Attributes:
        options: The menu of every gated layer.
        costs: What each choice costs.
        layers: The gated layers, in order.
        feature_sizes: How many numbers a gate may look at before each gated layer, see ``feature``.
        feature_macs: What these numbers take per image over all layers, in multiply-accumulates at full precision; one at b bits
            counts (b / 32)**2.
    """

    options: BitOptions
    costs: CostTable
    feature_sizes: tuple[int, ...]
    feature_macs: float

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
        """Mean of ``feature`` before each gated layer, float32 ``[layers, largest size]``, zero-padded."""
        ...

    @property
    def feature_std(self) -> Tensor:
        """Standard deviation of ``feature`` before each gated layer, float32 ``[layers, largest size]``, one-padded."""
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

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        """Describe the activation that enters gated layer ``layer`` for the gate.

        Returns:
            float32 ``[batch, feature_sizes[layer]]``: first how sure a classifier of this activation is, see ``confidence``, then
            the pooled channels. A gate may look at the first ``CONFIDENCE_SIZE`` alone.
        """
        ...


@runtime_checkable
class WithExits(Protocol):
    """What a network offers besides, if its ``costs`` know exits."""

    @property
    def layer_feature_macs(self) -> tuple[float, ...]:
        """What ``feature_macs`` are made up of, layer by layer; before an exit it is all the head's."""
        ...

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        """Turn the activation that enters gated layer ``layer`` into an exit's logits, float32 ``[batch, classes]``."""
        ...
