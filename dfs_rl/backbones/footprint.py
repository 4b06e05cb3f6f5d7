"""Memory that images take in a backbone, measured on one image."""

import torch
from torch import Tensor

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.interfaces import GatedBackbone, activations
from dfs_rl.costs import SKIP

_TEMPORARIES = 8
"""Activations of the largest size that a layer holds at once, its inner ones included."""


@torch.inference_mode()
def forward_bytes(backbone: GatedBackbone) -> int:
    """Return the approximate bytes of one image in the inference form."""
    image, full = _images(backbone, 1), backbone.options[backbone.options.full]
    seen = activations(backbone, backbone.stem(image), full)
    return image.nbytes + _TEMPORARIES * max(hidden.nbytes for hidden in seen)


def backward_bytes(backbone: Backbone) -> int:
    """Return the bytes that the backward pass keeps per image.

    It leaves the backbone in evaluation mode. One on the device "meta" takes no memory itself.
    """
    backbone.eval()
    lowest = next(bits for bits in backbone.options if bits != SKIP)
    tried = {lowest, backbone.options[backbone.options.full]}
    return max(_kept(backbone, bits, 2) - _kept(backbone, bits, 1) for bits in tried)


def _kept(backbone: Backbone, bits: int, n: int) -> int:
    """Return the bytes that the backward pass of ``n`` images keeps, weights included."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
        backbone(_images(backbone, n), (bits,) * len(backbone.blocks))
    return kept


def _images(backbone: GatedBackbone, n: int) -> Tensor:
    place = backbone.feature_mean.device
    return torch.zeros(n, *backbone.image_shape, dtype=torch.uint8, device=place)
