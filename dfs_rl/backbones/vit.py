"""Vision transformers (Dosovitskiy et al., ICLR 2021) for small images, of fixed and of adaptive depth.

Tokens are averaged for the head and for what gates look at, over the whole image or the parts of a grid; there is no class token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.adaptive_layer import (
    AdaptiveBackbone,
    AdaptiveLayer,
    Granularity,
    check_skippable,
    check_stages,
    make_stage,
)
from dfs_rl.backbones.base import PreparedBackbone
from dfs_rl.backbones.probe import pool_grid
from dfs_rl.backbones.shape import ShapedBackbone
from dfs_rl.backbones.tokens import TokenShape, cut
from dfs_rl.backbones.transformer import TransformerBlock, make_branches
from dfs_rl.cost import SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quant.general_prepared import PreparedLayerNorm
from dfs_rl.quant.layers import FractionalLinear, LayerNormPerBits
from dfs_rl.quant.prepared import PreparedLinear

MAX_DEPTH = 48
STAGE = 3
"""Blocks of a stage of adaptive depth, of which the last can be skipped (Kang et al., NeurIPS 2024, section 4)."""
_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(TokenShape):
    """Shape and precision of a vision transformer.

    Attributes:
        depth: Number of blocks, 12 in the paper's small ones.
        gate_branches: Whether attention and MLP of a block are gated each by itself.

    Raises:
        ConfigError: If a value is outside its range.
    """

    depth: int = 12
    gate_branches: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.depth <= MAX_DEPTH:
            raise ConfigError(f"depth is {self.depth}; allowed are 1 to {MAX_DEPTH} blocks.")


@dataclass(frozen=True, kw_only=True)
class AdaptiveVisionTransformerConfig(TokenShape):
    """Shape and precision of a vision transformer of adaptive depth.

    Attributes:
        blocks: Blocks of each stage, at least 2.
        granularity: See ``AdaptiveResNetConfig``.

    Raises:
        ConfigError: If a value is outside its range.
    """

    blocks: tuple[int, ...] = (STAGE,) * 4
    granularity: Granularity = "path"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_skippable(self.bits)
        check_stages(self.blocks, self.image_size, shrinks=1)
        if sum(self.blocks) > MAX_DEPTH:
            raise ConfigError(
                f"blocks is {self.blocks}, {sum(self.blocks)} in all; at most {MAX_DEPTH} are allowed."
            )


class _OfTokens:
    """How activations that are tokens are pooled."""

    tokens: tuple[int, int]
    probe_grid: int

    def parts(self, hidden: Tensor, *, grid: int | None = None) -> Tensor:
        """Pool tokens ``[batch, n, width]`` over the parts of a grid, float32 ``[batch, width, parts]``."""
        maps = hidden.transpose(1, 2).reshape(len(hidden), -1, *self.tokens)
        return pool_grid(maps, grid=self.probe_grid if grid is None else grid)


class _TokenBackbone(_OfTokens, ShapedBackbone):
    """What vision transformers share: how images become tokens, and tokens an answer.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    optimizer = "adamw"
    feature_weight = 0.1
    config: TokenShape

    def __init__(self, config: TokenShape, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.tokens = config.tokens
        self.embedding = FractionalLinear(
            config.in_channels * config.patch_size**2,
            config.width,
            bits=config.stem_bits,
            signed_input=True,
            per_channel=config.per_channel,
        )
        self.positions = nn.Parameter(_waves(self.tokens, config.width))
        self.norm = LayerNormPerBits(config.width, (config.stem_bits,))
        self.classifier = FractionalLinear(
            config.width, config.n_classes, bits=config.stem_bits, signed_input=True
        )

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Embedding and classifier."""
        return [self.embedding, self.norm, self.classifier]

    def stem(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, ``[batch, n, width]``."""
        patches = cut(self.normalise(images), self.config.patch_size)
        return cast("Tensor", self.embedding(patches)) + self.positions

    def comparable(self, hidden: Tensor) -> Tensor:
        """Return normalised tokens: no norm bounds them, and distances would shrink with all of them."""
        return functional.layer_norm(hidden, hidden.shape[-1:])

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        mean = self.norm(hidden, self.stem_bits).float().mean(dim=1)
        return cast("Tensor", self.classifier(mean)).float()

    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedVisionTransformer":
        """Return the frozen form: weights quantized once per option."""
        return PreparedVisionTransformer(self, dtype=dtype)


class VisionTransformer(_TokenBackbone):
    """A vision transformer whose blocks, or the branches in them, are gated layers; the training form of the backbone contract.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    family = "vit"
    config: VisionTransformerConfig

    def __init__(self, config: VisionTransformerConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        run_bits = tuple(bits for bits in config.bits if bits != SKIP)
        blocks = [
            make_branches(config.width, config.heads, run_bits, per_channel=config.per_channel)
            for _ in range(config.depth)
        ]
        layers: list[nn.Module] = (
            [branch for branches in blocks for branch in branches]
            if config.gate_branches
            else [TransformerBlock(branches) for branches in blocks]
        )
        self.blocks = nn.ModuleList(layers)
        self.finish_making(signed=True)


class AdaptiveVisionTransformer(_TokenBackbone, AdaptiveBackbone):
    """A vision transformer whose stages' paths are gated layers, see ``adaptive_layer``; the training form of the backbone contract.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    family = "adaptive_vit"
    config: AdaptiveVisionTransformerConfig

    def __init__(
        self, config: AdaptiveVisionTransformerConfig, statistics: ChannelStatistics
    ) -> None:
        super().__init__(config, statistics)
        layers: list[nn.Module] = []
        for n_blocks in config.blocks:
            layers += make_stage(
                self._make_block,
                n_blocks,
                config,
            )
        self.blocks = nn.ModuleList(layers)
        self.finish_making(signed=True)

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Embedding, mandatory blocks and classifier."""
        return [*super().never_gated, *self.mandatory]

    def _make_block(self, _: int, bits: Sequence[int], norm_sets: int) -> TransformerBlock:
        """Make a block, which is the same wherever it stands."""
        config = self.config
        return TransformerBlock(
            make_branches(
                config.width,
                config.heads,
                bits,
                per_channel=config.per_channel,
                norm_sets=norm_sets,
            )
        )


class PreparedVisionTransformer(_OfTokens, PreparedBackbone):
    """A frozen vision transformer; see ``PreparedBackbone``.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: What activations between gated layers are kept in; all else is in float32.
    """

    def __init__(self, source: _TokenBackbone, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        self.tokens = source.tokens
        self.patch_size = source.config.patch_size
        self.stem_bits = source.stem_bits
        self.embedding = PreparedLinear(source.embedding)
        self.positions: Tensor
        self.register_buffer("positions", source.positions.detach().clone())
        self.blocks = nn.ModuleList(
            cast("AdaptiveLayer", layer).prepare(dtype=dtype) for layer in source.blocks
        )
        self.norm = PreparedLayerNorm(source.norm)
        self.classifier = PreparedLinear(source.classifier)
        self.freeze()

    def stem(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, ``[batch, n, width]``."""
        patches = cut(self.normalise(images), self.patch_size)
        return cast("Tensor", self.embedding(patches) + self.positions).to(self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        mean = self.norm(hidden.float(), self.stem_bits).mean(dim=1)
        return cast("Tensor", self.classifier(mean))


def _waves(tokens: tuple[int, int], width: int) -> Tensor:
    """Return sines and cosines of each token's row and column, ``[n, width]``; zero where a width is no multiple of four.

    Learned positions start from these, with which small transformers learn faster than from noise (Beyer et al., "Better plain ViT
    baselines for ImageNet-1k", 2022, keep them as they are).
    """
    n_waves = width // 4
    lengths = _LONGEST_WAVE ** (torch.arange(n_waves) / max(1, n_waves - 1))
    places = torch.cartesian_prod(*(torch.arange(side) for side in tokens))  # [n, 2]
    angles = (places[:, :, None] / lengths).flatten(1)  # [n, 2 waves]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return functional.pad(waves, (0, width - waves.shape[1]))
