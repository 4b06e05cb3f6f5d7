"""Channel statistics of the train split, for the normalization in the backbone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_rl.errors import DataError

_CHUNK = 1024  # images converted to int64 at a time: 25 MB for 3 x 32 x 32
_WHITE = 255.0


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1].

    Attributes:
        mean: Mean of each channel.
        std: Positive standard deviation of each channel; ``channel_statistics`` uses 1 for constant
            channels, so that division is safe.

    Raises:
        DataError: If the lengths differ, a number is not finite, or a standard deviation is not
            positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.mean) == len(self.std) and all(map(math.isfinite, self.mean + self.std))
        if not fits or not self.mean or min(self.std) <= 0:
            raise DataError(
                f"channel statistics have mean {self.mean} and std {self.std}; one finite mean and "
                "one positive std per channel."
            )

    @property
    def changes_nothing(self) -> bool:
        """True if normalization is the identity: mean 0 and standard deviation 1."""
        return not any(self.mean) and all(std == 1.0 for std in self.std)


def channel_statistics(images: Tensor) -> ChannelStatistics:
    """Return mean and (population) standard deviation of each channel, scaled to [0, 1].

    Args:
        images: At least one image, uint8 ``[n, c, h, w]``.
    """
    if not len(images):
        raise DataError(
            "channel statistics of no images are undefined; at least one image is needed."
        )
    sums = torch.zeros(2, images.shape[1], dtype=torch.int64, device=images.device)
    for chunk in torch.split(images, _CHUNK):
        values = chunk.long()
        sums += torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3))))
    count = images.numel() // images.shape[1]
    mean, std = [], []
    for total, squares in zip(*sums.tolist(), strict=True):
        mean.append(total / count / _WHITE)
        # Python integers have no size limit, so the subtraction is exact.
        std.append(math.sqrt(count * squares - total**2) / count / _WHITE or 1.0)
    return ChannelStatistics(mean=tuple(mean), std=tuple(std))
