"""Text of an evaluation and of a latency profile."""

from dataclasses import replace
from pathlib import Path

import pytest

from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.costs.latency_profile import NetworkLatency
from dfs_rl.reporting.tables import (
    aligned_table,
    latency_text,
    methods_table,
    summary_text,
    timing_notes,
)
from tests.helpers.latencies import made_up_profile

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
    costs = {key: gate.computation / method.computation for key, method in summary.by_key.items()}
    assert costs["full"] < 0.95 < costs["static_table"] < 1.05 < costs["uniform_3"]
    assert rows["full precision"]["gate is"] == "tied, costs less"
    assert rows["best static table"]["gate is"] == "tied"
    assert rows["uniform 3 bit"]["gate is"] == "tied, costs more"


def notes_of(summary):
    return " ".join(summary_text(summary).split())


def test_measured_times_stand_beside_computation(measured_summary):
    head, groups = methods_table(measured_summary)
    rows = {row[0]: dict(zip(head, row, strict=True)) for group in groups for row in group}
    assert head[2:4] == ("computation %", "measured ms")
    # Stem and head take 0.025 ms, and 9 layers 0.03 ms each at 8 bit and 0.06 ms at 32 bit.
    assert rows["uniform 2 bit"]["measured ms"] == rows["uniform 8 bit"]["measured ms"] == "0.295"
    assert rows["full precision"]["measured ms"] == "0.565"
    notes = notes_of(measured_summary)
    assert "Computed, not measured: MACs x (bits / 32)²" in notes
    assert (
        "Measured: ms per image, the sum of the times of all parts that run, gate, stem and head "
        "included, on a machine, torch runtime, 1 thread, batch size 1, medians of 10 calls, torch "
        "2.13.0. Such sums differ from whole networks by 10.0 % on average." in notes
    )
    assert "Baselines are chosen at a gate's computation, not at its time" in notes


def test_latency_says_what_100_percent_is(latency_summary):
    head, _ = methods_table(latency_summary)
    assert head[2:4] == ("latency %", "measured ms")
    notes = notes_of(latency_summary)
    assert (
        "Latency is measured, in percent of all gated layers at 32 bit, which take 0.540 ms;"
        in notes
    )
    assert "Computed" not in notes
    assert "Baselines are chosen" not in notes
    without_gate = replace(latency_summary, cost_model="computation")
    assert "Baselines are chosen" not in notes_of(without_gate)


@pytest.mark.parametrize(
    ("options", "times", "exits", "slow", "savers"),
    [
        (
            (0, 2, 3, 4, 8, 32),
            (0.1, 0.96, 1.0, 3.0, 1.0, 2.0),
            True,
            "2, 3 and 4 bit take as long as 8 bit or longer",
            ": what saves time is skipping, exits and 8 bit",
        ),
        (
            (0, 2, 4, 8, 32),
            (0.1, 0.9, 0.96, 1.0, 2.0),
            False,
            "4 bit takes as long as 8 bit or longer",
            ": what saves time is skipping and 8 bit",
        ),
        (
            (2, 32),  # without 8 bit, the next option counts
            (1.0, 1.0),
            True,
            "2 bit takes as long as 32 bit or longer",
            ": what saves time is exits",
        ),
        (
            (0, 4, 8, 32),
            (0.1, 3.0, 3.0, 2.0),
            False,
            "4 bit takes as long as 8 bit or longer and 8 bit takes as long as 32 bit or longer",
            ": what saves time is skipping",
        ),
        ((2, 8), (1.0, 1.0), False, "2 bit takes as long as 8 bit or longer", ""),
        ((0, 2, 8, 32), (0.1, 0.5, 1.0, 2.0), True, None, None),
        (
            (0, 2, 4),
            (0.1, 1.0, 1.0),
            False,
            "2 bit takes as long as 4 bit or longer",
            ": what saves time is skipping",
        ),
    ],
)
def test_options_that_save_no_time_are_named(measured_summary, options, times, exits, slow, savers):
    timing = replace(
        measured_summary.timing, options=options, layer_milliseconds=times, exits_save=exits
    )
    found = [n for n in timing_notes(replace(measured_summary, timing=timing)) if "On this" in n]
    assert found == ([] if slow is None else [f"On this machine {slow}{savers}."])


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


LATENCY_TEXT = """\
runs/net: 2 gated layers with 40 MACs at 0 and 8 bit, 1 exit, other parts with 0 MACs, measured on a
  machine, torch, 1 thread, with torch 2.13.0.

batch 1   0 bit   8 bit    exit    gate
───────────────────────────────────────
layer 0  0.1000  0.9000          0.0625
layer 1  0.2000  1.8000  0.1250  0.0625
Milliseconds per image, medians of about 10 calls; stem 0.5000, head 0.2500. Sums of parts against 2
  whole networks, uniform and random: mean absolute error 15.0 %, largest -20.0 %, of all layers at
  8 bit.
Warning: a mean error above 10 % means that these times do not predict this network; measure again
  while the machine does nothing else.
"""


def test_latency_text():
    exits = (ExitCost(after=1, macs=6, bits=8),)
    costs = CostTable(options=BitOptions((0, 8)), layer_macs=(10, 30), exits=exits)
    checks = tuple(
        NetworkLatency(bits=bits, batch_size=1, predicted=predicted, measured=1.0)
        for bits, predicted in (((0, 8), 1.1), ((8, 8), 0.8))
    )
    profile = replace(made_up_profile(costs), checks=checks)
    assert latency_text(profile, "runs/net") == LATENCY_TEXT
    good = replace(profile, checks=tuple(replace(c, predicted=1.09) for c in checks))
    assert "Warning" not in latency_text(good, "runs/net")
