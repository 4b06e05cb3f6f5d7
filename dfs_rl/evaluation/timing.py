"""Measured times behind the milliseconds of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from dfs_rl.costs import CostTable
from dfs_rl.costs.latency_profile import Runtime

CostName = Literal["computation", "milliseconds"]
"""Field of a result that tells its cost: computed, in percent, or measured."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Conditions of a measurement, and the time that each bit option takes."""

    machine: str  # this and the next four as in ``LatencyProfile``
    runtime: Runtime
    threads: int
    versions: tuple[str, ...]
    calls: int  # behind each median
    batch_size: int
    options: tuple[int, ...]
    layer_milliseconds: tuple[float, ...]  # per image, of all gated layers at each option
    has_exits: bool

    @property
    def conditions(self) -> str:
        """Machine, runtime, threads, batch size and number of calls."""
        return (
            f"{self.machine}, {self.runtime} runtime, {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}, batch size {self.batch_size}, medians of "
            f"{self.calls:,} calls, {', '.join(self.versions)}"
        )

    @property
    def full_milliseconds(self) -> float:
        """Time of all gated layers at the largest bit option."""
        return self.layer_milliseconds[-1]


def timing_of(costs: CostTable) -> Timing:
    """Return the times behind a cost table of the cost model ``latency``."""
    profile = costs.profile
    assert profile is not None, "the cost model latency has a profile"
    return Timing(
        machine=profile.machine,
        runtime=profile.runtime,
        threads=profile.threads,
        versions=profile.versions,
        calls=profile.calls,
        batch_size=profile.batch_sizes[0],
        options=costs.options.values,
        layer_milliseconds=tuple(
            sum(costs.layer_cost(layer, bits) for layer in range(costs.n_layers))
            for bits in costs.options
        ),
        has_exits=bool(costs.exits),
    )
