"""Devices by name."""

import torch

from dfs_rl.errors import ConfigError


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn ``"auto"`` into the best device there is, and refuse one that is not there.

    Raises:
        ConfigError: If it is no name, torch does not know or have the device, or it cannot compute.
    """
    if not isinstance(name, str | torch.device):
        raise ConfigError(f"device is {name!r}; allowed is a name such as 'auto', 'cpu' or 'cuda'.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # the device "meta" has shapes and no numbers
    # torch raises any of these, by the kind of device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"device is {str(name)!r}, which torch does not find here; 'auto' and 'cpu' always work."
        ) from error
    return device


def check_devices(device: torch.device, *, workers: int, gpus: int) -> None:
    """Refuse more processes than there are devices for.

    Args:
        device: What each process asks for.
        workers: How many processes there are.
        gpus: How many GPUs the machine has.

    Raises:
        ConfigError: If they cannot all have one.
    """
    if workers == 1 or device.type == "cpu":
        return
    if device != torch.device("cuda"):
        raise ConfigError(
            f"device is '{device}', which {workers} workers cannot share; 'cuda' gives each a GPU of its own, and 'cpu' works "
            "with any number."
        )
    if gpus < workers:
        raise ConfigError(
            f"workers is {workers}, but each needs a GPU and this machine has {gpus}; use fewer, or --device cpu."
        )
