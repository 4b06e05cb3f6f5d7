"""Text of a latency profile."""

from dfs_rl.costs.latency_profile import LatencyProfile, PartName
from dfs_rl.reporting.tables import aligned_table, filled


def latency_text(profile: LatencyProfile) -> str:
    """Return the times of all parts, one table per batch size, and how well they add up."""
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    subject = f"Measured on {profile.machine}, {threads}, with {', '.join(profile.versions)}."
    parts = [filled(subject)]
    parts += [_batch_text(profile.at(batch_size)) for batch_size in profile.batch_sizes]
    return "\n\n".join(parts) + "\n"


def _batch_text(profile: LatencyProfile) -> str:
    """Return the times at one batch size: layers in rows, bit options, exit and gate in columns."""
    times = {(part.part, part.layer, part.bits): part.median for part in profile.parts}
    columns = sorted(
        {(part.part, part.bits) for part in profile.parts if part.layer is not None}, key=_order
    )
    head = [f"batch {profile.batch_sizes[0]}"]
    head += [name if bits is None else f"{bits} bit" for name, bits in columns]
    rows = [
        [f"layer {layer}", *(_cell(times.get((name, layer, bits))) for name, bits in columns)]
        for layer in range(len(profile.layer_macs))
    ]
    errors = {
        check.bits: 100.0 * (check.predicted / check.measured - 1.0) for check in profile.checks
    }
    worst = max(errors, key=lambda bits: abs(errors[bits]))
    where = f"all layers at {worst[0]} bit" if len(set(worst)) == 1 else "a random one"
    note = (
        f"Milliseconds per image, medians of about {profile.calls} calls; stem "
        f"{_cell(times['stem', None, None])}, head {_cell(times['head', None, None])}. Sums of "
        f"parts against {len(profile.checks)} whole networks, uniform and random: mean absolute "
        f"error {profile.error:.1f} %, largest {errors[worst]:+.1f} %, of {where}."
    )
    return aligned_table(head, [rows]) + "\n" + filled(note)


def _order(column: tuple[PartName, int | None]) -> tuple[bool, int, str]:
    """Return a key that sorts bit options first."""
    name, bits = column
    return bits is None, bits or 0, name


def _cell(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.4f}"
