"""Interfaces of backbones, satisfied by training and inference forms alike."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable


class GatedLayer(Protocol):
    """A layer that runs at any bit option; 0 bit leaves its shortcut and its mandatory parts.

    A layer with mandatory parts has a true attribute ``runs_when_skipped``.
    """

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        """Run every sample of ``hidden`` ``[batch, channels, height, width]`` at ``bits``."""
        ...


def runs_when_skipped(layer: GatedLayer) -> bool:
    """Return whether a layer computes something at 0 bit; else its skipped samples stay put."""
    return bool(getattr(layer, "runs_when_skipped", False))


@runtime_checkable
class WithSkip(Protocol):
    """A gated layer that corrects its shortcut when it is skipped."""

    def fit_skip(self, hidden: Tensor, output: Tensor) -> None:
        """Start the correction from an input and the output when the layer runs."""
        ...


CONFIDENCE_SIZE = 3
"""Size of ``probe.confidence``, the first part of every ``feature``."""


def confidence_sizes(feature_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the feature sizes of a gate that sees the confidence alone."""
    return tuple(min(size, CONFIDENCE_SIZE) for size in feature_sizes)


@runtime_checkable
class GatedBackbone(Protocol):
    """A stem, an ordered list of gated layers and a head, with features for gates in between.

    Attributes:
        options: Bit options of every gated layer.
        costs: Costs of every option.
        feature_sizes: Sizes of ``feature`` before each gated layer.
        feature_macs: Cost of all features per image in MACs at 32 bit, by the cost model.
    """

    options: BitOptions
    costs: CostTable
    feature_sizes: tuple[int, ...]
    feature_macs: float

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of logits."""
        ...

    @property
    def feature_mean(self) -> Tensor:
        """Mean of ``feature``, float32 ``[layers, largest size]``, zero-padded."""
        ...

    @property
    def feature_std(self) -> Tensor:
        """Standard deviation of ``feature``, float32 ``[layers, largest size]``, one-padded."""
        ...

    @property
    def layers(self) -> Sequence[GatedLayer]:
        """The gated layers, in order."""
        ...

    def stem(self, images: Tensor) -> Tensor:
        """Map images, uint8 or float in [0, 1] ``[batch, c, h, w]``, to the first activation."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Map the last activation to logits, float32 ``[batch, classes]``."""
        ...

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the features of the activation before a gated layer.

        They are float32 ``[batch, feature_sizes[layer]]``: the confidence of a classifier, see
        ``probe.confidence``, then the pooled channels.
        """
        ...


@runtime_checkable
class WithStages(Protocol):
    """A backbone whose gated layers form stages, in which the first layers carry most."""

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of gated layers of each stage, in order."""
        ...


def activations(
    backbone: GatedBackbone, hidden: Tensor, bits: int | Sequence[int]
) -> Iterator[Tensor]:
    """Run all gated layers; yield ``hidden`` and the output of every layer.

    ``bits`` is one bit width for all layers, or one for each.
    """
    mix = [bits] * len(backbone.layers) if isinstance(bits, int) else bits
    yield hidden
    for layer, own in zip(backbone.layers, mix, strict=True):
        hidden = layer(hidden, own)
        yield hidden


def run_layers(backbone: GatedBackbone, hidden: Tensor, bits: int | Sequence[int]) -> Tensor:
    """Run all gated layers as ``activations`` does, and return the last activation."""
    for output in activations(backbone, hidden, bits):
        hidden = output
    return hidden


@runtime_checkable
class WithExits(Protocol):
    """The further members of a backbone whose ``costs`` have exits."""

    @property
    def layer_feature_macs(self) -> tuple[float, ...]:
        """The summands of ``feature_macs``; before an exit those of its head."""
        ...

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the logits of the exit before gated layer ``layer``, ``[batch, classes]``."""
        ...
