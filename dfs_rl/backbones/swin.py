"""Swin transformers (Liu et al., ICCV 2021) of adaptive depth, at any bit option."""

from collections.abc import Sequence
from math import gcd, isqrt
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.adaptive import AdaptiveConfig, AdaptiveNetwork, make_stages
from dfs_rl.backbones.registry import register_backbone
from dfs_rl.backbones.transformer import (
    SelfAttention,
    TokenBackbone,
    TokenConfig,
    TransformerBlock,
    make_branches,
)
from dfs_rl.data import ChannelStatistics
from dfs_rl.quantization.inference import Float32Module
from dfs_rl.quantization.modules import FractionalLinear
from dfs_rl.quantization.norms import LayerNormPerBits
from dfs_rl.utils.config import PositiveInt, configuration

MapSize = tuple[int, int]

_LARGEST_WINDOW = 7


@configuration
class AdaptiveSwinConfig(TokenConfig, AdaptiveConfig):
    """Shape and precision of a Swin transformer of adaptive depth.

    Each stage after the first has tokens of twice the width, a quarter as many, and twice the
    heads. Windows are the largest squares of at most 7 x 7 tokens that divide a stage's map: 7 at
    224 pixels, as in the paper, and 4 at 32. See ``TokenConfig`` and ``AdaptiveConfig`` too.

    Attributes:
        width: Channels of the first stage's tokens: 96 in Swin-T and Swin-S.
        heads: Heads of the first stage's attention, a divisor of the width.
        patch: Height and width of a token in pixels; by default about 4, and fewer where images
            would have fewer than 16 tokens in a column.
        blocks: Blocks of each stage, at least 2: (2, 2, 6, 2) in Swin-T, (2, 2, 18, 2) in Swin-S.
    """

    TOKENS: ClassVar[int] = 16
    LARGEST_PATCH: ClassVar[float] = 4.0

    width: PositiveInt = 96
    blocks: tuple[int, ...] = (2, 2, 6, 2)

    @property
    def patches(self) -> list[int]:
        """Sides of the squares into which images can be cut so that all stages have windows."""
        halvings = 2 ** (len(self.blocks) - 1)
        return [
            patch
            for patch in super().patches
            if not any(side // patch % halvings for side in self.image_size)
            and all(window_of(size) > 1 or size == (1, 1) for size in self._maps(patch))
        ]

    @property
    def side_multiple(self) -> int:
        """Images with sides of its multiples have patches."""
        return int(2 ** (len(self.blocks) + 1))

    @property
    def last_width(self) -> int:
        """Channels of a token of the last layer."""
        return self.width << len(self.blocks) - 1

    @property
    def map_sizes(self) -> list[MapSize]:
        """Rows and columns of tokens of each stage."""
        return self._maps(self.patch_size)

    def _maps(self, patch: int) -> list[MapSize]:
        rows, columns = (side // patch for side in self.image_size)
        return [(rows >> n, columns >> n) for n in range(len(self.blocks))]


def window_of(size: MapSize) -> int:
    """Return the side of the largest windows into which a map can be cut."""
    common = gcd(*size)
    return max(n for n in range(1, _LARGEST_WINDOW + 1) if common % n == 0)


class WindowAttention(SelfAttention):
    """Attention among the tokens of each window, with a learned bias per relative position.

    See ``SelfAttention`` for the other arguments.

    Args:
        size: Rows and columns of tokens.
        shifted: Whether windows begin half a window later, so that tokens of different ones meet.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bits: Sequence[int],
        *,
        size: MapSize,
        shifted: bool,
        per_channel: bool,
    ) -> None:
        super().__init__(width, heads, bits, per_channel=per_channel)
        self.window = window = window_of(size)
        # A side that one window covers stays as it is.
        self.shift = tuple(window // 2 if shifted and n > window else 0 for n in size)
        self.position_bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        self.places: Tensor
        self.apart: Tensor
        self.register_buffer("places", _relative_places(window))
        self.register_buffer("apart", _apart(size, self.shift, window))

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Attend within windows: ``[batch, rows, columns, width]`` to the same shape."""
        size = tokens.shape[1:3]
        back = tuple(-n for n in self.shift)
        windows = cut_windows(tokens.roll(back, (1, 2)), self.window)  # [batch, windows, n, width]
        bias = self.position_bias[:, self.places]  # [heads, n, n]
        added = bias.masked_fill(self.apart[:, None], float("-inf"))  # [windows, heads, n, n]
        mixed = join_windows(self.attend(windows, bits, added), (size[0], size[1]))
        return mixed.roll(self.shift, (1, 2))


class PatchMerging(Float32Module):
    """Joins every 2 x 2 tokens into one of twice their width; always runs, first in its stage."""

    def __init__(self, width: int, bits: int, *, per_channel: bool) -> None:
        super().__init__()
        self.bits = bits
        self.norm = LayerNormPerBits(4 * width, (bits,))
        self.reduce = FractionalLinear(
            4 * width, 2 * width, bits=bits, signed_input=True, bias=False, per_channel=per_channel
        )

    def forward(self, tokens: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to ``[batch, rows / 2, columns / 2, 2 width]``.

        It has one precision and one set of norms, whatever the block's are.
        """
        del bits, norm_set
        batch, rows, columns, width = tokens.shape
        corners = cut_windows(tokens, 2).reshape(batch, rows // 2, columns // 2, 4 * width)
        return self.kept(self.reduce(self.norm(corners, self.bits), self.bits))


def cut_windows(tokens: Tensor, window: int) -> Tensor:
    """Cut ``[batch, rows, columns, width]`` into ``[batch, windows, window**2, width]``."""
    batch, rows, columns, width = tokens.shape
    apart = tokens.reshape(batch, rows // window, window, columns // window, window, width)
    windows = rows // window * (columns // window)
    return apart.transpose(2, 3).reshape(batch, windows, window**2, width)


def join_windows(windows: Tensor, size: MapSize) -> Tensor:
    """Undo ``cut_windows`` for a map of ``size`` tokens."""
    batch, _, tokens, width = windows.shape
    window = isqrt(tokens)
    apart = windows.reshape(batch, size[0] // window, size[1] // window, window, window, width)
    return apart.transpose(2, 3).reshape(batch, *size, width)


def _relative_places(window: int) -> Tensor:
    """Number the relative positions of a window's tokens, int64 ``[n, n]``, n = window**2."""
    axis = torch.arange(window)
    places = torch.cartesian_prod(axis, axis)  # [n, 2]
    away = places[:, None] - places[None] + window - 1  # [n, n, 2], from 0
    return away[..., 0] * (2 * window - 1) + away[..., 1]


def _apart(size: MapSize, shift: Sequence[int], window: int) -> Tensor:
    """Mark tokens of a window that only the shift's wrap-around joins, bool ``[windows, n, n]``."""
    wrapped = [torch.arange(n) >= n - moved for n, moved in zip(size, shift, strict=True)]
    kinds = 2 * wrapped[0][:, None] + wrapped[1].int()  # [rows, columns], as after the shift
    kinds = cut_windows(kinds[None, :, :, None], window)[0, ..., 0]  # [windows, n]
    return kinds[:, :, None] != kinds[:, None]


@register_backbone("swin_tiny", AdaptiveSwinConfig, recipe="adn", blocks=(2, 2, 6, 2))
@register_backbone("swin_small", AdaptiveSwinConfig, recipe="adn", blocks=(2, 2, 18, 2))
class AdaptiveSwin(TokenBackbone, AdaptiveNetwork):
    """A Swin transformer whose stages' paths are gated layers; see ``AdaptiveLayer``."""

    family = "adaptive_swin"
    config: AdaptiveSwinConfig

    def __init__(self, config: AdaptiveSwinConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.first_norm = LayerNormPerBits(config.width, (config.stem_bits,))
        self.blocks = make_stages(self._make_block, config)
        self.finish_making(signed=True)

    def _make_block(
        self, stage: int, n: int, bits: Sequence[int], norm_sets: int
    ) -> TransformerBlock:
        """Make the n-th block of a stage; every second one has shifted windows."""
        config = self.config
        width = config.width * 2**stage
        attention = WindowAttention(
            width,
            config.heads * 2**stage,
            bits,
            size=config.map_sizes[stage],
            shifted=n % 2 == 1,
            per_channel=config.per_channel,
        )
        branches = make_branches(
            attention, width, bits, per_channel=config.per_channel, norm_sets=norm_sets
        )
        if stage == 0 or n > 0:
            return TransformerBlock(branches)
        merging = PatchMerging(width // 2, config.stem_bits, per_channel=config.per_channel)
        return TransformerBlock([merging, *branches])

    def begin(self, tokens: Tensor) -> Tensor:
        """Normalise them."""
        return cast("Tensor", self.first_norm(tokens, self.stem_bits))
