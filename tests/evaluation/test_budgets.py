"""Result of each method at a budget, and the recommended one."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.metrics import paired_difference
from tests.helpers.fake_runs import fake_run, mcnemar, with_right

TABLE = "best static table"


def at_two_budgets():
    """Return a gate for two budgets, one for the lower only, and one trained at a cost weight."""
    return [
        fake_run("low", (140, 0.61), label="A", budget=0.6, cascade=(150, 0.65)),
        fake_run("high", (170, 1.1), label="A", budget=1.2, cascade=(165, 1.19)),
        fake_run(
            "only",
            (145, 0.6),
            label="B",
            budget=0.6,
            static=(130, 0.59),
            selection={"gate": (152, 0.62), "cascade": (160, 0.64)},
        ),
        fake_run("weight", (160, 0.9), label="C", cost_weight=4.0),
    ]


def test_val_chooses_at_each_budget():
    low, high = compare_runs(at_two_budgets()).budgets
    assert (low.budget, high.budget) == (0.6, 1.2)
    # The cascades at 0.64 and 0.65 % on val cost more than 5 % too much, B's 0.62 % do not.
    assert (low.recommended, low.tied) == ("B", ())
    assert low.methods == {"A": "A, budget 0.6", "B": "B", TABLE: f"{TABLE} at 0.59 %"}
    # A is trained for this budget; B and C are within it.
    assert high.methods["A"] == "A, budget 1.2"
    assert (high.methods["B"], high.methods["C"]) == ("B", "C")
    assert high.methods["cascade"] == "cascade at 1.19 %"
    # Five images of 200 do not separate A from the cascade, which is simpler.
    assert (high.recommended, high.tied) == ("cascade at 1.19 %", ("A, budget 1.2",))


def test_per_input_budgets_count_as_budgets():
    runs = [
        fake_run(f"{b}", (right, 0.5), label="M", per_input_budget=b, cost_weight=0.1)
        for b, right in ((0.6, 150), (1.2, 140))
    ]
    low, high = compare_runs(runs).budgets
    # The gate for the higher budget is worse, so the other one represents the method.
    assert low.methods["M"] == high.methods["M"] == "M, per input budget 0.6"


def test_gates_over_budget_are_marked():
    runs = [fake_run("a", (150, 0.64), budget=0.6), fake_run("b", (170, 1.25), budget=1.2)]
    runs.append(fake_run("c", (140, 0.65), label="Low", budget=0.6))
    low, high = compare_runs(runs).budgets
    assert low.over_budget == ("PPO, budget 0.6", "Low")
    assert high.methods["Low"] == "Low"  # well within the higher budget
    assert high.over_budget == ()


def test_baselines_are_never_over_budget():
    within_on_val = {"static_table": (150, 0.6)}
    runs = [fake_run("a", (150, 0.6), budget=0.6, static=(150, 0.7), selection=within_on_val)]
    low, _ = compare_runs([*runs, fake_run("b", (170, 1.2), budget=1.2)]).budgets
    assert low.methods[TABLE] == f"{TABLE} at 0.7 %"
    assert low.over_budget == ()


def test_gate_at_no_budget_leaves_no_budgets():
    runs = [*at_two_budgets(), fake_run("dear", (180, 3.0), label="D", cost_weight=0.1)]
    assert compare_runs(runs).budgets == ()


def test_uniform_settings_are_static_tables():
    runs = [
        fake_run(f"{b}", (100, 0.55), budget=b, static=(110, 0.56), cascade=(110, 0.57))
        for b in (0.3, 0.6)
    ]
    lowest, low = compare_runs(runs).budgets
    assert lowest.methods == {"PPO": "PPO, budget 0.3"}
    assert lowest.recommended is None
    assert low.methods[TABLE] == low.recommended == "uniform 2 bit"


def cotrained_run():
    before = {"static_table": (105, 0.56)}
    figures = {"budget": 0.6, "static": (100, 0.58), "before": before}
    return fake_run("other", (110, 0.55), label="Co", **figures)


def test_uniform_settings_belong_to_their_backbone():
    plain = fake_run("plain", (110, 0.55), budget=0.6, static=(115, 0.56), cascade=(90, 0.57))
    (at,) = compare_runs([plain, cotrained_run()]).budgets
    # The uniform settings belong to the frozen backbone and are better than its table.
    assert at.methods[TABLE] == at.recommended == "uniform 2 bit"
    changed = f"{TABLE} on the co-trained backbone"
    assert at.methods[changed] == f"{changed} at 0.58 %"
    # If all backbones are co-trained, the uniform settings belong to a co-trained one.
    (alone,) = compare_runs([cotrained_run()]).budgets
    assert alone.methods[changed] == "uniform 2 bit on the co-trained backbone"
    assert alone.methods[TABLE] == f"{TABLE} at 0.56 %"


def test_reported_split_chooses_nothing():
    # Not as good on val, or too expensive there.
    lucky = {"gate": (125, 0.6), "cascade": (190, 0.7), "static_table": (126, 0.6)}
    steady = {"gate": (170, 0.6), "cascade": (150, 0.6), "static_table": (150, 0.6)}
    first = {"label": "Lucky", "cost_weight": 4.0, "static": (180, 0.59), "cascade": (180, 0.58)}
    second = {"label": "Steady", "budget": 0.6, "static": (140, 0.57), "cascade": (140, 0.56)}
    runs = [
        fake_run("a", (190, 0.6), selection=lucky, **first),
        fake_run("b", (160, 0.6), selection=steady, **second),
    ]
    (at,) = compare_runs(runs).budgets
    assert at.recommended == "Steady"
    assert at.methods[TABLE] == f"{TABLE} at 0.57 %"
    assert at.methods["cascade"] == "cascade at 0.56 %"


def test_luckiest_of_many_tables_is_not_recommended():
    """Twelve tables differ from uniform 2 bit on random images: the best is better by luck."""
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(208, generator=draw) < 0.5
    tables = [
        torch.where(torch.rand(208, generator=draw) < 0.1, ~uniform, uniform) for _ in range(12)
    ]
    assert max(int(right.sum()) for right in tables) > uniform.sum() + 2
    wrong = {key: torch.zeros(208) for key in ("gate", "cascade", "uniform_0", "full")}
    runs = [
        with_right(
            fake_run(f"{i}", (100, 0.8), label=f"G{i}", budget=0.8, static=(150 + i, 0.8)),
            "selection",
            {"uniform_2": uniform, "static_table": right, **wrong},
        )
        for i, right in enumerate(tables)
    ]
    (at,) = compare_runs(runs).budgets
    assert at.recommended == at.methods[TABLE] == "uniform 2 bit"
    assert at.tied


@pytest.mark.parametrize(
    ("n", "recommended"), [(200, "uniform 2 bit"), (20_000, f"{TABLE} at 0.8 %")]
)
def test_more_images_separate_table_and_uniform(n, recommended):
    """The table is correct on 1.5 % more of the images and wrong on 0.5 % more: one point."""
    image = torch.arange(n)
    uniform = image % 100 >= 6
    table = torch.where(image % 200 < 3, True, torch.where(image % 200 == 199, False, uniform))
    assert 0.9 < 100 * float(table.double().mean() - uniform.double().mean()) < 1.1
    run = fake_run("a", (100, 0.8), budget=0.8)
    wrong = {key: torch.zeros(n) for key in ("gate", "cascade", "uniform_0", "full")}
    right = {"uniform_2": uniform, "static_table": table}
    (at,) = compare_runs([with_right(run, "selection", {**wrong, **right})]).budgets
    assert at.recommended == recommended
    assert at.tied == ((f"{TABLE} at 0.8 %",) if n == 200 else ())
    won, lost = int((table & ~uniform).sum()), int((uniform & ~table).sum())
    assert (mcnemar(won, lost) < 0.05) == (n > 200)


def test_tied_table_with_fewer_bits_is_recommended():
    runs = [
        fake_run("a", (150, 0.8), label="A", budget=0.8, static=(170, 0.8), cascade=(172, 0.8)),
        fake_run("b", (175, 0.8), label="B", budget=0.8, static=(171, 0.79), cascade=(172, 0.8)),
    ]
    summary = runs[0].summary
    methods = [
        replace(m, table=(2, 8, 32) if m.key == "static_table" else m.table)
        for m in summary.methods
    ]
    runs[0] = replace(runs[0], summary=replace(summary, methods=tuple(methods)))
    comparison = compare_runs(runs)
    (at,) = comparison.budgets
    assert at.recommended == f"{TABLE} at 0.79 %"
    assert set(at.tied) == {f"{TABLE} at 0.8 %", "cascade at 0.8 %", "B"}
    complexity = {point.label: point.complexity for point in comparison.points}
    assert complexity[f"{TABLE} at 0.8 %"] == 3
    assert complexity[f"{TABLE} at 0.79 %"] == 2


def test_gate_of_one_table_is_as_simple_as_the_table():
    run = fake_run("a", (150, 0.8), label="Static", budget=0.8)
    gate = replace(run.summary.methods[0], patterns=1.0)
    histogram = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0))
    summary = replace(run.summary, methods=(gate, *run.summary.methods[1:]), histogram=histogram)
    (point, *_) = compare_runs([replace(run, summary=summary)]).points
    assert (point.kind, point.complexity) == ("gate", 2)


@st.composite
def any_runs(draw):
    """Two kinds of gates of three seeds each, with baselines, right on random images."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    levels = {key: draw(st.sampled_from((0.7, 0.75, 0.8))) for key in ("A", "B", "static_table")}
    levels |= {"cascade": draw(st.sampled_from((0.4, 0.8))), "uniform_2": 0.75}
    levels |= {"uniform_0": 0.1, "full": 0.9}
    base = torch.rand(200, generator=generator)
    cost = draw(st.sampled_from((0.47, 0.48, 0.8)))  # uniform 2 bit costs 0.5
    budget = draw(st.sampled_from((None, 0.8)))

    def right(level):
        return base + 0.15 * torch.rand(200, generator=generator) < level

    runs = []
    shared = {split: right(levels["uniform_2"]) for split in ("reported", "selection")}
    for label in "AB":
        for seed in range(3):
            run = fake_run(
                f"{label}{seed}",
                (0, cost),
                label=label,
                seed=seed,
                static=(0, cost),
                cascade=(0, cost),
                **({} if budget is None else {"budget": budget}),
            )
            for split, uniform in shared.items():
                drawn = {key: right(levels[label if key == "gate" else key]) for key in KEYS}
                run = with_right(run, split, {**drawn, "uniform_2": uniform})
            runs.append(run)
    return runs


