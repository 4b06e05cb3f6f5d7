"""What transformers of every kind share: how images become maps of tokens, and these an answer.

Tokens are averaged for the head and for what gates look at, over the whole image or the parts of a grid; there is no class token.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import PreparedBackbone
from dfs_rl.backbones.common_config import ShapedBackbone, check_network
from dfs_rl.backbones.probe import pool_grid
from dfs_rl.costs import DEFAULT_BITS
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.general_inference import PreparedLayerNorm
from dfs_rl.quantization.inference import PreparedLinear
from dfs_rl.quantization.modules import FractionalLinear, LayerNormPerBits

if TYPE_CHECKING:
    from dfs_rl.backbones.adaptive_layer import PreparableBlock

_SIDE = 8  # tokens along the side of an image, unless a patch is given


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """What the transformers' configurations have in common.

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
        if self.patch_size not in self.patches:
            raise ConfigError(
                f"patch is {self.patch}, which does not suit images of {self.image_size[0]} x {self.image_size[1]} pixels; allowed are "
                f"{self.patches}."
            )

    @property
    def patches(self) -> list[int]:
        """The sides of the squares that images can be cut into."""
        common = math.gcd(*self.image_size)
        return [side for side in range(1, common + 1) if common % side == 0]

    @property
    def wanted_patch(self) -> float:
        """Of which the nearest of ``patches`` is taken, unless one is given."""
        return self.image_size[0] / _SIDE

    @property
    def patch_size(self) -> int:
        """Height and width of a patch in pixels."""
        if self.patch is not None:
            return self.patch
        return min(self.patches, key=lambda patch: (abs(patch - self.wanted_patch), -patch))

    @property
    def tokens(self) -> tuple[int, int]:
        """How many rows and columns of tokens there are at first."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def last_width(self) -> int:
        """Channels of a token at the end."""
        return self.width


class _OfMaps:
    """How activations that are maps of tokens are pooled."""

    probe_grid: int

    def parts(self, hidden: Tensor, *, grid: int | None = None) -> Tensor:
        """Pool ``[batch, rows, columns, width]`` over the parts of a grid, float32 ``[batch, width, parts]``."""
        maps = hidden.permute(0, 3, 1, 2)
        return pool_grid(maps, grid=self.probe_grid if grid is None else grid)


class TokenBackbone(_OfMaps, ShapedBackbone):
    """The training form of a transformer; a subclass adds what is done to the first tokens, and the gated layers.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    optimizer = "adamw"
    feature_weight = 0.1
    config: TokenShape

    def __init__(self, config: TokenShape, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.embedding = FractionalLinear(
            config.in_channels * config.patch_size**2,
            config.width,
            bits=config.stem_bits,
            signed_input=True,
            per_channel=config.per_channel,
        )
        self.norm = LayerNormPerBits(config.last_width, (config.stem_bits,))
        self.classifier = FractionalLinear(
            config.last_width, config.n_classes, bits=config.stem_bits, signed_input=True
        )

    @abstractmethod
    def begin(self, tokens: Tensor) -> Tensor:
        """Make the first activation of embedded patches, ``[batch, rows, columns, width]``."""

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Embedding and classifier."""
        return [self.embedding, self.norm, self.classifier]

    def stem(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, ``[batch, rows, columns, width]``."""
        return self.begin(self.embedding(cut(self.normalise(images), self.config.patch_size)))

    def comparable(self, hidden: Tensor) -> Tensor:
        """Return normalised tokens: no norm bounds them, and distances would shrink with all of them."""
        return functional.layer_norm(hidden, hidden.shape[-1:])

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        mean = self.norm(hidden, self.stem_bits).float().mean(dim=(1, 2))
        return cast("Tensor", self.classifier(mean)).float()


class PreparedTokenBackbone(_OfMaps, PreparedBackbone):
    """A frozen transformer; see ``PreparedBackbone``. A subclass makes what ``begin`` needs, and freezes it.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: What activations between gated layers are kept in; all else is in float32.
    """

    def __init__(self, source: TokenBackbone, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        self.patch_size = source.config.patch_size
        self.stem_bits = source.stem_bits
        self.embedding = PreparedLinear(source.embedding)
        self.blocks = nn.ModuleList(
            cast("PreparableBlock", layer).prepare(dtype=dtype) for layer in source.blocks
        )
        self.norm = PreparedLayerNorm(source.norm)
        self.classifier = PreparedLinear(source.classifier)

    @abstractmethod
    def begin(self, tokens: Tensor) -> Tensor:
        """Make the first activation of embedded patches, ``[batch, rows, columns, width]``."""

    def stem(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, ``[batch, rows, columns, width]``."""
        embedded = self.embedding(cut(self.normalise(images), self.patch_size))
        return self.begin(embedded).to(self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        mean = self.norm(hidden.float(), self.stem_bits).mean(dim=(1, 2))
        return cast("Tensor", self.classifier(mean))


def cut(pixels: Tensor, patch: int) -> Tensor:
    """Cut images ``[batch, c, h, w]`` into patches, ``[batch, h / patch, w / patch, c * patch * patch]``."""
    apart = pixels.unfold(2, patch, patch).unfold(
        3, patch, patch
    )  # [batch, c, rows, columns, patch, patch]
    return apart.permute(0, 2, 3, 1, 4, 5).flatten(3)
