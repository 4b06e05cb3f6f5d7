"""Small network whose accuracy depends on every layer's bits, with images and a gate for it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dfs_rl.costs import FULL, SKIP, BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.baselines import run_baselines
from dfs_rl.evaluation.baselines.registry import EvaluationSetup, MethodResult
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.rules import RulePass

CHANNELS = 6
CLASSES = 4
NAMES = {
    "identity": "0123",
    "dataset": "made up",
    "fingerprint": "4567",
    "split": "test",
    "class_names": ("a", "b", "c", "d", "never seen"),
}


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
            scale = weight.abs().max() / 2 ** (bits - 1)
            weight = (weight / scale).round() * scale
        return hidden + torch.tanh(torch.einsum("oc,bchw->bohw", weight, hidden))


class MixBackbone:
    """Four gated layers of unequal cost over float64 activations: batching changes nothing.

    Exits classify as the head would without the later layers.
    """

    layer_feature_macs = (0.0,) * 4
    feature_sizes = (CHANNELS,) * 4
    feature_macs = 0.0
    image_shape = (1, 4, 4)
    n_classes = CLASSES
    feature_mean = torch.zeros(4, CHANNELS)
    feature_std = torch.ones(4, CHANNELS)

    def __init__(self, bits: Sequence[int], seed: int = 3, exits: Sequence[int] = ()) -> None:
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
            exits=tuple(ExitCost(after=after, macs=20 + after, bits=8) for after in exits),
        )
        self.layers = [MixLayer(normal(CHANNELS, CHANNELS)) for _ in range(4)]
        self._embed = normal(CHANNELS)
        self._readout = normal(CHANNELS * 16, CLASSES)

    def stem(self, images: Tensor) -> Tensor:
        return (images.double() / 127.5 - 1) * self._embed[:, None, None]

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3)).float()

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(1) @ self._readout / 6

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        return self.head(hidden)

    def logits(self, images: Tensor, actions: Sequence[int]) -> Tensor:
        """Run images in a plain loop, up to the first exit action."""
        hidden = self.stem(images)
        for layer, action in zip(self.layers, actions, strict=True):
            if action == len(self.options):
                break
            hidden = layer(hidden, self.options[action])
        return self.head(hidden)


def make_images(backbone: MixBackbone, n: int, seed: int) -> ImageSet:
    """Return random images labelled by the full-precision network, one in five at random."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = backbone.logits(images, (len(backbone.options) - 1,) * 4).argmax(dim=1)
    noise = torch.randint(0, CLASSES, (n,), generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.2
    return ImageSet(images, torch.where(wrong, noise, labels))


NETWORK = MixBackbone((0, 2, 32), exits=(2,))
IMAGES = make_images(NETWORK, 83, seed=5)
PASSES = (
    RulePass(options=(1, 1, 3, 3)),
    RulePass(options=(0, 1, 2, 1), mirrored=True),
    RulePass(options=(2, 2, 2, 2)),
)


class LookGate:
    """Gate that picks each option from the signs of two features."""

    name = "look"
    macs = 5.0

    def reset(self, batch_size: int) -> None:
        pass

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        return (features[:, layer] > 0).long() + (features[:, 5 - layer] > 0).long()


def make_setup(
    backbone: MixBackbone,
    reported: ImageSet,
    selection: ImageSet,
    gate: GateRecords,
    gate_selection: GateRecords,
    **changes: Any,
) -> EvaluationSetup:
    return EvaluationSetup(
        backbone=backbone,
        gate=gate,
        gate_selection=gate_selection,
        reported=reported,
        selection=selection,
        **changes,
    )


@pytest.fixture(scope="session")
def backbone() -> MixBackbone:
    return MixBackbone((0, 2, 32))


@pytest.fixture(scope="session")
def val(backbone: MixBackbone) -> ImageSet:
    return make_images(backbone, 157, seed=1)


@pytest.fixture(scope="session")
def test_set(backbone: MixBackbone) -> ImageSet:
    return make_images(backbone, 201, seed=2)


@pytest.fixture(scope="session")
def look_setup(backbone: MixBackbone, val: ImageSet, test_set: ImageSet) -> EvaluationSetup:
    """Setup of the evaluation of a ``LookGate``."""
    gate, on_val = (evaluate_gate(backbone, LookGate(), images) for images in (test_set, val))
    return make_setup(backbone, test_set, val, gate, on_val)


@pytest.fixture(scope="session")
def look_baselines(look_setup: EvaluationSetup) -> list[MethodResult]:
    return run_baselines(look_setup)
