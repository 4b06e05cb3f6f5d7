"""Devices by name."""

import torch

from dfs_rl.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Turn ``"auto"`` into the best device there is, and refuse one that is not there.

    Raises:
        ConfigError: If torch does not know or have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of device
        raise ConfigError(
            f"device is {name!r}, which torch does not find here; 'auto' and 'cpu' always work."
        ) from error
    return device
