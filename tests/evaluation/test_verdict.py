import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.evaluation.metrics import PairedDifference
from dfs_rl.evaluation.verdict import (
    Comparison,
    beyond_marginals,
    comparison_outcome,
    verdict_sentences,
)

UP, FLAT, ZERO, DOWN = (
    PairedDifference(2.0, 1.0, 3.0),
    PairedDifference(0.5, -0.5, 1.5),
    PairedDifference(0.0, -1.0, 1.0),
    PairedDifference(-2.0, -3.0, -1.0),
)


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


@pytest.mark.parametrize(
    ("difference", "ratio", "expected"),
    [
        (UP, 0.5, "better"),
        (UP, 1.04, "better"),
        (UP, 1.2, "better_at_higher_cost"),
        (UP, None, "better_at_higher_cost"),  # the other costs nothing at all
        (FLAT, 0.01, "tie"),
        (FLAT, 3.0, "tie"),
        (DOWN, 0.5, "worse_at_lower_cost"),
        (DOWN, 0.97, "worse"),
        (DOWN, 2.0, "worse"),
    ],
)
def test_outcome_weighs_accuracy_with_cost(difference, ratio, expected):
    assert comparison_outcome(difference, ratio) == expected


def words(*comparisons, accuracy=85.0, patterns=40.0):
    return " ".join(verdict_sentences(comparisons, accuracy, patterns))


def test_a_gate_that_beats_all():
    baselines = [comparison(k, UP) for k in ("static_table", "cascade", "mode_table", "random")]
    full = comparison("full", DOWN, 0.0125, "fixed")
    said = words(full, *baselines)
    assert "reaches 85.00 %, -2.00 points from full precision, with 1.25 % of its" in said
    assert "beats, at 95 %: static table (+2.00); cascade (+2.00); mode table" in said
    assert "does not beat" not in said
    assert "learned which image needs which bits" in said
    assert beyond_marginals(baselines) is True


def baselines(mode, random):
    return [
        comparison("static_table", UP),
        comparison("mode_table", mode),
        comparison("random", random),
    ]


@pytest.mark.parametrize(("mode", "random"), [(DOWN, UP), (UP, DOWN), (FLAT, DOWN), (ZERO, UP)])
def test_a_gate_no_better_than_its_own_marginals_has_learned_nothing(mode, random):
    assert beyond_marginals(baselines(mode, random)) is False
    said = words(*baselines(mode, random))
    assert "has learned nothing beyond its marginals" in said
    assert "learned which image" not in said
    lost = [c.label for c in baselines(mode, random) if c.outcome == "worse"]
    assert ("does not beat: " in said) == bool(lost)
    tied = [c.label for c in baselines(mode, random) if c.outcome == "tie"]
    assert all(f"cannot tell it from: {label}" in said for label in tied)


@pytest.mark.parametrize("patterns", [FLAT, ZERO, DOWN])
def test_a_gate_as_good_on_other_images_has_not_learned_which_image_needs_what(patterns):
    # A coin that picks one of two good tables beats its mode table and its marginals, and sees no image.
    coin = [*baselines(UP, UP), comparison("patterns", patterns)]
    assert beyond_marginals(coin) is False
    assert "has learned which image" not in words(*coin)


def test_a_gate_above_its_own_patterns_has_learned_which_image_needs_what():
    looking = [*baselines(UP, UP), comparison("patterns", UP)]
    assert beyond_marginals(looking) is True
    assert (
        "learned which image needs which bits: it is more accurate than mode table; random; "
        "patterns" in words(*looking)
    )


@pytest.mark.parametrize(("mode", "random"), [(FLAT, UP), (UP, FLAT), (FLAT, FLAT)])
def test_a_gate_that_may_be_better_is_said_to_have_shown_nothing(mode, random):
    assert beyond_marginals(baselines(mode, random)) is False
    said = words(*baselines(mode, random))
    assert "beyond its marginals is not shown by these images" in said
    assert "-0.50 to +1.50 points from" in said
    assert "has learned nothing" not in said
    assert "learned which image" not in said


