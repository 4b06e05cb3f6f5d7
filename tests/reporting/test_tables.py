"""Text of an evaluation."""

from pathlib import Path

from dfs_rl.reporting.tables import aligned_table, methods_table, summary_text

GOLDEN = Path(__file__).parent / "golden"


def test_text_of_an_evaluation(summary):
    assert summary_text(summary) == (GOLDEN / "evaluate.txt").read_text()


def test_rows_have_the_figures_of_the_summary(summary):
    head, groups = methods_table(summary)
    rows = {row[0]: dict(zip(head, row, strict=True)) for group in groups for row in group}
    assert [len(group) for group in groups] == [1, 4, 6]  # gate, matched, fixed
    gate = summary.by_key["gate"]
    assert rows["PPO gate"]["accuracy %"] == f"{gate.accuracy:.2f} ± {gate.accuracy_error:.2f}"
    assert rows["PPO gate"]["patterns"] == f"{gate.patterns:,.0f}"
    assert rows["uniform 2 bit"]["gated only %"] == "0.391"
    full = next(c for c in summary.comparisons if c.key == "full")
    expected = f"{full.difference:+.2f} [{full.low:+.2f}, {full.high:+.2f}]"
    assert rows["full precision"]["gate minus method, 95 %"] == expected
    assert rows["full precision"]["gate is"] == "tied"


def test_a_backbone_has_no_gate_columns(backbone_summary):
    head, _ = methods_table(backbone_summary)
    assert "gate is" not in head


def test_cells_are_printed_as_they_are_at_any_width():
    cell = "[bold]" + "x" * 300
    text = aligned_table(("a", "b"), [[(cell, "1")], [("c", "20")]])
    lines = text.splitlines()
    assert lines[2] == f"{cell}   1"
    assert lines[4] == "c".ljust(len(cell)) + "  20"
    assert set(lines[1]) == set(lines[3]) == {"─"}
