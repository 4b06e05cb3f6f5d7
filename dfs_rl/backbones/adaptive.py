"""Networks of adaptive depth (Kang et al., "Adaptive Depth Networks with Skippable Sub-Paths").

NeurIPS 2024. A stage of residual blocks begins with mandatory ones and ends with a path that can be
skipped. The mandatory blocks have two sets of norms: the first for a path that runs, the second for
a skipped path, because the next stage then expects of them the output of the whole stage.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from dfs_rl.backbones.network import Network, NetworkConfig
from dfs_rl.costs import SKIP
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import configuration
from dfs_rl.utils.constants import Granularity

NORM_SETS = 2
MIN_BLOCKS = 2


@configuration
class AdaptiveConfig(NetworkConfig):
    """Shape and precision of a network of adaptive depth; see ``NetworkConfig``.

    Attributes:
        blocks: Blocks of each stage, at least 2.
        granularity: ``"path"``: one decision per stage, about its whole path. ``"block"``: one per
            block of the path. The stage's first decision then chooses the norms of its mandatory
            blocks; after a skip the later blocks can still run, on an activation that was
            normalised for a skipped path, which only training with bit mixes prepares for.
        bits: Bit options of every gated layer; 0, which skips the layer, must be among them.
    """

    blocks: tuple[int, ...]
    granularity: Granularity = "path"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_skippable(self.bits)
        if not self.blocks or min(self.blocks) < MIN_BLOCKS:
            raise ConfigError(
                f"blocks is {self.blocks}; a stage needs at least {MIN_BLOCKS}, one that always "
                "runs and one to skip."
            )
        if min(self.image_size) < self.shrinkage:
            raise ConfigError(
                f"image_size is {self.image_size}, of which stem and stages leave less than a "
                f"pixel; sides of at least {self.shrinkage} are needed."
            )

    @property
    def shrinkage(self) -> int:
        """Factor by which stem and stages shrink the images."""
        return 1


def check_skippable(bits: Sequence[int]) -> None:
    """Raise ``ConfigError`` unless 0 bit is an option."""
    if SKIP not in bits:
        raise ConfigError(
            f"bits is {list(bits)}, but a network of adaptive depth skips layers; add 0."
        )


def mandatory_count(n_blocks: int) -> int:
    """Return the number of mandatory blocks of a stage: half, rounded up, but never all."""
    return min(n_blocks - 1, (n_blocks + 1) // 2)


class AdaptiveLayer(nn.Module):
    """Mandatory blocks, which always run and have two sets of norms, and a gated path.

    0 bit skips the path; both have at least one block.
    """

    runs_when_skipped = True

    def __init__(
        self, mandatory: Sequence[nn.Module], path: Sequence[nn.Module], *, mandatory_bits: int
    ) -> None:
        super().__init__()
        self.mandatory = nn.ModuleList(mandatory)
        self.path = nn.ModuleList(path)
        self.mandatory_bits = mandatory_bits

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]``."""
        norm_set = int(bits == SKIP)
        for block in self.mandatory:
            hidden = block(hidden, self.mandatory_bits, norm_set)
        for block in self.path:
            hidden = block(hidden, bits)
        return hidden


class AdaptiveNetwork(Network):
    """A backbone of adaptive depth."""

    @property
    def meaningful_bits(self) -> tuple[int, ...]:
        """All bit options: without any path it is still a network."""
        return self.options.values

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of gated layers of each stage; its mandatory blocks are in the first one."""
        first = [n for n, layer in enumerate(self.blocks) if isinstance(layer, AdaptiveLayer)]
        return tuple(b - a for a, b in pairwise([*first, len(self.blocks)]))

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """The modules that always run, the mandatory blocks of all gated layers included."""
        layers = [layer for layer in self.blocks if isinstance(layer, AdaptiveLayer)]
        return [*super().never_gated, *(layer.mandatory for layer in layers)]

    @property
    def gated(self) -> Sequence[nn.Module]:
        """The blocks of the paths."""
        return [layer.path if isinstance(layer, AdaptiveLayer) else layer for layer in self.blocks]


def make_stages(
    make_block: Callable[[int, int, Sequence[int], int], nn.Module], config: AdaptiveConfig
) -> nn.ModuleList:
    """Make the gated layers of all stages: one each, or one per block of its path.

    ``make_block`` makes a block from its stage, its place there, its bits and its sets of norms.
    """
    layers = nn.ModuleList()
    for stage, n_blocks in enumerate(config.blocks):
        n_mandatory = mandatory_count(n_blocks)
        always = (config.stem_bits,)
        mandatory = [make_block(stage, n, always, NORM_SETS) for n in range(n_mandatory)]
        path = [make_block(stage, n, config.run_bits, 1) for n in range(n_mandatory, n_blocks)]
        together = len(path) if config.granularity == "path" else 1
        first = AdaptiveLayer(mandatory, path[:together], mandatory_bits=config.stem_bits)
        layers.extend([first, *path[together:]])
    return layers


def make_conv_stages(
    block: Callable[..., nn.Module],
    channels: Sequence[int],
    strides: Sequence[int],
    config: AdaptiveConfig,
) -> nn.ModuleList:
    """Make the gated layers of all stages of blocks like ``ResidualBlock``.

    ``channels`` are those before the first stage, then those of each stage; ``strides`` those of
    the stages' first blocks.
    """

    def make_block(stage: int, n: int, bits: Sequence[int], norm_sets: int) -> nn.Module:
        return block(
            channels[stage if n == 0 else stage + 1],
            channels[stage + 1],
            bits,
            stride=strides[stage] if n == 0 else 1,
            per_channel=config.per_channel,
            norm_sets=norm_sets,
        )

    return make_stages(make_block, config)
