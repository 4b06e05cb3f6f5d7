"""Vision transformers (Dosovitskiy et al., ICLR 2021) for small images, of fixed and of adaptive depth."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.adaptive_layer import (
    AdaptiveBackbone,
    Granularity,
    check_skippable,
    check_stages,
    make_stage,
)
from dfs_rl.backbones.patch_embed import PreparedTokenBackbone, TokenBackbone, TokenShape
from dfs_rl.backbones.transformer import TransformerBlock, make_branches
from dfs_rl.costs import SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError

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


class _WithPositions(TokenBackbone):
    """What vision transformers share: every token learns what is added for its place.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    def __init__(self, config: TokenShape, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.positions = nn.Parameter(_waves(config.tokens, config.width))

    def begin(self, tokens: Tensor) -> Tensor:
        """Add what stands for their places."""
        return tokens + self.positions.reshape(tokens.shape[1:])

    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedVisionTransformer":
        """Return the frozen form: weights quantized once per option."""
        return PreparedVisionTransformer(self, dtype=dtype)


class VisionTransformer(_WithPositions):
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


class AdaptiveVisionTransformer(_WithPositions, AdaptiveBackbone):
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
            layers += make_stage(self._make_block, n_blocks, config)
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


class PreparedVisionTransformer(PreparedTokenBackbone):
    """A frozen vision transformer; see ``PreparedTokenBackbone``.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: What activations between gated layers are kept in; all else is in float32.
    """

    def __init__(self, source: _WithPositions, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        self.positions: Tensor
        self.register_buffer("positions", source.positions.detach().clone())
        self.freeze()

    def begin(self, tokens: Tensor) -> Tensor:
        """Add what stands for their places."""
        return tokens + self.positions.reshape(tokens.shape[1:])


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
