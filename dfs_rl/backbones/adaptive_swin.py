"""Swin transformers (Liu et al., ICCV 2021) of adaptive depth, see ``adaptive_layer``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.adaptive_layer import (
    AdaptiveBackbone,
    Granularity,
    check_skippable,
    check_stages,
    make_stage,
)
from dfs_rl.backbones.common_config import check_network
from dfs_rl.backbones.patch_embed import PreparedTokenBackbone, TokenBackbone, TokenShape
from dfs_rl.backbones.swin_blocks import MapSize, PatchMerging, WindowAttention
from dfs_rl.backbones.transformer import Branch, Mlp, TransformerBlock
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.general_inference import PreparedLayerNorm
from dfs_rl.quantization.modules import LayerNormPerBits

_LARGEST_WINDOW = 7
_PATCH, _SIDE = 4, 16  # pixels of a token; fewer where images would have fewer tokens in a column


@dataclass(frozen=True, kw_only=True)
class AdaptiveSwinConfig(TokenShape):
    """Shape and precision of a Swin transformer of adaptive depth.

    Each stage after the first has tokens of twice the width, a quarter as many, and twice the heads. Windows are squares of the most
    tokens up to 7 along a side into which a stage's can be cut: 7 at 224 pixels, as in the paper, and 4 at 32.

    Attributes:
        width: Channels of the first stage's tokens: 96 in Swin-T and Swin-S.
        heads: Of the first stage's attention, of which the width is a multiple.
        patch: Height and width in pixels of what becomes a token; by default about 4, and fewer where images would have fewer than 16
            tokens in a column.
        blocks: Blocks of each stage, at least 2: (2, 2, 6, 2) in Swin-T, (2, 2, 18, 2) in Swin-S.
        granularity: See ``AdaptiveResNetConfig``.

    Raises:
        ConfigError: If a value is outside its range.
    """

    width: int = 96
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    granularity: Granularity = "path"

    def __post_init__(self) -> None:
        check_network(self)
        check_skippable(self.bits)
        check_stages(self.blocks, self.image_size, shrinks=1)
        if not self.patches:
            raise ConfigError(
                f"image_size is {self.image_size}, of which no patch makes maps of tokens that {len(self.blocks)} stages can halve and cut "
                f"into windows of 2 to {_LARGEST_WINDOW} along a side; multiples of {2 ** (len(self.blocks) + 1)} do."
            )
        super().__post_init__()

    @property
    def patches(self) -> list[int]:
        """The sides of the squares that images can be cut into so that all stages can cut theirs into windows."""
        halvings = 2 ** (len(self.blocks) - 1)
        return [
            patch
            for patch in super().patches
            if not any(side // patch % halvings for side in self.image_size)
            and all(window_of(size) > 1 or size == (1, 1) for size in self._maps(patch))
        ]

    @property
    def wanted_patch(self) -> float:
        """Of which the nearest of ``patches`` is taken, unless one is given."""
        return min(_PATCH, self.image_size[0] / _SIDE)

    @property
    def last_width(self) -> int:
        """Channels of a token at the end."""
        return self.width << len(self.blocks) - 1

    @property
    def map_sizes(self) -> list[MapSize]:
        """How many rows and columns of tokens each stage has."""
        return self._maps(self.patch_size)

    def _maps(self, patch: int) -> list[MapSize]:
        rows, columns = (side // patch for side in self.image_size)
        return [(rows >> n, columns >> n) for n in range(len(self.blocks))]


def window_of(size: MapSize) -> int:
    """Return the side of the largest windows that a stage's tokens can be cut into."""
    common = gcd(*size)
    return max(n for n in range(1, _LARGEST_WINDOW + 1) if common % n == 0)


class AdaptiveSwin(TokenBackbone, AdaptiveBackbone):
    """A Swin transformer whose stages' paths are gated layers; the training form of the backbone contract.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    family = "adaptive_swin"
    config: AdaptiveSwinConfig

    def __init__(self, config: AdaptiveSwinConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.first_norm = LayerNormPerBits(config.width, (config.stem_bits,))
        layers: list[nn.Module] = []
        for stage, n_blocks in enumerate(config.blocks):
            layers += make_stage(partial(self._make_block, stage), n_blocks, config)
        self.blocks = nn.ModuleList(layers)
        self.finish_making(signed=True)

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Embedding, mandatory blocks and classifier."""
        return [*super().never_gated, self.first_norm, *self.mandatory]

    def _make_block(
        self, stage: int, n: int, bits: Sequence[int], norm_sets: int
    ) -> TransformerBlock:
        """Make the n-th block of a stage; every second one's windows are shifted."""
        config = self.config
        size, width = config.map_sizes[stage], config.width * 2**stage
        attention = WindowAttention(
            width,
            config.heads * 2**stage,
            bits,
            size=size,
            window=window_of(size),
            shifted=n % 2 == 1,
            per_channel=config.per_channel,
        )
        bodies = [attention, Mlp(width, bits, per_channel=config.per_channel)]
        parts: list[nn.Module] = [Branch(body, width, bits, norm_sets=norm_sets) for body in bodies]
        if stage and n == 0:
            merging = PatchMerging(width // 2, config.stem_bits, per_channel=config.per_channel)
            parts.insert(0, merging)
        return TransformerBlock(parts)

    def begin(self, tokens: Tensor) -> Tensor:
        """Normalise them."""
        return cast("Tensor", self.first_norm(tokens, self.stem_bits))

    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedAdaptiveSwin":
        """Return the frozen form: weights quantized once per option."""
        return PreparedAdaptiveSwin(self, dtype=dtype)


class PreparedAdaptiveSwin(PreparedTokenBackbone):
    """A frozen Swin transformer of adaptive depth; see ``PreparedTokenBackbone``.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: What activations between gated layers are kept in; all else is in float32.
    """

    def __init__(self, source: AdaptiveSwin, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        self.first_norm = PreparedLayerNorm(source.first_norm)
        self.freeze()

    def begin(self, tokens: Tensor) -> Tensor:
        """Normalise them."""
        return cast("Tensor", self.first_norm(tokens, self.stem_bits))
