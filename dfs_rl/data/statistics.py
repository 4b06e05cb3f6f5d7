"""Channel statistics for normalisation, taken from the train split and kept with the backbone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_rl.errors import DataError

_CHUNK = 1024  # images turned into float64 at a time: 25 MB for 3 x 32 x 32
_WHITE = 255.0


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, pixels scaled to [0, 1].

    Attributes:
        mean: One number per channel.
        std: One positive number per channel; 1 for a channel that never changes, so that dividing by it is safe.

    Raises:
        DataError: If the two differ in length, are not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.mean) == len(self.std) and all(map(math.isfinite, self.mean + self.std))
        if not fits or not self.mean or min(self.std) <= 0:
            raise DataError(
                f"channel statistics have mean {self.mean} and std {self.std}; one finite mean and one positive std per channel."
            )


def channel_statistics(images: Tensor) -> ChannelStatistics:
    """Measure mean and (population) standard deviation of each channel.

    Args:
        images: uint8 ``[n, c, h, w]``, at least one image.

    Returns:
        The statistics, of pixels scaled to [0, 1].
    """
    if not len(images):
        raise DataError(
            "channel statistics of no images are undefined; at least one image is needed."
        )
    total = torch.zeros(images.shape[1], dtype=torch.float64, device=images.device)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, _CHUNK):
        values = chunk.to(torch.float64)  # sums of whole numbers below 2**53: exact
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    # n * sum(x^2) - sum(x)^2 keeps the subtraction between exact sums as far as float64 reaches.
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6 * _WHITE, std, _WHITE)
    return ChannelStatistics(
        mean=tuple((mean / _WHITE).tolist()), std=tuple((std / _WHITE).tolist())
    )
