"""Measurement of latency profiles.

Whole networks are timed as they are deployed, at random options of all layers, and the time of each
option is fitted to these runs: among the others a part takes another time than alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_rl.costs import SKIP, CostTable
from dfs_rl.costs.latency_profile import (
    LatencyProfile,
    NetworkLatency,
    PartLatency,
    PartName,
    Runtime,
)
from dfs_rl.costs.machine import library_versions, machine_name
from dfs_rl.errors import ConfigError
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate, computed_macs
from dfs_rl.runtime.latency_fit import CostFit, Floats, fit_costs, split_time
from dfs_rl.runtime.latency_networks import TimedNetwork, TimesAlone, timed_networks
from dfs_rl.runtime.latency_runs import NetworkRuns, time_runs

_RUNS_PER_LAYER = 4
"""Least calls of an option per gated layer of the network, which the fit needs."""
_FACTORS = (1, 2, 4)
"""Factors of the number of calls, of which the next one is tried if a time is lost in noise."""
_LEAST = 1e-9
"""Least time of a part in seconds, the resolution of the clock."""


def measured_setup(model: GatedModel, *, runtime: Runtime, threads: int) -> dict[str, Any]:
    """Return the fields of a profile that tell which network it measures, where and how."""
    costs, device = model.backbone.costs, model.backbone.feature_mean.device.type
    return {
        "machine": machine_name(device),
        "device": device,
        "runtime": runtime,
        "threads": threads,
        "layer_macs": costs.layer_macs,
        "fixed_macs": tuple(part.macs for part in costs.fixed),
        "fixed_bits": tuple(part.bits for part in costs.fixed),
    }


def measure_latency(
    model: GatedModel, *, runtime: Runtime, batch_sizes: Sequence[int], threads: int, calls: int
) -> LatencyProfile:
    """Measure every part of a network with a learned gate.

    Args:
        model: The network in its inference form, on the device to measure.
        runtime: Library that runs it.
        batch_sizes: Images per call, each measured by itself.
        threads: Number of CPU threads, which torch already has.
        calls: Mean number of calls of each option at each layer, raised for deep networks.

    Raises:
        ConfigError: If the runtime cannot run the network, or the time of a layer is below the
            spread of its runs.
    """
    costs, gate = model.backbone.costs, model.gate
    assert isinstance(gate, LearnedGate), "the caller gives a gate that decides"
    device = model.backbone.feature_mean.device.type
    if runtime != "torch" and device != "cpu":
        raise ConfigError(
            f"device is {device}, but the runtime {runtime} runs on the CPU; give cpu."
        )
    calls = max(calls, _RUNS_PER_LAYER * costs.n_layers)
    parts: list[PartLatency] = []
    checks: list[NetworkLatency] = []
    sizes = sorted(set(batch_sizes))
    networks = timed_networks(model, runtime, batch_sizes=sizes, threads=threads)
    for batch_size, network in zip(sizes, networks, strict=True):
        found, compared = measure_parts(network, costs, gate, calls=calls, batch_size=batch_size)
        parts += found
        checks += compared
    return LatencyProfile(
        **measured_setup(model, runtime=runtime, threads=threads),
        versions=library_versions(runtime),
        calls=calls,
        gate_macs=computed_macs(gate, costs),
        parts=tuple(parts),
        checks=tuple(checks),
    )


def measure_parts(
    network: TimedNetwork, costs: CostTable, gate: LearnedGate, *, calls: int, batch_size: int
) -> tuple[list[PartLatency], list[NetworkLatency]]:
    """Measure the parts of a network, with more calls if a layer seems to take no time.

    Raises:
        ConfigError: If it still does.
    """
    for factor in _FACTORS:
        runs = time_runs(network, costs, calls=factor * calls, batch_size=batch_size)
        times = PartTimes(runs, network.times_alone(), costs=costs, gate=gate)
        parts = times.part_records(batch_size)
        timeless = [p for p in parts if p.part == "layer" and p.bits and p.median <= 1e3 * _LEAST]
        if not timeless:
            return parts, times.check_records(batch_size)
    raise ConfigError(
        f"calls is {calls}, but in {_FACTORS[-1]} times as many layer {timeless[0].layer} at "
        f"{timeless[0].bits} bit took no time that differs from noise; measure again while the "
        "machine does nothing else, or give more calls."
    )


class PartTimes:
    """Times of the parts of a network in seconds, which add up to those of its runs.

    Args:
        runs: Timed runs of the network.
        alone: Times of its parts alone; ``None`` to estimate them from MACs.
        costs: Costs of the network.
        gate: Its gate.
    """

    def __init__(
        self, runs: NetworkRuns, alone: TimesAlone | None, *, costs: CostTable, gate: LearnedGate
    ) -> None:
        self._runs, self._costs = runs, costs
        self._fit = fit_costs(*runs.random, n_options=len(costs.options))
        alone = alone or _times_by_macs(costs, gate, self._fit)
        self._stem, *first, self._head = split_time(self._fit.base, alone.parts)
        self._layers = np.maximum(np.array(first)[:, None] + self._fit.extra, _LEAST)
        beyond = runs.exits.seconds - self._until_exit(runs.exits.settings)
        n_run = self._n_layers_run(runs.exits.settings)
        self._exits = {after: beyond[n_run == after] for after in costs.exits_after}
        decided = np.minimum(self._n_layers_run(runs.gated.settings), costs.n_layers - 1)
        share = alone.gate / alone.gate.sum()
        self._decisions = np.outer(share, runs.gated.seconds / share.cumsum()[decided])

    def part_records(self, batch_size: int) -> list[PartLatency]:
        """Return the time of every part."""
        record = partial(_record, batch_size=batch_size)
        random, around = self._runs.random.settings, self._fit.residuals
        records = [record("stem", self._stem, around)]
        for layer, decision in enumerate(self._decisions):
            records.append(record("gate", *_centred(decision), layer=layer))
            if layer in self._exits:
                records.append(record("exit", *_centred(self._exits[layer]), layer=layer))
            for option, bits in enumerate(self._costs.options):
                own = around[random[:, layer] == option]
                seconds = self._layers[layer, option]
                records.append(record("layer", seconds, own, layer=layer, bits=bits))
        return [*records, record("head", self._head, around)]

    def check_records(self, batch_size: int) -> list[NetworkLatency]:
        """Compare the sums of parts with the times of whole networks."""
        settings, measured = self._runs.checks
        predicted = self._until_exit(settings) + self._head
        scale = 1e3 / batch_size
        return [
            NetworkLatency(
                bits=tuple(self._costs.options[option] for option in setting),
                batch_size=batch_size,
                predicted=scale * float(own),
                measured=scale * float(seconds),
            )
            for setting, own, seconds in zip(settings, predicted, measured, strict=True)
        ]

    def _until_exit(self, settings: NDArray[np.int64]) -> Floats:
        """Return the time of stem and layers in each run, ``[runs]``."""
        nothing = np.zeros((len(self._layers), 1))
        times = np.concatenate([self._layers, nothing], axis=1)  # [layers, actions]
        total: Floats = self._stem + times[np.arange(len(times)), settings].sum(axis=1)
        return total

    def _n_layers_run(self, settings: NDArray[np.int64]) -> NDArray[np.int64]:
        n_run: NDArray[np.int64] = (settings != self._costs.exit_action).sum(axis=1)
        return n_run


def _centred(times: Floats) -> tuple[float, Floats]:
    """Return the median of times, and their deviations from it."""
    median = float(np.median(times))
    return median, times - median


def _record(
    part: PartName,
    seconds: float,
    deviations: Floats,
    *,
    batch_size: int,
    layer: int | None = None,
    bits: int | None = None,
) -> PartLatency:
    """Return the record of a part in milliseconds per image."""
    low, high = np.quantile(deviations, [0.25, 0.75])
    median = max(seconds, _LEAST)
    scale = 1e3 / batch_size
    return PartLatency(
        part=part,
        layer=layer,
        bits=bits,
        batch_size=batch_size,
        median=scale * median,
        low=scale * max(median + min(float(low), 0.0), 0.0),
        high=scale * (median + max(float(high), 0.0)),
    )


def _times_by_macs(costs: CostTable, gate: LearnedGate, fit: CostFit) -> TimesAlone:
    """Estimate the times of parts alone by the MACs per second at the largest option."""
    rate = max(float(fit.extra[:, -1].sum()), _LEAST) / costs.total_macs
    macs = np.zeros(costs.n_layers + 2)  # stem, layers, head
    for part in costs.fixed:
        macs[0 if part.layer is None else part.layer + 1] += part.macs
    if costs.options[0] != SKIP:
        macs[1:-1] += costs.layer_macs
    return TimesAlone(rate * macs, np.array(gate.layer_macs) + gate.feature_macs / costs.n_layers)
