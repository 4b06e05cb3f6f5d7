"""Floating-point precision of networks by device."""

from contextlib import AbstractContextManager

import torch

from dfs_rl.utils.constants import Precision


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware; emulation is slow."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = (
            torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        )
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision setting; ``"auto"`` uses bfloat16 if it is fast."""
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def resolve_frozen(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of a frozen network; ``"auto"`` uses bfloat16 only on fast GPUs.

    On CPUs ``"auto"`` is float32: a frozen network runs its quantized options in 8-bit integers,
    which is both faster and exact.
    """
    if precision == "auto" and device.type == "cpu":
        return torch.float32
    return resolve(precision, device)


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Return a context for matrix products in ``dtype`` and sensitive operators in float32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16
    )
    return context
