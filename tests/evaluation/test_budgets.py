"""What each method does at a budget, and which one to ship there."""

from dataclasses import replace

from dfs_rl.evaluation.comparison import compare_runs
from tests.evaluation.made_up import made_up_run, outcome


def at_two_budgets():
    """A gate for two budgets, another one for the lower alone, and one whose price happens to fit."""
    return [
        made_up_run("low", (140, 0.61), label="A", budget=0.6, cascade=(150, 0.65)),
        made_up_run("high", (170, 1.1), label="A", budget=1.2, cascade=(165, 1.19)),
        made_up_run(
            "only",
            (145, 0.6),
            label="B",
            budget=0.6,
            static=(130, 0.59),
            selection={"gate": (152, 0.62), "cascade": (160, 0.64)},
        ),
        made_up_run("price", (160, 0.9), label="C", cost_weight=4.0),
    ]


def test_what_there_is_at_each_budget_is_chosen_on_val():
    comparison = compare_runs(at_two_budgets())
    low, high = comparison.budgets
    assert (low.budget, high.budget) == (0.6, 1.2)
    # The cascades at 0.64 and 0.65 % on val cost more than 5 % too much, B's 0.62 % do not.
    assert low.ship == "B"
    assert low.methods == {
        "A": "A, budget 0.6",
        "B": "B",
        "best static table": "best static table at 0.59 %",
    }
    # A was asked for this budget; nothing else was, so that B and C stand there with what is within it.
    assert high.methods["A"] == high.ship == "A, budget 1.2"
    assert (high.methods["B"], high.methods["C"]) == ("B", "C")
    assert high.methods["confidence cascade"] == "confidence cascade at 1.19 %"
    assert comparison.verdict[0] == (
        "To ship, chosen on val: for about 0.6 %, B (72.50 %); for about 1.2 %, A, budget 1.2 (85.00 %)."
    )


def test_a_hard_budget_is_one_as_well():
    runs = [
        made_up_run(f"{b}", (right, 0.5), label="M", hard_budget=b, cost_weight=0.1)
        for b, right in ((0.6, 150), (1.2, 140))
    ]
    low, high = compare_runs(runs).budgets
    # The one for the higher budget is worse: what stands there is the other one.
    assert low.methods["M"] == high.methods["M"] == "M, hard budget 0.6"


def test_gates_over_their_budget_are_marked():
    runs = [made_up_run("a", (150, 0.64), budget=0.6), made_up_run("b", (170, 1.25), budget=1.2)]
    runs.append(made_up_run("c", (140, 0.65), label="Low", budget=0.6))
    low, high = compare_runs(runs).budgets
    assert low.over == ("PPO, budget 0.6", "Low")
    # There it is well within what is allowed.
    assert high.methods["Low"] == "Low"
    assert high.over == ()


def test_a_gate_that_stands_at_no_budget_has_the_whole_frontier_told():
    runs = [*at_two_budgets(), made_up_run("dear", (180, 3.0), label="D", cost_weight=0.1)]
    comparison = compare_runs(runs)
    assert comparison.budgets == ()
    assert "from 3 % computation on, D (90.00 %)" in comparison.verdict[0]


def test_uniform_settings_are_static_tables_and_nothing_may_be_cheap_enough():
    runs = [
        made_up_run(f"{b}", (100, 0.55), budget=b, static=(110, 0.56), cascade=(110, 0.57))
        for b in (0.3, 0.6)
    ]
    lowest, low = compare_runs(runs).budgets
    assert lowest.methods == {"PPO": "PPO, budget 0.3"}
    assert lowest.ship is None
    assert low.methods["best static table"] == low.ship == "uniform 2 bit"
    assert compare_runs(runs).verdict[0] == (
        "To ship, chosen on val: for about 0.3 %, nothing is as cheap; for about 0.6 %, uniform 2 bit (60.00 %)."
    )


def cotrained_run():
    """A run whose rivals ran on the backbone from before as well."""
    run = made_up_run("other", (110, 0.55), label="Co", budget=0.6, static=(100, 0.58))
    before = [
        replace(m, key="static_table_before")
        for m in run.summary.methods
        if m.key == "static_table"
    ]
    return replace(
        run,
        summary=replace(run.summary, methods=(*run.summary.methods, *before)),
        outcomes=run.outcomes._replace(
            reported={**run.outcomes.reported, "static_table_before": outcome(105, 0.56)},
            selection={**run.outcomes.selection, "static_table_before": outcome(105, 0.56)},
        ),
    )


def test_uniform_settings_belong_to_the_backbone_that_they_ran_on():
    plain = made_up_run("plain", (110, 0.55), budget=0.6, static=(115, 0.56), cascade=(90, 0.57))
    (at,) = compare_runs([plain, cotrained_run()]).budgets
    # The uniform settings are those of the run whose backbone was left alone, and better than its table.
    assert at.methods["best static table"] == at.ship == "uniform 2 bit"
    changed = "best static table on the co-trained backbone"
    assert at.methods[changed] == f"{changed} at 0.58 %"
    # Where all backbones were changed, uniform settings are those of a changed one.
    (alone,) = compare_runs([cotrained_run()]).budgets
    assert alone.methods[changed] == "uniform 2 bit on the co-trained backbone"
    assert alone.methods["best static table"] == "best static table at 0.56 %"


def test_luck_on_the_reported_split_chooses_nothing():
    # Not as good on val, or too dear there.
    lucky = {"gate": (125, 0.6), "cascade": (190, 0.7), "static_table": (126, 0.6)}
    steady = {"gate": (170, 0.6), "cascade": (150, 0.6), "static_table": (150, 0.6)}
    runs = [
        made_up_run(
            "a",
            (190, 0.6),
            label="Lucky",
            cost_weight=4.0,
            static=(180, 0.59),
            cascade=(180, 0.58),
            selection=lucky,
        ),
        made_up_run(
            "b",
            (160, 0.6),
            label="Steady",
            budget=0.6,
            static=(140, 0.57),
            cascade=(140, 0.56),
            selection=steady,
        ),
    ]
    (at,) = compare_runs(runs).budgets
    assert at.ship == "Steady"
    assert at.methods["best static table"] == "best static table at 0.57 %"
    assert at.methods["confidence cascade"] == "confidence cascade at 0.56 %"
