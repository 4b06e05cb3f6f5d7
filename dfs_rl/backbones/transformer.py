"""Parts of all transformers: token backbones, attention and MLP blocks, at any bit option.

A block (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021) is two branches, each with
a shortcut: attention over the tokens, and an MLP on each. All products run at the chosen bits, both
of the attention included. Tokens are averaged for the head and for the features of gates, over the
whole image or the parts of a grid; there is no class token.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.network import Network, NetworkConfig
from dfs_rl.costs import SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.modules import FractionalAttention, FractionalLinear
from dfs_rl.quantization.norms import LayerNormPerBits
from dfs_rl.utils.config import PositiveInt, configuration

MLP_RATIO = 4
"""Ratio of an MLP's hidden width to the width of tokens."""


@configuration
class TokenConfig(NetworkConfig):
    """Shape and precision of a transformer; see ``NetworkConfig``.

    Attributes:
        width: Channels of a token: 192 in ViT-Tiny, 384 in ViT-Small.
        heads: Heads of the attention, a divisor of the width: 3 in ViT-Tiny, 6 in ViT-Small.
        patch: Height and width of a token in pixels; by default about an eighth of the height.
        image_size: Height and width of the images in pixels, multiples of the patch.
    """

    TOKENS: ClassVar[int] = 8  # in a column of an image, unless a patch is given
    LARGEST_PATCH: ClassVar[float] = math.inf  # in pixels, likewise

    width: PositiveInt = 192
    heads: PositiveInt = 3
    patch: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ConfigError(
                f"heads is {self.heads}; the width {self.width} must be a multiple of it."
            )
        if not self.patches:
            raise ConfigError(
                f"image_size is {self.image_size}, which no patch cuts into maps of tokens that "
                f"all stages can halve and cut into windows; multiples of {self.side_multiple} do."
            )
        if self.patch_size not in self.patches:
            raise ConfigError(
                f"patch is {self.patch}, which does not suit images of {self.image_size[0]} x "
                f"{self.image_size[1]} pixels; allowed are {self.patches}."
            )

    @property
    def patches(self) -> list[int]:
        """Sides of the squares into which the images can be cut."""
        common = math.gcd(*self.image_size)
        return [side for side in range(1, common + 1) if common % side == 0]

    @property
    def side_multiple(self) -> int:
        """Images with sides of its multiples have patches."""
        return 1

    @property
    def patch_size(self) -> int:
        """Height and width of a patch in pixels, by default the nearest of ``patches``."""
        if self.patch is not None:
            return self.patch
        wanted = min(self.LARGEST_PATCH, self.image_size[0] / self.TOKENS)
        return min(self.patches, key=lambda patch: (abs(patch - wanted), -patch))

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns of tokens of the first layer."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def last_width(self) -> int:
        """Channels of a token of the last layer."""
        return self.width


class TokenBackbone(Network):
    """A transformer; a subclass adds ``begin`` and the gated layers."""

    optimizer = "adamw"
    feature_weight = 0.1
    config: TokenConfig

    def __init__(self, config: TokenConfig, statistics: ChannelStatistics) -> None:
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
        """Return the first activation of embedded patches, ``[batch, rows, columns, width]``."""

    def parts(self, hidden: Tensor, *, grid: int | None = None) -> Tensor:
        """Pool ``[batch, rows, columns, width]``, see ``Backbone.parts``."""
        return super().parts(hidden.permute(0, 3, 1, 2), grid=grid)

    def stem(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, ``[batch, rows, columns, width]``."""
        return self.begin(self.embedding(cut(self.normalise(images), self.config.patch_size)))

    def comparable(self, hidden: Tensor) -> Tensor:
        """Return normalised tokens: without a norm, distances would shrink with all activations."""
        return functional.layer_norm(hidden, hidden.shape[-1:])

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        mean = self.norm(hidden, self.stem_bits).float().mean(dim=(1, 2))
        return cast("Tensor", self.classifier(mean)).float()


def cut(pixels: Tensor, patch: int) -> Tensor:
    """Cut ``[batch, c, h, w]`` into ``[batch, h / patch, w / patch, c * patch * patch]``."""
    apart = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # [b, c, rows, columns, p, p]
    return apart.permute(0, 2, 3, 1, 4, 5).flatten(3)


class SelfAttention(nn.Module):
    """Attention of several heads over the tokens of each image.

    Keys have no bias, as in BEiT (Bao et al., ICLR 2022): the softmax does not depend on it, so
    rounding alone would train it. The width is that of a token, a multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int, bits: Sequence[int], *, per_channel: bool) -> None:
        super().__init__()
        self.heads = heads
        make = partial(FractionalLinear, bits=bits, signed_input=True, per_channel=per_channel)
        self.queries_keys_values = make(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.attention = FractionalAttention(bits)
        self.out = make(width, width)

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Attend to all tokens: ``[batch, rows, columns, width]`` to the same shape."""
        return self.attend(tokens.flatten(1, 2), bits).reshape(tokens.shape)

    def attend(self, tokens: Tensor, bits: int, *mask: Tensor) -> Tensor:
        """Attend to the tokens of the same group: ``[batch, ..., n, width]`` to the same shape.

        ``mask`` is an addend of the scores, ``[..., heads, n, n]``, if there is one.
        """
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        together = self.queries_keys_values(tokens, bits) + bias  # [..., n, 3 width]
        apart = together.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        mixed = self.attention(*apart, *mask, bits)  # [..., heads, n, width / heads]
        return cast("Tensor", self.out(mixed.transpose(-3, -2).flatten(-2), bits))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, bits: Sequence[int], *, per_channel: bool) -> None:
        super().__init__()
        make = partial(FractionalLinear, bits=bits, signed_input=True, per_channel=per_channel)
        self.widen = make(width, MLP_RATIO * width)
        self.narrow = make(MLP_RATIO * width, width)

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Map every token by itself: ``[batch, rows, columns, width]`` to the same shape."""
        return cast("Tensor", self.narrow(functional.gelu(self.widen(tokens, bits)), bits))


class Branch(nn.Module):
    """A norm and a body, a map of tokens, with a shortcut; 0 bit leaves the shortcut alone.

    The inference form computes in float32 and returns the dtype of its input. See ``NormPerBits``
    for the sets of norms.
    """

    def __init__(
        self, body: nn.Module, width: int, bits: Sequence[int], *, norm_sets: int = 1
    ) -> None:
        super().__init__()
        self.norm = LayerNormPerBits(width, bits, sets=norm_sets)
        self.body = body

    def forward(self, tokens: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to the same shape at ``bits``."""
        if bits == SKIP:
            return tokens
        change = self.body(self.norm(tokens, bits, norm_set), bits)
        return tokens + cast("Tensor", change).to(tokens.dtype)


class TransformerBlock(nn.Module):
    """Branches that run or are skipped together: attention, then the MLP."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, tokens: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to the same shape at ``bits``."""
        for branch in self.branches:
            tokens = branch(tokens, bits, norm_set)
        return tokens


def make_branches(
    attention: SelfAttention, width: int, bits: Sequence[int], *, per_channel: bool, norm_sets: int
) -> list[Branch]:
    """Make the branches of a block that runs at ``bits``: its attention, and an MLP."""
    bodies = (attention, Mlp(width, bits, per_channel=per_channel))
    return [Branch(body, width, bits, norm_sets=norm_sets) for body in bodies]
