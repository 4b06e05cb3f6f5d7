"""Machine and libraries behind a latency profile."""

import platform
import re
from pathlib import Path

import torch

from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.costs.cost_table import CostTable
from dfs_rl.costs.latency_profile import (
    LatencyProfile,
    LatencySettings,
    Runtime,
    read_latency_profile,
)
from dfs_rl.errors import ConfigError
from dfs_rl.utils.run_records import package_version

_PROCESSORS = Path("/proc/cpuinfo")
_LIBRARIES: dict[Runtime, tuple[str, ...]] = {
    "torch": ("torch", "dfs-rl"),
    "onnx": ("onnxruntime", "torch", "dfs-rl"),
    "onnx-int8": ("onnxruntime", "torch", "dfs-rl"),
}


def machine_name(device: str) -> str:
    """Return the processor of this machine, and its GPU before it for the device ``"cuda"``."""
    name = platform.processor() or platform.machine()
    if _PROCESSORS.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", _PROCESSORS.read_text(), re.MULTILINE)
        name = found[1].strip() if found else name
    if device == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} with {name}"
    return name


def library_versions(runtime: Runtime) -> tuple[str, ...]:
    """Return the installed libraries that a runtime consists of, each with its version."""
    return tuple(f"{name} {package_version(name) or 'missing'}" for name in _LIBRARIES[runtime])


def check_machine(profile: LatencyProfile) -> None:
    """Raise ConfigError if a profile is of another machine, or of other libraries."""
    theirs = ", ".join((profile.machine, *profile.versions))
    ours = ", ".join((machine_name(profile.device), *library_versions(profile.runtime)))
    if theirs != ours:
        raise ConfigError(
            f"the latency profile was measured with {theirs}, but here are {ours}; measure the "
            "network here, or train with --latency.other-machine if the gate is for that machine."
        )


def load_latency_profile(settings: LatencySettings) -> LatencyProfile | None:
    """Return the profile that settings name, at their batch size; ``None`` without one.

    Raises:
        RunFolderError: If the file is missing or damaged.
        ConfigError: If it is no profile, lacks the batch size, or is of another machine.
    """
    if settings.profile is None:
        return None
    profile = read_latency_profile(settings.profile)
    if not settings.other_machine:
        check_machine(profile)
    return profile.at(settings.batch_size or profile.batch_sizes[0])


def measured_costs(costs: CostTable, profile: Path | None) -> CostTable | None:
    """Return costs by the cost model ``latency``: themselves, or with the times of a profile.

    ``None`` if neither is there; for the errors see ``load_latency_profile``.
    """
    if profile is None:
        return None if costs.profile is None else costs
    if costs.profile is not None:
        raise ConfigError(
            f"profile is {profile}, but the cost is latency, which has a profile; leave it out."
        )
    found = load_latency_profile(LatencySettings(profile=profile))
    return costs.with_cost_model(LATENCY, found)
