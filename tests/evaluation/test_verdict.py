from dataclasses import replace

import pytest

from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.metrics import PairedDifference
from dfs_rl.evaluation.verdict import (
    Comparison,
    beyond_marginals,
    budget_sentences,
    comparison_outcome,
    counted_wins,
    verdict_sentences,
)
from tests.helpers.fake_runs import fake_run

UP, FLAT, ZERO, DOWN = (
    PairedDifference(2.0, 1.0, 3.0),
    PairedDifference(0.5, -0.5, 1.5),
    PairedDifference(0.0, -1.0, 1.0),
    PairedDifference(-2.0, -3.0, -1.0),
)
SEARCHED = ("static_table", "cascade", "exits")


def comparison(key, difference, ratio=1.0, role="matched"):
    return Comparison(
        key=key,
        label=key.replace("_", " "),
        role=role,
        difference=difference.difference,
        low=difference.low,
        high=difference.high,
        relative_computation=ratio,
        outcome=comparison_outcome(difference, ratio),
    )


def sentences_of(*comparisons, patterns=40.0, **figures):
    return verdict_sentences(
        comparisons, accuracy=85.0, computation=1.251, patterns=patterns, **figures
    )


def wins(*comparisons):
    return [c.key for c in counted_wins(comparisons)]


@pytest.mark.parametrize(
    ("difference", "ratio", "expected"),
    [
        (UP, 0.5, "better"),
        (UP, 1.04, "better"),
        (UP, 1.2, "better_at_higher_cost"),
        (UP, None, "better_at_higher_cost"),  # the baseline costs nothing
        (FLAT, 0.01, "tied"),
        (FLAT, 3.0, "tied"),
        (DOWN, 0.5, "worse_at_lower_cost"),
        (DOWN, 0.97, "worse"),
        (DOWN, 2.0, "worse"),
    ],
)
def test_outcome_weighs_accuracy_with_cost(difference, ratio, expected):
    assert comparison_outcome(difference, ratio) == expected


@pytest.mark.parametrize(
    ("mode", "random", "patterns", "expected"),
    [
        (UP, UP, UP, True),
        (DOWN, UP, UP, False),
        (UP, FLAT, UP, False),
        # A coin that picks one of two good tables beats its mode table and its marginals, but not
        # its own patterns on other images.
        (UP, UP, ZERO, False),
    ],
)
def test_gate_adapts_only_beyond_its_marginals(mode, random, patterns, expected):
    keys = ("mode_table", "random", "patterns")
    found = [comparison(k, d) for k, d in zip(keys, (mode, random, patterns), strict=True)]
    assert beyond_marginals([comparison("static_table", DOWN), *found]) is expected


def test_no_marginals_no_statement():
    uniform = comparison("uniform_4", DOWN, 0.5, "fixed")
    assert beyond_marginals([uniform]) is None
    assert sentences_of(uniform) == ()


def test_searched_wins_must_beat_uniform_bits():
    searched = [comparison(key, UP) for key in SEARCHED]
    for uniform, ratio in ((FLAT, 1.02), (ZERO, 1.02), (DOWN, 1.02), (DOWN, 0.96), (DOWN, None)):
        assert wins(comparison("uniform_3", uniform, ratio, "fixed"), *searched) == []
    # More than 5 % more expensive than the gate, or beaten.
    for uniform, ratio in ((DOWN, 0.95), (UP, 1.6), (UP, None)):
        assert wins(comparison("uniform_3", uniform, ratio, "fixed"), *searched) == list(SEARCHED)
    assert wins(comparison("mode_table", UP, 1.3), comparison("random", UP)) == ["random"]


def test_sentences_have_accuracy_wins_and_adaptation():
    full = comparison("full", DOWN, 0.0124, "fixed")
    reached, won, adapts = sentences_of(
        full, comparison("static_table", UP), comparison("random", FLAT)
    )
    assert reached == (
        "The gate has 85.00 % accuracy, -2.00 points from full precision, at 1.25 % computation."
    )
    assert won.endswith("static table.")
    assert adapts.endswith("random.")


def test_what_beats_the_gate_comes_before_what_it_beats():
    *_, lost, won = sentences_of(
        comparison("full", DOWN, 0.01, "fixed"),  # costs more
        comparison("uniform_4", FLAT._replace(difference=-0.5), 1.02, "fixed"),
        comparison("cascade", DOWN, 0.96),
        comparison("static_table", UP),
        comparison("random", DOWN),  # nobody deploys it
        comparison("oracle", DOWN, 2.0, "oracle"),
        patterns=1.0,
    )
    assert lost.endswith("at up to 5 % more computation: uniform 4; cascade (significantly).")
    assert won.endswith("none of its baselines.")  # uniform 4 is as good


def test_a_comparison_names_the_gates_that_are_worse():
    compared = compare_runs([fake_run("a", (150, 0.9), label="A", static=(150, 0.88))])
    assert "Gates significantly worse than their static bit table (none), cascade (A)." in (
        compared.verdict
    )


def test_a_budget_is_exceeded_by_more_than_the_tolerance():
    in_words = "{:g} %".format
    assert budget_sentences(1.05, 1.0, in_words) == budget_sentences(9.0, None, in_words) == ()
    (sentence,) = budget_sentences(1.06, 1.0, in_words)
    assert "1.06 %" in sentence
    assert "budget of 1 %" in sentence


def test_marginals_of_a_static_table_are_no_wins():
    found = [comparison("static_table", FLAT), comparison("random", UP)]
    static, won = sentences_of(*found, patterns=1.0)
    assert "static bit table" in static
    assert won.endswith("none of its baselines.")


def test_faster_baselines_that_are_as_accurate_are_named():
    made = [
        replace(comparison(key, difference, role=role), relative_milliseconds=ratio)
        for key, difference, role, ratio in (
            ("full", FLAT, "fixed", 0.45),
            ("uniform_8", ZERO, "fixed", 1.2),
            ("uniform_4", UP, "fixed", 1.2),  # the gate is better
            ("static_table", DOWN, "matched", 1.04),  # about as fast
            ("cascade", DOWN, "matched", 1.06),
            ("random", FLAT, "matched", 2.0),  # nobody deploys it
            ("oracle", DOWN, "oracle", 2.0),
        )
    ]
    *_, sentence = sentences_of(*made, milliseconds=0.512)
    assert sentence == (
        "Its measured time is 0.512 ms per image, 45 % of that of full precision. Baselines over "
        "5 % faster that are not significantly less accurate: uniform 8; cascade."
    )
    assert not any("measured" in text for text in sentences_of(*made))


def test_costs_are_named_by_their_model():
    full = comparison("full", FLAT, 0.5, role="fixed")
    first, second = sentences_of(full, comparison("cascade", UP), cost_model="macs")
    assert first.endswith("at 1.25 % macs.")
    assert second == "It is significantly better at up to 5 % more macs than: cascade."


def test_a_recommendation_names_the_cheapest_of_tied_methods():
    runs = [
        fake_run("a", (180, 0.9), label="Dear", static=(180, 0.85)),
        fake_run("b", (180, 0.6), label="Cheap"),
    ]
    recommended = compare_runs(runs).verdict[0]
    (found,) = (text for text in recommended.split("; from ") if text.startswith("0.85 %"))
    assert found == (
        "0.85 % computation: best static table at 0.85 % (90.00 % at 0.85 % computation; of 2 "
        "tied, Cheap costs least, 0.6 % computation)"
    )
