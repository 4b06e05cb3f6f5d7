import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.evaluation.metrics import PairedDifference
from dfs_rl.evaluation.verdict import (
    Comparison,
    beyond_marginals,
    comparison_outcome,
    counted_wins,
    verdict_sentences,
)

UP, FLAT, ZERO, DOWN = (
    PairedDifference(2.0, 1.0, 3.0),
    PairedDifference(0.5, -0.5, 1.5),
    PairedDifference(0.0, -1.0, 1.0),
    PairedDifference(-2.0, -3.0, -1.0),
)
SEARCHED = ("static_table", "cascade", "exits")
KEYS = (*SEARCHED, "mode_table", "random", "patterns")


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


def wins(*comparisons):
    return [c.key for c in counted_wins(comparisons)]


@pytest.mark.parametrize(
    ("difference", "ratio", "expected"),
    [
        (UP, 0.5, "better"),
        (UP, 1.04, "better"),
        (UP, 1.2, "better_at_higher_cost"),
        (UP, None, "better_at_higher_cost"),  # the baseline costs nothing
        (FLAT, 0.01, "tie"),
        (FLAT, 3.0, "tie"),
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
    assert verdict_sentences([uniform], 85.0, 40.0) == ()


def test_searched_wins_must_beat_uniform_bits():
    searched = [comparison(key, UP) for key in SEARCHED]
    for uniform in (FLAT, ZERO, DOWN):
        assert wins(comparison("uniform_3", uniform, 1.02, "fixed"), *searched) == []
    # More expensive than the gate, or beaten.
    for uniform in (
        comparison("uniform_3", DOWN, 0.9, "fixed"),
        comparison("uniform_3", UP, 1.6, "fixed"),
    ):
        assert wins(uniform, *searched) == list(SEARCHED)
    assert wins(comparison("mode_table", UP, 1.3), comparison("random", UP)) == ["random"]


def test_sentences_have_accuracy_wins_and_adaptation():
    full = comparison("full", DOWN, 0.0125, "fixed")
    reached, won, adapts = verdict_sentences(
        [full, comparison("static_table", UP), comparison("random", FLAT)], 85.0, 40.0
    )
    assert "85.00 %" in reached
    assert "-2.00 points" in reached
    assert "1.25 %" in reached
    assert won.endswith("static table.")
    assert adapts.endswith("random.")


def test_marginals_of_a_static_table_are_no_wins():
    found = [comparison("static_table", FLAT), comparison("random", UP)]
    static, won = verdict_sentences(found, 85.0, 1.0)
    assert "static bit table" in static
    assert won.endswith("none of its baselines.")


@st.composite
def rows(draw):
    """Rows of an evaluation: any difference, wide or narrow, at any ratio of costs."""

    def row(key, role):
        middle, margin = draw(st.floats(-5, 5)), draw(st.floats(0.01, 4))
        ratio = draw(st.one_of(st.none(), st.floats(0.3, 3)))
        return comparison(
            key, PairedDifference(middle, middle - margin, middle + margin), ratio, role
        )

    fixed = draw(st.sets(st.sampled_from(["uniform_2", "uniform_3"])))
    matched = draw(st.sets(st.sampled_from(KEYS)))
    return [*(row(key, "fixed") for key in fixed), *(row(key, "matched") for key in matched)]


@given(rows(), st.sampled_from([1.0, 7.0]))
def test_wins_follow_from_the_rows(found, patterns):
    won = counted_wins(found)
    cheap = [
        c
        for c in found
        if c.role == "fixed"
        and (c.relative_computation is None or 1.05 * c.relative_computation >= 1)
    ]
    for row in won:
        assert row.low > 0
        assert row.relative_computation <= 1.05
        assert row.key not in SEARCHED or all(c.low > 0 for c in cheap)
    for row in found:
        if row.role == "matched" and row.outcome == "better" and row not in won:
            assert any(c.low <= 0 for c in cheap)
    assert len(verdict_sentences(found, 85.0, patterns)) <= 3
