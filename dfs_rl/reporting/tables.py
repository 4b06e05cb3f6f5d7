"""Text tables, and the text output of an evaluation and of a latency profile."""

import io
import textwrap
from collections.abc import Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfs_rl.costs import COMPUTATION
from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.costs.latency_profile import LatencyProfile
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.evaluation.summary import EvaluationSummary, MethodSummary
from dfs_rl.evaluation.verdict import Comparison, with_cost_tolerance

WIDTH = 100
"""Width of filled text."""
Groups = Sequence[Sequence[Sequence[str]]]
"""Cells of a table: groups of rows."""
MEASURED = "measured ms"
"""Head of the column of measured times."""
_WIDEST = 10_000
_MOST_ERROR = 10.0
"""Mean error in percent up to which a latency profile predicts its network."""
_RULED = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")
_HEAD_GATE = ("gate minus method, 95 %", "gate is")


def cost_note(figures: EvaluationSummary | ComparisonOfRuns) -> str:
    """Return how costs are counted, and what 100 % is."""
    cost_model, timing = figures.cost_model, figures.timing
    if cost_model == LATENCY and timing is not None:
        return (
            f"Latency is measured, in percent of all gated layers at {timing.options[-1]} bit, "
            f"which take {_significant(timing.full_milliseconds)} ms"
        )
    plain = cost_model == COMPUTATION
    formula = "MACs x (bits / 32)²" if plain else f"cost model {cost_model}"
    return f"Computed, not measured: {formula}, in percent of all gated layers at 32 bit"


def timing_notes(figures: EvaluationSummary | ComparisonOfRuns) -> list[str]:
    """Return how milliseconds were measured, and which bit options save no time; empty without."""
    cost_model, timing = figures.cost_model, figures.timing
    if timing is None:
        return []
    measured = (
        "Measured: ms per image, the sum of the times of all parts that run, gate, stem and head "
        f"included, on {timing.conditions}."
    )
    if timing.error is not None:
        measured += f" Such sums differ from whole networks by {timing.error:.1f} % on average."
    if isinstance(figures, ComparisonOfRuns):
        measured += " A gate other than the measured one counts in proportion to its MACs."
    notes = [measured]
    has_gate = isinstance(figures, ComparisonOfRuns) or bool(figures.comparisons)
    if has_gate and cost_model != LATENCY:
        notes.append(
            f"Baselines are chosen at a gate's {cost_model}, not at its time; those of a gate "
            "trained with --cost latency are chosen at its time."
        )
    gainless = [
        f"{_listed(bits)} bit take{'s' * (len(bits) == 1)} as long as {than} bit or longer"
        for bits, than in timing.gainless
    ]
    if gainless:
        savers = f": what saves time is {_listed(timing.savers)}" if timing.savers else ""
        notes.append(f"On this machine {_listed(gainless)}{savers}.")
    return notes


def _listed(words: Sequence[object]) -> str:
    """Return words with commas, and "and" before the last one."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def aligned_table(head: Sequence[str], groups: Groups) -> str:
    """Return rows in aligned columns, the first one left-aligned, with a rule above each group.

    The result is independent of the terminal.
    """
    table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(head):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for group in groups:
        for row in group:
            table.add_row(*map(Text, row))
        table.add_section()
    buffer = io.StringIO()
    Console(file=buffer, width=_WIDEST, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def filled(text: str) -> str:
    """Return ``text`` in lines of at most ``WIDTH`` characters."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def summary_text(summary: EvaluationSummary) -> str:
    """Return the whole report: subject, table, notes and verdict."""
    subject = (
        f"{summary.dataset}, {summary.split} split, {summary.n:,} images, {summary.layers} gated "
        f"layers, options {', '.join(map(str, summary.options))} bit"
    )
    parts = [
        subject,
        aligned_table(*methods_table(summary)),
        *("\n".join(map(filled, texts)) for texts in (_notes(summary), summary.verdict) if texts),
    ]
    return "\n\n".join(parts) + "\n"


def methods_table(summary: EvaluationSummary) -> tuple[Sequence[str], Groups]:
    """Return head and rows: the gate, its baselines at its cost, the fixed points."""
    comparisons = {comparison.key: comparison for comparison in summary.comparisons}
    cost = f"{summary.cost_model} %"
    measured = () if summary.timing is None else (MEASURED,)
    head = (
        *("method", "accuracy %", cost, *measured, "gated only %", "MBitOPs", "patterns"),
        *(_HEAD_GATE if summary.comparisons else ()),
    )
    groups = []
    for role in ("gate", "matched", "fixed", "oracle"):
        methods = [method for method in summary.methods if method.role == role]
        if role == "fixed":
            methods.reverse()
        groups.append([_cells(m, comparisons.get(m.key))[: len(head)] for m in methods])
    return head, [group for group in groups if group]


def _cells(method: MethodSummary, comparison: Comparison | None) -> tuple[str, ...]:
    gain = ("", "")
    if comparison is not None:
        interval = f"[{comparison.low:+.2f}, {comparison.high:+.2f}]"
        gain = (f"{comparison.difference:+.2f} {interval}", _judgement(comparison))
    return (
        method.label,
        f"{method.accuracy:.2f} ± {method.accuracy_error:.2f}",
        _significant(method.computation),
        *([] if method.milliseconds is None else [_significant(method.milliseconds)]),
        _significant(method.computation_dfs),
        _significant(method.bitops / 1e6),
        f"{method.patterns:,.0f}",
        *gain,
    )


