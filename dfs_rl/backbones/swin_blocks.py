"""What Swin transformers have beside a transformer's parts: windows, and tokens that become fewer and wider.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
"""

from collections.abc import Sequence
from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.transformer import SelfAttention
from dfs_rl.quantization.general_inference import PreparedLayerNorm, prepare_operator
from dfs_rl.quantization.modules import FractionalLinear, LayerNormPerBits

MapSize = tuple[int, int]


class WindowAttention(SelfAttention):
    """Attention among the tokens of each window, which tells them apart by where they stand to each other.

    Args:
        width: Channels of a token, a multiple of ``heads``.
        heads: How many.
        bits: The bit widths.
        size: Rows and columns of tokens, multiples of ``window``.
        window: Rows and columns of a window.
        shifted: Whether windows begin half a window later, so that tokens meet across the borders of the others'; where one window
            holds all tokens they do not.
        per_channel: One weight step per output channel instead of one per layer.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bits: Sequence[int],
        *,
        size: MapSize,
        window: int,
        shifted: bool,
        per_channel: bool,
    ) -> None:
        super().__init__(width, heads, bits, per_channel=per_channel)
        self.window = window
        # A side that one window covers stays as it is.
        self.shift = tuple(window // 2 if shifted and n > window else 0 for n in size)
        self.position_bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        self.places: Tensor
        self.apart: Tensor
        self.register_buffer("places", _relative_places(window))
        self.register_buffer("apart", _apart(size, self.shift, window))

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Let tokens of a window look at each other: ``[batch, rows, columns, width]`` to the same shape."""
        size = tokens.shape[1:3]
        back = tuple(-n for n in self.shift)
        windows = cut_windows(tokens.roll(back, (1, 2)), self.window)  # [batch, windows, n, width]
        bias = self.position_bias[:, self.places]  # [heads, n, n]
        added = bias.masked_fill(self.apart[:, None], float("-inf"))  # [windows, heads, n, n]
        mixed = join_windows(self.attend(windows, bits, added), (size[0], size[1]))
        return mixed.roll(self.shift, (1, 2))


class PatchMerging(nn.Module):
    """Joins every two by two tokens into one of twice their width; a stage's first module, which runs whatever a gate decides.

    Args:
        width: Channels that enter.
        bits: Its precision.
        per_channel: One weight step per output channel instead of one per layer.
    """

    def __init__(self, width: int, bits: int, *, per_channel: bool) -> None:
        super().__init__()
        self.bits = bits
        self.norm = LayerNormPerBits(4 * width, (bits,))
        self.reduce = FractionalLinear(
            4 * width, 2 * width, bits=bits, signed_input=True, bias=False, per_channel=per_channel
        )

    def forward(self, tokens: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to ``[batch, rows / 2, columns / 2, 2 width]``; its one norm is every set's."""
        del bits, norm_set
        return cast("Tensor", self.reduce(self.norm(_two_by_two(tokens), self.bits)))

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> "PreparedMerging":
        """Return the frozen form."""
        del norm_set
        return PreparedMerging(self, dtype=dtype)


class PreparedMerging(nn.Module):
    """The frozen form of a ``PatchMerging``; it computes in float32.

    Args:
        source: The trained one.
        dtype: What activations are kept in.
    """

    def __init__(self, source: PatchMerging, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits = source.bits
        self.dtype = dtype
        self.norm = PreparedLayerNorm(source.norm)
        self.reduce = prepare_operator(source.reduce)

    def forward(self, tokens: Tensor, bits: int) -> Tensor:
        """Map ``[batch, rows, columns, width]`` to ``[batch, rows / 2, columns / 2, 2 width]``."""
        del bits
        joined = self.norm(_two_by_two(tokens.float()), self.bits)
        return cast("Tensor", self.reduce(joined, self.bits)).to(self.dtype)


def cut_windows(tokens: Tensor, window: int) -> Tensor:
    """Cut ``[batch, rows, columns, width]`` into windows, row by row, ``[batch, windows, window * window, width]``."""
    batch, rows, columns, width = tokens.shape
    apart = tokens.reshape(batch, rows // window, window, columns // window, window, width)
    windows = rows // window * (columns // window)
    return apart.transpose(2, 3).reshape(batch, windows, window**2, width)


def join_windows(windows: Tensor, size: MapSize) -> Tensor:
    """Undo ``cut_windows``.

    Args:
        windows: ``[batch, windows, window * window, width]``.
        size: Rows and columns of tokens.
    """
    batch, _, tokens, width = windows.shape
    window = isqrt(tokens)
    apart = windows.reshape(batch, size[0] // window, size[1] // window, window, window, width)
    return apart.transpose(2, 3).reshape(batch, *size, width)


def _two_by_two(tokens: Tensor) -> Tensor:
    """Put every two by two tokens beside each other, ``[batch, rows / 2, columns / 2, 4 width]``."""
    batch, rows, columns, width = tokens.shape
    return cut_windows(tokens, 2).reshape(batch, rows // 2, columns // 2, 4 * width)


def _relative_places(window: int) -> Tensor:
    """Number where a window's tokens stand to each other, int64 ``[n, n]`` with n = window * window."""
    axis = torch.arange(window)
    places = torch.cartesian_prod(axis, axis)  # [n, 2]
    away = places[:, None] - places[None] + window - 1  # [n, n, 2], from 0
    return away[..., 0] * (2 * window - 1) + away[..., 1]


def _apart(size: MapSize, shift: Sequence[int], window: int) -> Tensor:
    """Say which tokens of a window came together only because shifting wraps around, bool ``[windows, n, n]``."""
    wrapped = [torch.arange(n) >= n - moved for n, moved in zip(size, shift, strict=True)]
    kinds = 2 * wrapped[0][:, None] + wrapped[1].int()  # [rows, columns], as after the shift
    kinds = cut_windows(kinds[None, :, :, None], window)[0, ..., 0]  # [windows, n]
    return kinds[:, :, None] != kinds[:, None]
