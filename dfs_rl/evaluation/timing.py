"""Measured times behind the milliseconds of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from dfs_rl.costs import SKIP, CostTable
from dfs_rl.costs.latency_profile import Runtime

CostName = Literal["computation", "milliseconds"]
"""Field of a result that tells its cost: computed, in percent, or measured."""
_NATIVE_BITS = 8
"""The least bits that CPUs and GPUs compute with."""
_CLEAR_GAIN = 0.05
"""Share of the time that a bit option must save to count as faster."""


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
    error: float | None  # mean error of such sums on whole networks in percent, None if unknown

    @property
    def conditions(self) -> str:
        """Machine, runtime, threads, batch size, number of calls and libraries."""
        return (
            f"{self.machine}, {self.runtime} runtime, {self.load}, medians of {self.calls:,} "
            f"calls, {', '.join(self.versions)}"
        )

    @property
    def load(self) -> str:
        """Threads and batch size."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{threads}, batch size {self.batch_size}"

    @property
    def full_milliseconds(self) -> float:
        """Time of all gated layers at the largest bit option."""
        return self.layer_milliseconds[-1]

    @property
    def reference(self) -> int | None:
        """The lowest bit option that machines have arithmetic for, at least 8 bit."""
        return next((bits for bits in self.options if bits >= _NATIVE_BITS), None)

    @property
    def slow_options(self) -> tuple[int, ...]:
        """The bit options below the reference that do not run faster."""
        if self.reference is None:
            return ()
        lower = (bits for bits in self.options if SKIP < bits < self.reference)
        return tuple(bits for bits in lower if not self._is_faster(bits, self.reference))

    @property
    def savers(self) -> tuple[str, ...]:
        """Names of what saves time apart from bit options below the reference."""
        reference, full = self.reference, self.options[-1]
        if reference is None:
            return ()
        skips = SKIP in self.options and self._is_faster(SKIP, reference)
        saves = {
            "skipping": skips,
            "exits": self.has_exits,
            f"{reference} bit": self._is_faster(reference, full),
        }
        return tuple(name for name, does in saves.items() if does)

    def _is_faster(self, bits: int, other: int) -> bool:
        """Return True if an option takes clearly less time than another one."""
        times = dict(zip(self.options, self.layer_milliseconds, strict=True))
        return times[bits] <= (1.0 - _CLEAR_GAIN) * times[other]


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
        error=profile.error if profile.checks else None,
    )