def _judgement(comparison: Comparison) -> str:
    """Return the outcome, with a difference in cost unless it speaks for the better one too."""
    outcome, ratio = comparison.outcome, comparison.relative_computation
    if outcome in ("better", "worse"):
        return outcome
    word = outcome.partition("_")[0]
    if ratio is None or ratio > with_cost_tolerance(1.0):
        return f"{word}, costs more"
    return f"{word}, costs less" if with_cost_tolerance(ratio) < 1.0 else word


def _significant(value: float) -> str:
    """Format a value with three significant digits and without an exponent."""
    for digits, limit in ((0, 100.0), (1, 10.0), (2, 1.0)):
        if abs(value) >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def _notes(summary: EvaluationSummary) -> list[str]:
    """Return what is counted, and how the baselines were chosen."""
    counted = f"{cost_note(summary)}; ± is the standard error over images"
    notes = [f"{counted}; MBitOPs are millions of MACs x bits².", *timing_notes(summary)]
    if summary.shares:
        shares = ", ".join(f"{s.name} {_significant(s.percent)} %" for s in summary.shares)
        place = "outside the gated layers, all passes of an image together"
        notes.append(f"Mean {summary.cost_model} {place}: {shares}.")
    for method in summary.methods:
        if any(method.exit_shares):
            pairs = zip(summary.exits_after, method.exit_shares, strict=True)
            shares = ", ".join(
                f"{100 * s:.1f} % after layer {after}" for after, s in pairs if s > 0
            )
            notes.append(f"Exits, {method.label}: {shares}.")
        if method.detail:
            chosen = f", chosen on {method.chosen_on}" if method.chosen_on else ""
            deviation = method.draws_deviation
            spread = "" if deviation is None else f", standard deviation {deviation:.2f}"
            notes.append(f"{method.label}{chosen}: {method.detail}{spread}.")
    if summary.comparisons and "cascade" not in summary.by_key:
        least = min(m.computation for m in summary.methods if m.role == "fixed")
        notes.append(
            "There is no cascade at the gate's cost: a pass through the whole network "
            f"costs at least {_significant(least)} %."
        )
    if (search := summary.search) is not None:
        tables = "all tables" if search.exhaustive else f"{search.tables:,} tables"
        final = f", the best {search.finalists} on all images" if search.finalists else ""
        notes.append(
            f"Static table search: {tables} within {search.budget:.3g} % {summary.cost_model}, by "
            f"accuracy on {search.images:,} images{final}; the best has {search.accuracy:.2f} % at "
            f"{search.computation:.3g} %."
        )
    return notes


def latency_subject(profile: LatencyProfile) -> str:
    """Return which network a profile measures, on which machine and how."""
    threads = f"{profile.threads} thread{'s' * (profile.threads > 1)}"
    exits = f"{len(profile.exits)} exit{'s' * (len(profile.exits) != 1)}"
    return (
        f"{len(profile.layer_macs)} gated layers with {sum(profile.layer_macs):,} MACs at "
        f"{_listed(profile.bits)} bit, {exits}, other parts with "
        f"{sum(profile.fixed_macs):,} MACs, measured on {profile.machine}, {profile.runtime}, "
        f"{threads}"
    )


def latency_text(profile: LatencyProfile, network: str) -> str:
    """Return the times of all parts, one table per batch size, and how well they add up."""
    libraries = ", ".join(profile.versions)
    parts = [filled(f"{network}: {latency_subject(profile)}, with {libraries}.")]
    parts += [_batch_text(profile.at(batch_size)) for batch_size in profile.batch_sizes]
    return "\n\n".join(parts) + "\n"


def _batch_text(profile: LatencyProfile) -> str:
    """Return the times at one batch size: layers in rows, bit options, exit and gate in columns."""
    times = {(part.part, part.layer, part.bits): part.median for part in profile.parts}
    of_layers = {(part.part, part.bits) for part in profile.parts if part.layer is not None}
    columns = sorted(of_layers, key=lambda part: (part[1] is None, part[1] or 0, part[0]))
    head = [f"batch {profile.batch_sizes[0]}"]
    head += [name if bits is None else f"{bits} bit" for name, bits in columns]
    rows = [
        [f"layer {layer}", *(_ms(times.get((name, layer, bits))) for name, bits in columns)]
        for layer in range(len(profile.layer_macs))
    ]
    errors = {
        check.bits: 100.0 * (check.predicted / check.measured - 1.0) for check in profile.checks
    }
    worst = max(errors, key=lambda bits: abs(errors[bits]))
    where = f"all layers at {worst[0]} bit" if len(set(worst)) == 1 else "a random one"
    note = (
        f"Milliseconds per image, medians of about {profile.calls} calls; stem "
        f"{_ms(times['stem', None, None])}, head {_ms(times['head', None, None])}. Sums of "
        f"parts against {len(profile.checks)} whole networks, uniform and random: mean absolute "
        f"error {profile.error:.1f} %, largest {errors[worst]:+.1f} %, of {where}."
    )
    notes = [note]
    if profile.error > _MOST_ERROR:
        notes.append(
            f"Warning: a mean error above {_MOST_ERROR:g} % means that these times do not predict "
            "this network; measure again while the machine does nothing else."
        )
    return "\n".join([aligned_table(head, [rows]), *map(filled, notes)])


def _ms(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.4f}"
