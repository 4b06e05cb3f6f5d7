"""Latency profiles with made-up times."""

from collections.abc import Callable

from dfs_rl.costs import CostTable
from dfs_rl.costs.latency_profile import LatencyProfile, PartLatency


def made_up_profile(
    costs: CostTable,
    *,
    layer: Callable[[int, int], float] = lambda layer, bits: 0.1 * (layer + 1) * (1 + bits),
    stem: float = 0.5,
    head: float = 0.25,
    exit_: float = 0.125,
    gate: float = 0.0625,
    gate_macs: float = 1000.0,
    batch_sizes: tuple[int, ...] = (1,),
) -> LatencyProfile:
    """Return a profile of a network; larger batches take half the time per image."""
    parts = []
    for batch_size in batch_sizes:

        def add(name, milliseconds, number=None, bits=None, batch_size=batch_size) -> None:
            ms = milliseconds if batch_size == batch_sizes[0] else milliseconds / 2
            quartiles = {"median": ms, "low": ms, "high": ms}
            about = {"layer": number, "bits": bits, "batch_size": batch_size}
            parts.append(PartLatency(part=name, **about, **quartiles))

        add("stem", stem)
        add("head", head)
        for number in range(costs.n_layers):
            add("gate", gate, number)
            for bits in costs.options:
                add("layer", layer(number, bits), number, bits)
        for one in costs.exits:
            add("exit", exit_, one.after)
    return LatencyProfile(
        machine="a machine",
        device="cpu",
        runtime="torch",
        threads=1,
        versions=("torch 2.13.0",),
        calls=10,
        layer_macs=costs.layer_macs,
        fixed_macs=tuple(part.macs for part in costs.fixed),
        fixed_bits=tuple(part.bits for part in costs.fixed),
        gate_macs=gate_macs,
        parts=tuple(parts),
    )
