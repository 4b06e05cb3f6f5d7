"""Vision transformers (Dosovitskiy et al., ICLR 2021), of fixed and of adaptive depth."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.adaptive import AdaptiveConfig, AdaptiveNetwork, make_stages
from dfs_rl.backbones.registry import register_backbone
from dfs_rl.backbones.transformer import (
    Branch,
    SelfAttention,
    TokenBackbone,
    TokenConfig,
    TransformerBlock,
    make_branches,
)
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import configuration

MAX_DEPTH = 48
STAGE = 3
"""Blocks of a stage of adaptive depth; the last one can be skipped (Kang et al., section 4)."""
_LONGEST_WAVE = 10_000.0


@configuration
class VisionTransformerConfig(TokenConfig):
    """Shape and precision of a vision transformer; see ``TokenConfig``.

    Attributes:
        depth: Number of blocks, 12 in the paper's small ones.
        gate_branches: Whether attention and MLP of a block are gated layers of their own.
    """

    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = 12
    gate_branches: bool = False


@configuration
class AdaptiveVisionTransformerConfig(TokenConfig, AdaptiveConfig):
    """Shape and precision of a vision transformer of adaptive depth.

    See ``TokenConfig`` and ``AdaptiveConfig`` for the settings.
    """

    blocks: tuple[int, ...] = (STAGE,) * 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.blocks) > MAX_DEPTH:
            raise ConfigError(
                f"blocks is {self.blocks}, {sum(self.blocks)} in all; at most {MAX_DEPTH} are "
                "allowed."
            )


def _branches(config: TokenConfig, bits: Sequence[int], *, norm_sets: int = 1) -> list[Branch]:
    attention = SelfAttention(config.width, config.heads, bits, per_channel=config.per_channel)
    return make_branches(
        attention, config.width, bits, per_channel=config.per_channel, norm_sets=norm_sets
    )


class _PositionedTokens(TokenBackbone):
    """A transformer with a learned embedding of every position."""

    def __init__(self, config: TokenConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.positions = nn.Parameter(_waves(config.tokens, config.width))

    def begin(self, tokens: Tensor) -> Tensor:
        return tokens + self.positions.reshape(tokens.shape[1:])


class VisionTransformer(_PositionedTokens):
    """A vision transformer whose blocks, or their branches, are gated layers; see ``Backbone``."""

    family = "vit"
    config: VisionTransformerConfig

    def __init__(self, config: VisionTransformerConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        blocks = [_branches(config, config.run_bits) for _ in range(config.depth)]
        layers: list[nn.Module] = (
            [branch for branches in blocks for branch in branches]
            if config.gate_branches
            else [TransformerBlock(branches) for branches in blocks]
        )
        self.blocks = nn.ModuleList(layers)
        self.finish_making(signed=True)


class AdaptiveVisionTransformer(_PositionedTokens, AdaptiveNetwork):
    """A vision transformer whose stages' paths are gated layers; see ``AdaptiveLayer``."""

    family = "adaptive_vit"
    config: AdaptiveVisionTransformerConfig

    def __init__(
        self, config: AdaptiveVisionTransformerConfig, statistics: ChannelStatistics
    ) -> None:
        super().__init__(config, statistics)

        def make_block(_: int, __: int, bits: Sequence[int], norm_sets: int) -> nn.Module:
            return TransformerBlock(_branches(config, bits, norm_sets=norm_sets))

        self.blocks = make_stages(make_block, config)
        self.finish_making(signed=True)


def _waves(tokens: tuple[int, int], width: int) -> Tensor:
    """Return sines and cosines of each token's row and column, ``[n, width]``, zero-padded.

    Learned positions start from these, with which small transformers learn faster than from noise
    (Beyer et al., "Better plain ViT baselines for ImageNet-1k", 2022, keep them fixed).
    """
    n_waves = width // 4
    lengths = _LONGEST_WAVE ** (torch.arange(n_waves) / max(1, n_waves - 1))
    places = torch.cartesian_prod(*(torch.arange(side) for side in tokens))  # [n, 2]
    angles = (places[:, :, None] / lengths).flatten(1)  # [n, 2 waves]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return functional.pad(waves, (0, width - waves.shape[1]))


for _depth in range(1, MAX_DEPTH + 1):
    register_backbone(f"vit{_depth}", VisionTransformerConfig, depth=_depth)(VisionTransformer)
for _stages in range(1, MAX_DEPTH // STAGE + 1):
    register_backbone(
        f"vit{STAGE * _stages}",
        AdaptiveVisionTransformerConfig,
        recipe="adn",
        blocks=(STAGE,) * _stages,
    )(AdaptiveVisionTransformer)
