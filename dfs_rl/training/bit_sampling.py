"""Sampling of each layer's bits in supernet training."""

from collections.abc import Sequence

import torch

from dfs_rl.backbones.base import Backbone
from dfs_rl.costs import SKIP, BitOptions
from dfs_rl.utils.constants import ELASTIC_PARTS, Recipe

BitMix = tuple[int, ...]
"""Bits of each gated layer, in order."""


def sample_low_mix(options: BitOptions, n_layers: int, generator: torch.Generator) -> BitMix:
    """Draw a mix to distil into: with equal odds a uniform quantized option or a random mix.

    Uniform draws leave out the largest bit width, which always has a pass, and full precision.
    """
    candidates = [bits for bits in options.quantized if bits != options[options.full]]
    if candidates and bool(torch.randint(2, (), generator=generator)):
        pick = int(torch.randint(len(candidates), (), generator=generator))
        return (candidates[pick],) * n_layers
    draws = torch.randint(len(options), (n_layers,), generator=generator)
    return tuple(options[int(i)] for i in draws)


def elastic_mixes(
    backbone: Backbone, bits: int | Sequence[int], generator: torch.Generator
) -> list[BitMix]:
    """Return six mixes that run at the same bits, two of which skip layers.

    The first four skip none. The fifth is nested: the first layers of each stage run, with equal
    odds one of each or a random number. The last skips any layer, as often as a uniform draw among
    the options does.
    """
    stages = backbone.stages
    depths = [1] * len(stages)
    if bool(torch.randint(2, (), generator=generator)):
        depths = [1 + int(torch.randint(n, (), generator=generator)) for n in stages]
    whole, nested = backbone.at_depths(stages, bits), backbone.at_depths(depths, bits)
    skips = torch.randint(len(backbone.options), (len(backbone.blocks),), generator=generator) == 0
    scattered = tuple(SKIP if s else b for b, s in zip(whole, skips.tolist(), strict=True))
    return [*[whole] * ELASTIC_PARTS, nested, scattered]


def sample_student_mixes(
    backbone: Backbone, generator: torch.Generator, *, recipe: Recipe, quantized: bool
) -> list[BitMix]:
    """Draw the mixes that a step distils into, each with an equal part of the batch.

    The recipe ``"supernet"`` has one of ``sample_low_mix``; ``"adn"`` skips all paths, or with
    equal odds has one of ``sample_low_mix`` too; ``"elastic"`` has ``elastic_mixes``, with equal
    odds at one bit width or at random ones. ``quantized`` tells if the quantizers of low mixes are
    initialized; without them there may be no mix.
    """
    options, n_layers = backbone.options, len(backbone.blocks)
    if recipe == "adn" and not (quantized and bool(torch.randint(2, (), generator=generator))):
        return [(SKIP,) * n_layers]
    if not quantized:
        return []
    if recipe != "elastic":
        return [sample_low_mix(options, n_layers, generator)]
    run = [bits for bits in options if bits != SKIP]
    n_draws = n_layers if bool(torch.randint(2, (), generator=generator)) else 1
    draws = [run[i] for i in torch.randint(len(run), (n_draws,), generator=generator).tolist()]
    return elastic_mixes(backbone, draws[0] if n_draws == 1 else draws, generator)
