"""The blocks of a vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021) at any bit option.

A block is two branches, each beside a shortcut: attention over the tokens, and an MLP on each. Everything that multiplies runs at the
bits that are chosen, both products of the attention included.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import SKIP
from dfs_rl.quantization.general_inference import PreparedLayerNorm, prepare_operator
from dfs_rl.quantization.general_modules import FractionalAttention
from dfs_rl.quantization.modules import FractionalLinear, LayerNormPerBits

if TYPE_CHECKING:
    from dfs_rl.backbones.adaptive_layer import PreparableBlock

MLP_RATIO = 4
"""How many times as wide as a token its MLP is inside."""


class Body(Protocol):
    """What a branch does after its norm."""

    def __call__(self, tokens: Tensor, bits: int) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to the same shape."""
        ...


class SelfAttention(nn.Module):
    """Attention of several heads over the tokens of each image.

    Keys have no bias, as in BEiT (Bao et al., ICLR 2022): the softmax does not see it, so that rounding alone would train it.

    Args:
        width: Channels of a token, a multiple of ``heads``.
        heads: How many.
        bits: The bit widths.
        per_channel: One weight step per output channel instead of one per layer.
    """

    def __init__(self, width: int, heads: int, bits: Sequence[int], *, per_channel: bool) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = FractionalLinear(
            width, 3 * width, bits=bits, signed_input=True, bias=False, per_channel=per_channel
        )
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.attention = FractionalAttention(bits, scale=None)
        self.out = FractionalLinear(
            width, width, bits=bits, signed_input=True, per_channel=per_channel
        )

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Let every token look at all: ``[batch, rows, columns, width]`` to the same shape."""
        return self.attend(tokens.flatten(1, 2), bits).reshape(tokens.shape)

    def attend(self, tokens: Tensor, bits: int, *added: Tensor) -> Tensor:
        """Let tokens look at each other.

        Args:
            tokens: ``[batch, ..., n, width]``.
            bits: What everything runs at.
            added: What is added to the scores, ``[..., heads, n, n]``, if anything.

        Returns:
            The same shape.
        """
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        together = self.queries_keys_values(tokens, bits) + bias  # [..., n, 3 width]
        apart = together.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        mixed = self.attention(*apart, *added, bits)  # [..., heads, n, width / heads]
        return cast("Tensor", self.out(mixed.transpose(-3, -2).flatten(-2), bits))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        width: Channels of a token.
        bits: The bit widths.
        per_channel: One weight step per output channel instead of one per layer.
    """

    def __init__(self, width: int, bits: Sequence[int], *, per_channel: bool) -> None:
        super().__init__()
        inside = MLP_RATIO * width
        self.widen = FractionalLinear(
            width, inside, bits=bits, signed_input=True, per_channel=per_channel
        )
        self.narrow = FractionalLinear(
            inside, width, bits=bits, signed_input=True, per_channel=per_channel
        )

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Change every token by itself: ``[batch, rows, columns, width]`` to the same shape."""
        return cast("Tensor", self.narrow(functional.gelu(self.widen(tokens, bits)), bits))


class Branch(nn.Module):
    """A norm and a body beside a shortcut; 0 bit leaves the shortcut alone.

    Args:
        body: What changes tokens.
        width: Channels of a token.
        bits: The non-zero bit widths it runs at.
        norm_sets: Number of sets of norms, see ``NormPerBits``.
    """

    def __init__(
        self, body: nn.Module, width: int, bits: Sequence[int], *, norm_sets: int = 1
    ) -> None:
        super().__init__()
        self.norm = LayerNormPerBits(width, bits, sets=norm_sets)
        self.body = body

    def forward(self, tokens: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to the same shape at ``bits``, with the norms of that set."""
        if bits == SKIP:
            return tokens
        return tokens + cast("Body", self.body)(self.norm(tokens, bits, norm_set), bits)

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> "PreparedBranch":
        """Return the frozen form with the norms of that set."""
        return PreparedBranch(self, dtype=dtype, norm_set=norm_set)


class PreparedBranch(nn.Module):
    """A branch with every bit width's weights quantized beforehand; it computes in float32.

    Args:
        source: The trained branch.
        dtype: What activations are kept in.
        norm_set: Which of its sets of norms to freeze.
    """

    def __init__(self, source: Branch, *, dtype: torch.dtype, norm_set: int = 0) -> None:
        super().__init__()
        self.dtype = dtype
        self.norm = PreparedLayerNorm(source.norm, norm_set=norm_set)
        self.body = _prepared(source.body)

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to the same shape; ``tokens`` is left as it is."""
        if bits == SKIP:
            return tokens
        change = cast("Body", self.body)(self.norm(tokens.float(), bits), bits)
        return tokens + change.to(self.dtype)


class TransformerBlock(nn.Module):
    """Branches that run or are skipped together: attention, then the MLP; before them whatever else runs first.

    Args:
        branches: In order.
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, tokens: Tensor, bits: int, *norm_set: int) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to the same shape at ``bits``, in training with the norms of a set."""
        for branch in self.branches:
            tokens = branch(tokens, bits, *norm_set)
        return tokens

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> "TransformerBlock":
        """Return the frozen form with the norms of that set."""
        return TransformerBlock(
            [
                branch.prepare(dtype=dtype, norm_set=norm_set)
                for branch in cast("Sequence[PreparableBlock]", self.branches)
            ]
        )


def make_branches(
    width: int, heads: int, bits: Sequence[int], *, per_channel: bool = False, norm_sets: int = 1
) -> list[Branch]:
    """Make the branches of a block: attention, then the MLP.

    Args:
        width: Channels of a token, a multiple of ``heads``.
        heads: Of the attention.
        bits: The non-zero bit widths they run at.
        per_channel: One weight step per output channel instead of one per layer.
        norm_sets: Number of sets of norms, see ``NormPerBits``.
    """
    bodies = [
        SelfAttention(width, heads, bits, per_channel=per_channel),
        Mlp(width, bits, per_channel=per_channel),
    ]
    return [Branch(body, width, bits, norm_sets=norm_sets) for body in bodies]


def _prepared(body: nn.Module) -> nn.Module:
    """Return a body that runs the frozen forms of its operators."""
    frozen = copy.deepcopy(body)
    for name, operator in body.named_children():
        setattr(frozen, name, prepare_operator(operator))
    return frozen
