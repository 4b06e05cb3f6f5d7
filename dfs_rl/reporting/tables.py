"""Text output of an evaluation."""

import textwrap
from collections.abc import Sequence

from dfs_rl.evaluation.summary import EvaluationSummary, MethodSummary
from dfs_rl.evaluation.verdict import Comparison

WIDTH = 100
_HEAD_GATE = ("gate minus method, 95 %",)
_GAP = "  "
_FORMULAS = {"computation": "MACs x (bits / 32)²"}


def summary_text(summary: EvaluationSummary) -> str:
    """Return the whole report: subject, table, notes and verdict."""
    options = ", ".join(map(str, summary.options))
    subject = (
        f"{summary.dataset}, {summary.split} split, {summary.n:,} images, {summary.layers} gated "
        f"layers, options {options} bit"
    )
    parts = [subject, methods_table(summary), _notes(summary)]
    if summary.verdict:
        parts.append("\n".join(textwrap.fill(sentence, WIDTH) for sentence in summary.verdict))
    return "\n\n".join(parts) + "\n"


def methods_table(summary: EvaluationSummary) -> str:
    """Return the table of methods: the gate, its baselines at its cost, the fixed points."""
    comparisons = {comparison.key: comparison for comparison in summary.comparisons}
    gate, matched, fixed, oracle = (
        [m for m in summary.methods if m.role == role]
        for role in ("gate", "matched", "fixed", "oracle")
    )
    cost = f"{summary.cost_model} %"
    head = (
        *("method", "accuracy %", cost, "gated only %", "MBitOPs", "patterns"),
        *(_HEAD_GATE if gate else ()),
    )
    groups = [
        [_cells(method, comparisons.get(method.key))[: len(head)] for method in group]
        for group in (gate, matched, fixed[::-1], oracle)
        if group
    ]
    return aligned_table(head, groups)


def _cells(method: MethodSummary, comparison: Comparison | None) -> tuple[str, ...]:
    return (
        method.label,
        f"{method.accuracy:.2f} ± {method.accuracy_error:.2f}",
        _significant(method.computation),
        _significant(method.computation_dfs),
        _significant(method.bitops / 1e6),
        f"{method.patterns:,.0f}",
        ""
        if comparison is None
        else f"{comparison.difference:+.2f} [{comparison.low:+.2f}, {comparison.high:+.2f}]",
    )


def _significant(value: float) -> str:
    """Format a value with three significant digits and without an exponent."""
    for digits, limit in ((0, 100.0), (1, 10.0), (2, 1.0)):
        if abs(value) >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def aligned_table(head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> str:
    """Return rows in aligned columns, the first one left-aligned, with a rule above each group."""
    rows = [row for group in groups for row in group]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return _GAP.join([first, *rest]).rstrip()

    rule = "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    lines = [line(head)]
    for group in groups:
        lines += [rule, *map(line, group)]
    return "\n".join(lines)


def _notes(summary: EvaluationSummary) -> str:
    shares = ", ".join(f"{share.name} {_significant(share.percent)} %" for share in summary.shares)
    formula = _FORMULAS.get(summary.cost_model, f"cost model {summary.cost_model}")
    notes = [
        f"Computed, not measured: {formula}, % of all gated layers at 32 bit; ± 1 standard error."
    ]
    if shares:
        whom = "per image, on average," if summary.exits_after else "for every image"
        notes.append(f"Counted {whom} beside the gated layers: {shares}.")
    if any(share > 0 for method in summary.methods for share in method.exit_shares):
        notes.append(_exits_note(summary))
    if summary.comparisons and summary.method("cascade") is None:
        least = min(m.computation for m in summary.methods if m.role == "fixed")
        notes.append(
            "There is no confidence cascade at the gate's cost: one pass through the whole network "
            "costs at least "
            f"{_significant(least)} %."
        )
    for method in summary.methods:
        if method.detail:
            chosen = f", chosen on {method.chosen_on}" if method.chosen_on else ""
            spread = (
                f", standard deviation {method.draws_deviation:.2f}"
                if method.draws_deviation is not None
                else ""
            )
            notes.append(
                f"{method.label[0].upper()}{method.label[1:]}{chosen}: {method.detail}{spread}."
            )
    if summary.search is not None:
        notes.append(_search_note(summary))
    return "\n".join(
        textwrap.fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for note in notes
    )


def _exits_note(summary: EvaluationSummary) -> str:
    """Return the note on the share of images at each exit."""
    told = []
    for method in summary.methods:
        if any(method.exit_shares):
            shares = ", ".join(
                f"{100 * share:.1f} % after {after}"
                for after, share in zip(summary.exits_after, method.exit_shares, strict=True)
                if share > 0
            )
            told.append(f"{method.label} {shares}")
    return f"Images that left, after how many layers: {'; '.join(told)}."


def _search_note(summary: EvaluationSummary) -> str:
    search = summary.search
    assert search is not None, "only called with one"
    how = "all tables under the budget" if search.exhaustive else f"{search.tables:,} tables"
    again = f", the best {search.finalists} of them on all" if search.finalists else ""
    return (
        f"The static table is the best of {how} by accuracy on {search.images:,} images{again}: "
        f"{search.accuracy:.2f} % there at {search.computation:.3g} % computation (budget "
        f"{search.budget:.3g} %)."
    )