def test_a_gate_of_one_pattern_is_called_a_static_table():
    said = words(comparison("mode_table", ZERO), comparison("random", ZERO), patterns=1.0)
    # Its marginals are itself, so there is nothing more to say.
    assert said.strip().endswith("It gives every image the same bits: it is a static table.")
    assert "does not beat" not in said


def test_a_win_at_a_higher_cost_is_not_a_win():
    said = words(comparison("mode_table", UP, 1.3), comparison("random", UP))
    assert "at more computation, than: mode table (+2.00 at 1.30 x its computation)" in said
    assert "does not beat" not in said
    assert "beats, at 95 %: random (+2.00)." in said


def test_reference_points_are_no_rivals_and_nothing_is_claimed_without_any():
    uniform = comparison("uniform_4", DOWN, 0.5, "fixed")
    assert words(uniform) == ""
    assert beyond_marginals([uniform]) is None


def test_a_searched_baseline_is_not_beaten_where_a_uniform_setting_within_the_cost_is_not():
    searched = [comparison(key, UP) for key in ("static_table", "cascade", "exits")]
    for uniform in (FLAT, ZERO, DOWN):
        said = words(comparison("uniform_3", uniform, 1.02, "fixed"), *searched)
        assert "beats" not in said
        assert "Nothing is claimed against static table; cascade; exits" in said
    # Dearer than the gate, or beaten.
    for uniform in (comparison("uniform_3", DOWN, 0.9, "fixed"), comparison("uniform_3", UP, 1.6)):
        assert "beats, at 95 %: static table (+2.00); cascade (+2.00); exits" in words(
            uniform, *searched
        )


KEYS = ("static_table", "cascade", "exits", "mode_table", "random", "patterns")


@st.composite
def rows(draw):
    """Rows of an evaluation as they may come: any difference, wide or narrow, at any ratio of costs."""

    def row(key, role):
        middle = draw(st.floats(-5, 5))
        margin = draw(st.floats(0.01, 4))
        ratio = draw(st.one_of(st.none(), st.floats(0.3, 3)))
        return comparison(
            key, PairedDifference(middle, middle - margin, middle + margin), ratio, role
        )

    matched = [row(key, "matched") for key in draw(st.sets(st.sampled_from(KEYS)))]
    fixed = [
        row(key, "fixed") for key in draw(st.sets(st.sampled_from(["uniform_2", "uniform_3"])))
    ]
    return [*fixed, *matched]


@given(rows(), st.sampled_from([1.0, 7.0]))
def test_the_words_follow_from_the_rows(found, patterns):
    by_label = {c.label: c for c in found}
    named = {}
    for sentence in verdict_sentences(found, 85.0, patterns):
        assert "above" not in sentence
        for start in ("At its own cost it beats, at 95 %: ", "These images cannot tell it from: "):
            if sentence.startswith(start):
                listed = sentence.removeprefix(start).removesuffix(".").split("; ")
                named[start[:5]] = [by_label[item.split(" (")[0]] for item in listed]
        assert ("beats" in sentence) == sentence.startswith("At its own cost it beats")
    for row in named.get("At it", []):
        assert row.low > 0
        assert row.relative_computation is not None
        assert row.relative_computation <= 1.05
        if row.key in ("static_table", "cascade", "exits"):
            within = [
                c
                for c in found
                if c.role == "fixed"
                and (c.relative_computation is None or 1.05 * c.relative_computation >= 1)
            ]
            assert all(c.low > 0 for c in within)
    # What cannot be told apart is called so.
    asked = [c for c in found if c.role == "matched" and (patterns > 1 or c.key in KEYS[:3])]
    unsure = [c for c in asked if c.low <= 0 <= c.high]
    assert {c.key for c in unsure} <= {c.key for c in named.get("These", [])}
    assert all(c.outcome == "tie" for c in named.get("These", []))
