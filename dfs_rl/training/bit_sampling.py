"""Sampling of each layer's bits in supernet training."""

import torch

from dfs_rl.costs import SKIP, BitOptions
from dfs_rl.utils.constants import Recipe

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


def sample_student_mix(
    options: BitOptions,
    n_layers: int,
    generator: torch.Generator,
    *,
    recipe: Recipe,
    quantized: bool,
) -> BitMix | None:
    """Draw the mix that a step distils into, ``None`` if there is none.

    The recipe ``"supernet"`` uses ``sample_low_mix``; ``"adn"`` skips all paths, or with equal odds
    uses ``sample_low_mix`` too. ``quantized`` tells if the quantizers of low mixes are initialized.
    """
    if recipe == "adn" and not (quantized and bool(torch.randint(2, (), generator=generator))):
        return (SKIP,) * n_layers
    return sample_low_mix(options, n_layers, generator) if quantized else None