KEYS = ("gate", "static_table", "cascade", "full", "uniform_0")


def differs(first, second):
    """Return whether two methods differ significantly at 99 %."""
    return mcnemar(int((first > second).sum()), int((second > first).sum())) < 0.01


@settings(max_examples=40, deadline=None)
@given(any_runs())
def test_marks_follow_from_the_rows(runs):
    comparison = compare_runs(runs)
    assert len(comparison.verdict) <= 5
    for gate in (point for point in comparison.points if point.kind == "gate"):
        assert not set(gate.better_than) & set(gate.tied)
        group = [run for run in runs if run.path in gate.runs]
        ours = torch.stack([run.reported["gate"].correct for run in group]).mean(0)
        for key in gate.better_than:
            gain = gate.gains[key]
            assert gain.mean > 2 * gain.deviation
            for other in [key, *(["uniform_2"] if gate.computation.mean * 1.05 >= 0.5 else [])]:
                theirs = torch.stack([r.reported[other].correct for r in group]).mean(0)
                assert paired_difference(ours, theirs).low > 0
    # No cheaper point is better on val, and tied points are named.
    points = {p.label: p for p in (*comparison.points, *comparison.references)}
    correct = {
        p.label: next(r for r in runs if r.path == p.runs[0]).selection[p.kind].correct
        for p in points.values()
        if p.kind != "gate"
    }
    for at in comparison.budgets:
        assert at.recommended is not None
        assert at.recommended not in at.tied
        for first, second in itertools.combinations({at.recommended, *at.tied} & set(correct), 2):
            assert not differs(correct[first], correct[second])
        best = points[at.recommended].complexity
        assert all(best <= points[other].complexity for other in at.tied)


def test_run_at_many_budgets_counts_one_training():
    runs = [
        replace(fake_run("r", (140, budget), budget=budget), seconds=60.0) for budget in (0.6, 1.2)
    ]
    runs.append(replace(fake_run("s", (140, 0.6), budget=0.6, seed=1), seconds=None))
    (cost,) = compare_runs(runs).trainings
    assert (cost.label, cost.trainings, cost.images, cost.seconds) == ("PPO", 2, 2000, None)
    (known,) = compare_runs(runs[:2]).trainings
    assert (known.trainings, known.images, known.seconds) == (1, 1000, 60.0)
