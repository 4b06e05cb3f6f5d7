"""Standard augmentation of small images in batches: crop after zero padding, and mirroring."""

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.errors import ConfigError


def augment(
    images: Tensor, generator: torch.Generator, *, pad: int | None = None, flip: bool
) -> Tensor:
    """Shift each image by a random offset of up to ``pad`` pixels and mirror about half of them.

    All ``(2 * pad + 1)**2`` offsets are equally likely; uncovered pixels are zero.

    Args:
        images: uint8 ``[n, c, h, w]``, on any device.
        generator: Source of the random numbers. A generator on the images' device avoids a
            transfer; a CPU generator works for any device.
        pad: Largest shift in pixels, at most the shorter side; 0 disables shifts, None uses an
            eighth of the shorter side.
        flip: Whether to mirror each image left to right with probability 0.5.

    Raises:
        ConfigError: If ``pad`` is negative or more than the shorter side.
    """
    n, channels, height, width = images.shape
    pad = min(height, width) // 8 if pad is None else pad
    check_pad(pad, height, width)
    device = images.device

    def draw(choices: int) -> Tensor:
        drawn = torch.randint(choices, (n, 1), generator=generator, device=generator.device)
        return drawn.to(device, non_blocking=True)

    rows = torch.arange(height, device=device) + draw(2 * pad + 1)  # [n, h], of padded images
    columns = torch.arange(width, device=device).expand(n, width)
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    columns = columns + draw(2 * pad + 1)  # [n, w]

    padded = functional.pad(images, (pad, pad, pad, pad))  # [n, c, h + 2 pad, w + 2 pad]
    # [n, h, w], indices into a flattened padded channel
    pixels = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    # On a CPU, gather is faster than unfold with advanced indexing.
    flat = pixels.view(n, 1, height * width).expand(n, channels, height * width)
    return padded.flatten(2).gather(2, flat).view(n, channels, height, width)


def check_pad(pad: int, height: int, width: int, *, name: str = "pad") -> None:
    """Raise ConfigError for a shift that is negative or above the images' shorter side."""
    if not 0 <= pad <= min(height, width):
        raise ConfigError(
            f"{name} is {pad}, but the images are {height} x {width} pixels; allowed are 0 to "
            f"{min(height, width)} pixels."
        )
