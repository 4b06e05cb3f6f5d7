"""Where bfloat16 is worth using."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 in hardware; where it does not, emulation is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = (
            torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        )
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """Turn a setting into a dtype; ``"auto"`` takes bfloat16 where it is fast."""
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def resolve_frozen(precision: Precision, device: torch.device) -> torch.dtype:
    """Turn a setting into a dtype for a frozen network; ``"auto"`` takes bfloat16 on GPUs alone.

    On CPUs a frozen network runs its quantized options in 8-bit integers, which is both faster and
    exact.
    """
    if precision == "auto" and device.type == "cpu":
        return torch.float32
    return resolve(precision, device)


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Run matrix products in ``dtype``, everything that needs the range or the digits in float32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16
    )
    return context
