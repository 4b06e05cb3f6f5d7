"""How images become tokens."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones.shape import check_network
from dfs_rl.cost import DEFAULT_BITS
from dfs_rl.errors import ConfigError

_SIDE = 8  # tokens along the side of an image, unless a patch is given


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """What the vision transformers' configurations have in common.

    Attributes:
        width: Channels of a token: 192 in ViT-Tiny, 384 in ViT-Small.
        heads: Of the attention, of which the width is a multiple: 3 in ViT-Tiny, 6 in ViT-Small.
        patch: Height and width in pixels of what becomes a token; by default about an eighth of the images' height.
        in_channels: Image channels, 1 to 4.
        n_classes: Classes, at least 2.
        image_size: Height and width of the images in pixels, multiples of the patch.
        bits: The menu of every gated layer, see ``BitOptions``.
        stem_bits: Precision of everything that no gate decides about.
        per_channel: One weight step per output channel instead of one per layer.

    Raises:
        ConfigError: If a value is outside its range.
    """

    width: int = 192
    heads: int = 3
    patch: int | None = None
    in_channels: int = 3
    n_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    bits: tuple[int, ...] = DEFAULT_BITS
    stem_bits: int = 8
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_network(self)
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(
                f"heads is {self.heads}; the width {self.width} must be a multiple of it."
            )
        if self.patch is not None and self.patch < 1:
            raise ConfigError(f"patch is {self.patch}; allowed are 1 or more pixels.")
        if self.patch_size not in cuttable_patches(self.image_size):
            raise ConfigError(
                f"patch is {self.patch}, into which images of {self.image_size[0]} x {self.image_size[1]} pixels cannot be cut; allowed "
                f"are {cuttable_patches(self.image_size)}."
            )

    @property
    def patch_size(self) -> int:
        """Height and width of a patch in pixels."""
        if self.patch is not None:
            return self.patch
        wanted = self.image_size[0] / _SIDE
        return min(
            cuttable_patches(self.image_size), key=lambda patch: (abs(patch - wanted), -patch)
        )

    @property
    def tokens(self) -> tuple[int, int]:
        """How many tokens there are along the height and the width."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


def cuttable_patches(image_size: tuple[int, int]) -> list[int]:
    """Return the sides of the squares that images can be cut into."""
    common = math.gcd(*image_size)
    return [side for side in range(1, common + 1) if common % side == 0]


def cut(pixels: Tensor, patch: int) -> Tensor:
    """Cut images ``[batch, c, h, w]`` into patches, row by row, ``[batch, n, c * patch * patch]``."""
    return functional.unfold(pixels, patch, stride=patch).transpose(1, 2)
