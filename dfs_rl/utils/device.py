"""Devices by name, and what a machine has: threads and memory."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from dfs_rl.errors import ConfigError
from dfs_rl.utils.logging import print_status


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
            f"device is {str(name)!r}, which torch does not find here; 'auto' and 'cpu' always "
            "work."
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
            f"device is '{device}', which {workers} workers cannot share; 'cuda' gives each a GPU "
            "of its own, and 'cpu' works "
            "with any number."
        )
    if gpus < workers:
        raise ConfigError(
            f"workers is {workers}, but each needs a GPU and this machine has {gpus}; use fewer, "
            "or --device cpu."
        )


_MEMORY = Path("/proc/meminfo")
_GROUP_LIMITS = (  # of control groups, the second for their version 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def check_cpus(name: str, cpus: int) -> None:
    """Refuse more CPUs than the machine has.

    Args:
        name: Of the setting.
        cpus: Its value.

    Raises:
        ConfigError: If they are not there.
    """
    here = os.cpu_count() or 1
    if cpus > here:
        raise ConfigError(
            f"{name} is {cpus}, but this machine has {here} CPUs; give at most as many."
        )


def set_threads(threads: int, *, resumed: bool = False) -> None:
    """Let torch use so many CPU threads.

    Args:
        threads: How many.
        resumed: Whether a run that may come from a larger machine goes on; it takes what there is,
            and says so.

    Raises:
        ConfigError: If the machine has fewer CPUs.
    """
    cpus = os.cpu_count() or 1
    if not resumed:
        check_cpus("threads", threads)
    elif threads > cpus:
        print_status(
            f"The run was begun with {threads} threads, and this machine has {cpus} CPUs: it goes "
            f"on with {cpus}, which may change its "
            "last bits."
        )
    torch.set_num_threads(min(threads, cpus))


def free_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device, and within the limits of this process's container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [path.read_text().strip() for path in _GROUP_LIMITS if path.is_file()]
    found = [int(limit) for limit in limits if limit.isdecimal()]  # "max" where there is none
    if _MEMORY.is_file():
        available = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text())
        found += [1024 * int(available[1])] if available else []
    elif hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=2**63)


def check_memory(needs: Mapping[str, float], device: torch.device) -> None:
    """Refuse settings that need more memory than is free.

    Args:
        needs: About how many bytes each setting asks for, by what it is: ``{"num_envs is 512":
            1e9}``.
        device: Where.

    Raises:
        ConfigError: With the estimate, and the setting that asks for most.
    """
    total, free = sum(needs.values()), free_bytes(device)
    if total <= free:
        return
    worst = max(needs, key=lambda name: needs[name])
    raise ConfigError(
        f"{worst}, which takes about {needs[worst] / 2**30:.3g} GiB of memory; all settings "
        f"together take {total / 2**30:.3g} GiB and "
        f"{free / 2**30:.3g} GiB are free on {device}; give a lower one."
    )
