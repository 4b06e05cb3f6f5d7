"""A small real network whose accuracy depends on every layer's bits, and images that it was not made for."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dfs_rl.costs import FULL, SKIP, BitOptions, CostTable, FixedCost
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.baselines.methods import EvaluationSetup

CHANNELS = 6
CLASSES = 4


class MixLayer:
    """``h + tanh(W h)`` over channels, with W rounded to a grid at low bits."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.images_run = 0

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        self.images_run += len(hidden)
        if bits == SKIP:
            return hidden
        weight = self.weight
        if bits < FULL:
            step = weight.abs().max() / 2 ** (bits - 1)
            weight = (weight / step).round() * step
        return hidden + torch.tanh(torch.einsum("oc,bchw->bohw", weight, hidden))


class MixBackbone:
    """Four gated layers of unequal cost over float64 activations, so that batching changes nothing."""

    def __init__(self, bits: Sequence[int], seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.options = BitOptions(tuple(bits))
        self.costs = CostTable(
            options=self.options,
            layer_macs=(400, 100, 200, 300),
            fixed=(
                FixedCost(name="stem", macs=50, bits=8),
                FixedCost(name="head", macs=10, bits=32),
            ),
        )
        self.feature_sizes = (CHANNELS,) * 4
        self.feature_macs = 0.0
        self.image_shape = (1, 4, 4)
        self.n_classes = CLASSES
        self.feature_mean = torch.zeros(4, CHANNELS)
        self.feature_std = torch.ones(4, CHANNELS)
        self.layers = [MixLayer(normal(CHANNELS, CHANNELS)) for _ in range(4)]
        self._embed = normal(CHANNELS)
        self._readout = normal(CHANNELS * 16, CLASSES)

    def stem(self, images: Tensor) -> Tensor:
        return (images.double() / 127.5 - 1) * self._embed[:, None, None]

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3)).float()

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(1) @ self._readout / 6

    def logits(self, images: Tensor, options: Sequence[int]) -> Tensor:
        """The plain forward pass at one option per layer."""
        hidden = self.stem(images)
        for layer, option in zip(self.layers, options, strict=True):
            hidden = layer(hidden, self.options[option])
        return self.head(hidden)


def make_images(backbone: MixBackbone, n: int, seed: int) -> ImageSet:
    """Random images labelled by the full-precision network, one in five at random."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = backbone.logits(images, (len(backbone.options) - 1,) * 4).argmax(dim=1)
    noise = torch.randint(0, CLASSES, (n,), generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.2
    return ImageSet(images, torch.where(wrong, noise, labels))


@pytest.fixture
def backbone() -> MixBackbone:
    return MixBackbone((0, 2, 32))


@pytest.fixture
def val(backbone) -> ImageSet:
    return make_images(backbone, 157, seed=1)


@pytest.fixture
def test_set(backbone) -> ImageSet:
    return make_images(backbone, 201, seed=2)


@pytest.fixture
def evaluation_setup(val, test_set) -> EvaluationSetup:
    return EvaluationSetup(
        reported=test_set, selection=val, reported_name="test", selection_name="val"
    )


@pytest.fixture
def look_gate() -> type:
    """A gate that looks: it picks each option from the signs of two features."""

    class LookGate:
        name = "look"
        macs = 5.0

        def reset(self, batch_size: int) -> None:
            pass

        def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
            return (features[:, layer] > 0).long() + (features[:, 5 - layer] > 0).long()

    return LookGate
