"""Which bits the layers run at while a supernet learns."""

import torch

from dfs_rl.cost import BitOptions

Setting = tuple[int, ...]
"""Bits of each gated layer, in order."""


def uniform(bits: int, n_layers: int) -> Setting:
    """Every layer at ``bits``."""
    return (bits,) * n_layers


def random_mix(options: BitOptions, n_layers: int, generator: torch.Generator) -> Setting:
    """Each layer at an option of its own, all options equally likely."""
    draws = torch.randint(len(options), (n_layers,), generator=generator)
    return tuple(options[int(i)] for i in draws)


def sample_low(options: BitOptions, n_layers: int, generator: torch.Generator) -> Setting:
    """Draw a setting to distil into: with equal odds one uniform quantized option, or a random mix.

    The dearest option is left out of the uniform draws, because it has a pass of its own; full precision needs none.
    """
    candidates = [bits for bits in options.quantized if bits != options[options.full]]
    if candidates and bool(torch.randint(2, (), generator=generator)):
        pick = int(torch.randint(len(candidates), (), generator=generator))
        return uniform(candidates[pick], n_layers)
    return random_mix(options, n_layers, generator)
