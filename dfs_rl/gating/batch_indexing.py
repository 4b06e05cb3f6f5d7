"""Fast gathering and scattering of the samples of a batch.

Torch's indexing moves one element at a time. Seen as rows of 16-byte words, an activation has a
quarter of the elements (float32) or an eighth (bfloat16).
"""

import math

import torch
from torch import Tensor

_WORD = torch.complex128


def gather_rows(batch: Tensor, rows: Tensor) -> Tensor:
    """Return ``batch[rows]``, int64 ``rows``, in the memory layout of ``batch``."""
    words = _as_words(batch)
    if words is None:
        return batch[rows]
    picked = words[rows].view(batch.dtype)
    if batch.is_contiguous():
        return picked.view(-1, *batch.shape[1:])
    _, channels, height, width = batch.shape
    return picked.view(-1, height, width, channels).permute(0, 3, 1, 2)


def scatter_rows(batch: Tensor, rows: Tensor, values: Tensor) -> None:
    """Assign ``batch[rows] = values`` in place."""
    words, new = _as_words(batch), _as_words(values)
    alike = batch.dtype == values.dtype and batch.is_contiguous() == values.is_contiguous()
    if words is None or new is None or not alike:
        batch[rows] = values.to(batch.dtype)
    else:
        words[rows] = new


def empty_rows(n: int, like: Tensor) -> Tensor:
    """Return an uninitialized batch of ``n`` samples with shape, type and layout of ``like``."""
    if like.is_contiguous() or not _is_channels_last(like):
        return like.new_empty((n, *like.shape[1:]))
    return torch.empty(
        (n, *like.shape[1:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _as_words(batch: Tensor) -> Tensor | None:
    """View each sample as a row of words, ``[batch, words]``; ``None`` for unsuitable layouts."""
    sample_bytes = math.prod(batch.shape[1:]) * batch.element_size()
    if (
        sample_bytes == 0
        or sample_bytes % _WORD.itemsize
        or batch.storage_offset() % _WORD.itemsize
    ):
        return None
    if batch.is_contiguous():
        return batch.view(len(batch), -1).view(_WORD)
    if _is_channels_last(batch):
        return batch.permute(0, 2, 3, 1).view(len(batch), -1).view(_WORD)
    return None


def _is_channels_last(batch: Tensor) -> bool:
    return batch.dim() == 4 and batch.is_contiguous(  # noqa: PLR2004
        memory_format=torch.channels_last
    )
