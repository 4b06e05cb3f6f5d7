"""Devices, CPU threads and free memory."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from dfs_rl.errors import ConfigError
from dfs_rl.utils.logging import print_status


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of a name and check that it works; ``"auto"`` prefers a GPU.

    Raises:
        ConfigError: If ``name`` is no name or device, torch does not know or find it, or it cannot
            compute.
    """
    if not isinstance(name, str | torch.device):
        raise ConfigError(f"device is {name!r}; allowed is a name such as 'auto', 'cpu' or 'cuda'.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # fails for the device "meta", which has no values
    # The error's class depends on the kind of device.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"device is {str(name)!r}, which torch does not find here; 'auto' and 'cpu' always "
            "work."
        ) from error
    return device


def check_devices(device: torch.device, *, workers: int, gpus: int) -> None:
    """Raise ConfigError unless the machine, with ``gpus`` GPUs, has a device for each worker."""
    if workers == 1 or device.type == "cpu":
        return
    if device != torch.device("cuda"):
        raise ConfigError(
            f"device is '{device}', which {workers} workers cannot share; 'cuda' gives each its "
            "own GPU, and 'cpu' works with any number."
        )
    if gpus < workers:
        raise ConfigError(
            f"workers is {workers}, but each needs a GPU and this machine has {gpus}; use fewer, "
            "or --device cpu."
        )


_MEMORY = Path("/proc/meminfo")
_GROUP_LIMITS = (  # of control groups, versions 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def check_cpus(name: str, cpus: int) -> None:
    """Raise ConfigError if the setting ``name`` asks for more CPUs than the machine has."""
    here = os.cpu_count() or 1
    if cpus > here:
        raise ConfigError(
            f"{name} is {cpus}, but this machine has {here} CPUs; give at most as many."
        )


def set_threads(threads: int, *, resumed: bool = False) -> None:
    """Set the number of CPU threads of torch.

    With fewer CPUs, a ``resumed`` run, perhaps of a larger machine, uses all of them and says so.

    Raises:
        ConfigError: If the machine has fewer CPUs and no run resumes.
    """
    cpus = os.cpu_count() or 1
    if not resumed:
        check_cpus("threads", threads)
    elif threads > cpus:
        print_status(
            f"The run started with {threads} threads, and this machine has {cpus} CPUs: it "
            f"continues with {cpus}, which may change its last bits."
        )
    torch.set_num_threads(min(threads, cpus))


def free_bytes(device: torch.device) -> int:
    """Return the bytes free on a device; on the CPU, at most the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [path.read_text().strip() for path in _GROUP_LIMITS if path.is_file()]
    found = [int(limit) for limit in limits if limit.isdecimal()]  # "max" without a limit
    if _MEMORY.is_file():
        available = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text())
        found += [1024 * int(available[1])] if available else []
    elif hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=2**63)


def check_memory(needs: Mapping[str, float], device: torch.device) -> None:
    """Raise ConfigError if settings need more memory than is free on a device.

    ``needs`` are approximate bytes by setting and value, such as ``{"num_envs is 512": 1e9}``.
    """
    total, free = sum(needs.values()), free_bytes(device)
    if total <= free:
        return
    worst = max(needs, key=lambda name: needs[name])
    raise ConfigError(
        f"{worst}, which takes about {needs[worst] / 2**30:.3g} GiB of memory; all settings "
        f"together take {total / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free on {device}; "
        "give a lower one."
    )


@contextmanager
def using_threads(n: int) -> Iterator[None]:
    """Within the block, let torch use ``n`` threads."""
    before = torch.get_num_threads()
    set_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
