"""Small networks of every kind with non-trivial norms, biases and quantizer scales."""

import copy
import functools

import torch
from torch import Tensor

from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveMobileNetConfig,
    AdaptiveResNet,
    AdaptiveResNetConfig,
    AdaptiveSwin,
    AdaptiveSwinConfig,
    AdaptiveVisionTransformer,
    AdaptiveVisionTransformerConfig,
    Backbone,
    GatedBackbone,
    NetworkConfig,
    ResNet,
    ResNetConfig,
    VisionTransformer,
    VisionTransformerConfig,
)
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.data import ChannelStatistics
from dfs_rl.training.calibration import calibrate_scales

GREY = ChannelStatistics((0.4,), (0.3,))
TOKENS = {"width": 12, "heads": 2, "patch": 2}
_SHAPES: dict[type[Backbone], tuple[type[NetworkConfig], dict[str, object]]] = {
    ResNet: (ResNetConfig, {"depth": 8, "width": 4, "bits": (0, 2, 4, 8, 32)}),
    AdaptiveResNet: (AdaptiveResNetConfig, {"blocks": (3, 2), "width": 4, "bits": (0, 4, 32)}),
    AdaptiveMobileNet: (
        AdaptiveMobileNetConfig,
        {"blocks": (2, 2, 4, 2, 2), "width": 8, "bits": (0, 8, 32), "image_size": (16, 16)},
    ),
    VisionTransformer: (VisionTransformerConfig, TOKENS | {"depth": 3, "bits": (0, 4, 32)}),
    AdaptiveVisionTransformer: (
        AdaptiveVisionTransformerConfig,
        TOKENS | {"blocks": (3, 2), "bits": (0, 32)},
    ),
    AdaptiveSwin: (
        AdaptiveSwinConfig,
        TOKENS
        | {"blocks": (3, 2), "width": 8, "patch": 1, "bits": (0, 4, 32), "image_size": (8, 12)},
    ),
}


def pictures_for(kind: type[Backbone], n: int = 8) -> Tensor:
    """Return random images of the input size of a kind of network."""
    generator = torch.Generator().manual_seed(2)
    size = _SHAPES[kind][1].get("image_size", (8, 8))
    return torch.randint(0, 256, (n, 1, *size), dtype=torch.uint8, generator=generator)


def network(kind: type[Backbone], **changes: object) -> Backbone:
    """Build a calibrated network with random norms and biases, in evaluation mode.

    It is built once for each shape, and copied.
    """
    net = copy.deepcopy(_network(kind, tuple(changes.items())))
    torch.manual_seed(0)
    return net


@functools.cache
def _network(kind: type[Backbone], changes: tuple[tuple[str, object], ...]) -> Backbone:
    config, shape = _SHAPES[kind]
    settings = {"in_channels": 1, "n_classes": 3, "image_size": (8, 8), **shape, **dict(changes)}
    torch.manual_seed(0)
    net = kind(config(**settings), GREY)  # type: ignore[call-arg, arg-type]
    tokens = net.optimizer == "adamw"
    images = pictures_for(kind, 16)
    net.train(not tokens)
    calibrate_scales(net, images, parts=[net])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or (tokens and name.endswith("bias")):
                parameter.uniform_(0.5, 1.5)
        for bits in net.options if not tokens else ():
            for _ in range(10):  # updates the running statistics
                net(images, bits)
    return net.eval()


def run(net: GatedBackbone, images: Tensor, mix: tuple[int, ...]) -> Tensor:
    """Return the logits at one option per layer, in training or inference form."""
    return net.head(run_layers(net, net.stem(images), mix))
