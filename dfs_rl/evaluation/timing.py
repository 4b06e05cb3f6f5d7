"""Measured times behind the milliseconds of an evaluation."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from dfs_rl.costs import SKIP, CostTable
from dfs_rl.costs.latency_profile import Runtime
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import json_bytes

CostName = Literal["computation", "milliseconds"]
"""Field of a result that tells its cost: computed, in percent, or measured."""
_NATIVE_BITS = 8  # the least bits that CPUs and GPUs compute with
_CLEAR_GAIN = 0.05  # share of the time that a bit option must save to count as faster
_MAX_GATE_RATIO = 1.5
"""Ratio of the MACs of two gates up to which their times are taken to be in proportion."""


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
    exits_save: bool  # some exit is clearly faster than the layers after it at the fastest bits
    error: float | None  # mean error of such sums on whole networks in percent, None if unknown
    profile: str = ""  # digest of the profile

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
    def gainless(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Bit options that do not run faster than a larger one, with that one.

        Those below 8 bit are compared with the next option from 8 bit on, and that one with the
        largest.
        """
        reference, full = self._reference, self.options[-1]
        found = []
        low = [bits for bits in self.options if SKIP < bits < reference]
        for group, than in ((low, reference), ([reference] if reference < full else [], full)):
            if slow := tuple(bits for bits in group if not self._is_faster(bits, than)):
                found.append((slow, than))
        return tuple(found)

    @property
    def savers(self) -> tuple[str, ...]:
        """Names of what saves time apart from bit options below 8."""
        reference = self._reference
        saves = {
            "skipping": SKIP in self.options and self._is_faster(SKIP, reference),
            "exits": self.exits_save,
            f"{reference} bit": self._is_faster(reference, self.options[-1]),
        }
        return tuple(name for name, does in saves.items() if does)

    @property
    def _reference(self) -> int:
        """The lowest bit option from 8 bit on, else the largest."""
        return next((bits for bits in self.options if bits >= _NATIVE_BITS), self.options[-1])

    def _is_faster(self, bits: int, other: int) -> bool:
        times = dict(zip(self.options, self.layer_milliseconds, strict=True))
        return times[bits] <= (1.0 - _CLEAR_GAIN) * times[other]


def timing_of(costs: CostTable) -> Timing:
    """Return the times behind a cost table of the cost model ``latency``."""
    profile = costs.profile
    assert profile is not None, "the cost model latency has a profile"
    fastest = costs.option_costs()[:, 1 if costs.options[0] == SKIP else 0 :].amin(dim=1)
    exits_save = any(
        float(costs.action_costs()[after, costs.exit_action])
        <= (1.0 - _CLEAR_GAIN) * float(fastest[after:].sum())
        for after in costs.exits_after
    )
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
        exits_save=exits_save,
        error=profile.error if profile.checks else None,
        profile=hashlib.sha256(json_bytes(config_to_dict(profile))).hexdigest()[:12],
    )


def gate_time_sentences(gate_macs: float, costs: CostTable) -> tuple[str, ...]:
    """Return that the time of a gate is an estimate if the measured gate is of another size.

    ``gate_macs`` are those of a pass by the cost model ``computation``; ``costs`` count latency.
    """
    assert costs.profile is not None, "the cost model latency has a profile"
    ratio = gate_macs / costs.profile.gate_macs
    if gate_macs == 0 or 1 / _MAX_GATE_RATIO <= ratio <= _MAX_GATE_RATIO:
        return ()
    sentence = (
        "The time of its decisions is an estimate: the profile measured a gate of "
        f"{costs.profile.gate_macs:,.0f} MACs, and this one has {gate_macs:,.0f}. Measure its run "
        "with python -m dfs_rl.profile."
    )
    return (sentence,)
