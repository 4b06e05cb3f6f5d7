"""Batches whose images run at several mixes at once, as under a gate.

The images at the same bits run through a layer together: norms see the statistics of all mixes, and
networks learn to work with these. A network that is trained at one mix per batch has other
statistics at each, of which a norm can hold only one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.data import ImageSet
from dfs_rl.training.bit_sampling import BitMix


def in_parts(images: ImageSet, n_parts: int, *, first: int = 0) -> tuple[ImageSet, list[int]]:
    """Return images sorted into parts, and the sizes of the parts.

    They are those of a batch from number ``first`` on; the batch's images go to the parts in turn.
    """
    rows = [torch.arange((part - first) % n_parts, len(images), n_parts) for part in range(n_parts)]
    return images.subset(torch.cat(rows).to(images.labels.device)), [len(part) for part in rows]


def run_parts(
    backbone: GatedBackbone, hidden: Tensor, mixes: Sequence[BitMix], sizes: list[int]
) -> Iterator[Tensor]:
    """Run each part of a batch at its mix; yield the output of every layer.

    ``hidden`` is the activation before the first gated layer, ``[batch, ...]``, sorted into parts
    of ``sizes`` images, at least one each.
    """
    for layer, own in zip(backbone.layers, zip(*mixes, strict=True), strict=True):
        if len(set(own)) == 1:
            hidden = layer(hidden, own[0])
        else:
            parts = list(torch.split(hidden, sizes))
            for bits in set(own):
                alike = [i for i, b in enumerate(own) if b == bits]
                joint = layer(torch.cat([parts[i] for i in alike]), bits)
                outputs = torch.split(joint, [sizes[i] for i in alike])
                for i, output in zip(alike, outputs, strict=True):
                    parts[i] = output
            hidden = torch.cat(parts)
        yield hidden
