"""Floating-point precision of networks by device."""

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


def resolve(precision: Precision, device: torch.device, *, frozen: bool = False) -> torch.dtype:
    """Return the dtype of a precision setting; ``"auto"`` uses bfloat16 if it is fast.

    On CPUs a ``frozen`` network is then float32: it runs its quantized options in 8-bit integers,
    which is both faster and exact.
    """
    fast = has_fast_bfloat16(device) and not (frozen and device.type == "cpu")
    if precision == "bfloat16" or (precision == "auto" and fast):
        return torch.bfloat16
    return torch.float32
