"""Network in whole numbers with equal results for every batch size and grouping."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfs_rl.costs import BitOptions, CostTable, ExitCost, FixedCost

BITS = (0, 2, 4, 8)
MACS = (100, 300, 200, 400)
CHANNELS = (2, 2, 2, 4)
N_CLASSES = 3
IMAGE_SHAPE = (2, 4, 4)
RISES_AT = 2
"""Index of the layer that halves height and width and doubles the channels."""


class ToyLayer:
    """Gated layer ``shortcut + bits * weight * (shortcut rolled by one channel)``."""

    def __init__(self, weight: nn.Parameter, *, rises: bool) -> None:
        self.weight = weight
        self.rises = rises
        self.seen: list[tuple[int, int]] = []  # (bits, samples) of every call

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        self.seen.append((bits, len(hidden)))
        shortcut = hidden
        if self.rises:
            small = hidden[:, :, ::2, ::2]
            shortcut = torch.cat([small, torch.zeros_like(small)], dim=1)
        if bits == 0:
            return shortcut
        return shortcut + bits * self.weight * shortcut.roll(1, dims=1)


class ToyBackbone(nn.Module):
    """Four gated layers on images of 2 x 4 x 4 pixels; all values are whole numbers below 2**24.

    An exit after ``n`` layers has ``4 + n`` MACs at 8 bit and classifies the reversed channels of
    its input.
    """

    def __init__(self, bits: Sequence[int] = BITS, exits: Sequence[int] = ()) -> None:
        super().__init__()
        self.options = BitOptions(tuple(bits))
        self.costs = CostTable(
            options=self.options,
            layer_macs=MACS,
            fixed=(
                FixedCost(name="stem", macs=160, bits=8),
                FixedCost(name="head", macs=16, bits=32, layer=len(MACS)),
            ),
            exits=tuple(ExitCost(after=after, macs=4 + after, bits=8) for after in exits),
        )
        self.layer_feature_macs = (0.0, 1.0, 2.0, 3.0)
        self.answered: list[tuple[int, int]] = []  # (layers, samples) of every exit call
        self.feature_sizes = CHANNELS
        self.feature_macs = 0.0
        self.image_shape = IMAGE_SHAPE
        self.n_classes = N_CLASSES
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in MACS)
        self.layers = [ToyLayer(w, rises=i == RISES_AT) for i, w in enumerate(self.weights)]
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.register_buffer("feature_mean", torch.arange(16.0).reshape(4, 4))
        self.register_buffer("feature_std", torch.full((4, 4), 4.0))
        self.register_buffer(
            "readout",
            torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, -1.0], [2.0, -2.0, 1.0]]),
        )

    def stem(self, images: Tensor) -> Tensor:
        pixels = images if images.dtype == torch.uint8 else (images * 255.0).round()
        return (pixels // 16).float()

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3), dtype=torch.float32)

    def head(self, hidden: Tensor) -> Tensor:
        return self.feature(hidden, 0) @ self.readout / 512.0

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        self.answered.append((layer, len(hidden)))
        channels = self.feature(hidden, layer).flip(1)
        return channels @ self.readout[: channels.shape[1]] / 512.0


def toy_images(n: int, seed: int = 0) -> Tensor:
    """Return random images, uint8 ``[n, 2, 4, 4]``."""
    return torch.randint(
        0, 256, (n, *IMAGE_SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def run_alone(backbone: ToyBackbone, image: Tensor, options: Sequence[int]) -> Tensor:
    """Return the last activation of one image ``[2, 4, 4]`` at one option per layer."""
    hidden = backbone.stem(image[None])
    for layer, option in zip(backbone.layers, options, strict=True):
        hidden = layer(hidden, backbone.options[option])
    return hidden[0]


class SingleResult(NamedTuple):
    """Result of a pass of a single image.

    Attributes:
        logits: Logits ``[n_classes]``.
        options: Option of each layer; after an exit, the index of the exit action.
        macs: Sum of MACs x (bits / 32)**2.
    """

    logits: Tensor
    options: list[int]
    macs: float


@torch.no_grad()
def run_alone_with_exits(
    backbone: ToyBackbone, image: Tensor, actions: Sequence[int]
) -> SingleResult:
    """Run one image ``[2, 4, 4]`` in a plain loop.

    Action ``len(backbone.options)`` leaves at an exit, and is option 0 where there is none.
    """
    leaves, after = len(backbone.options), [exit_.after for exit_ in backbone.costs.exits]
    hidden, options, macs = backbone.stem(image[None]), [], 160 * (8 / 32) ** 2
    for i, layer in enumerate(backbone.layers):
        action = actions[i]
        if action == leaves and i in after:
            macs += (4 + i) * (8 / 32) ** 2
            return SingleResult(backbone.answer(hidden, i)[0], options + [leaves] * (4 - i), macs)
        action = 0 if action == leaves else action
        options.append(action)
        bits = backbone.options[action]
        macs += MACS[i] * (bits / 32) ** 2
        hidden = layer(hidden, bits)
    return SingleResult(backbone.head(hidden)[0], options, macs + 16)
