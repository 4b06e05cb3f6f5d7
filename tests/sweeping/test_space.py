"""What may be searched, and where a searched value goes."""

import copy
import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.space import Domain, decode_value, encode_value, get_setting, with_settings
from dfs_rl.sweeping.spec import SchedulerConfig, SweepFile

NESTED = {"a": 1, "b": {"c": 2, "d": [3, [4, 5]]}, "e": None}


@pytest.mark.parametrize(
    ("given_values", "said"),
    [
        ({}, "nothing is given; give one of uniform, loguniform, "),
        ({"uniform": (0, 1), "choice": (1,)}, "both uniform and choice are given"),
        ({"uniform": (1, 1)}, "uniform runs from 1 to 1; both must be finite, the lower one first"),
        ({"randint": (3, 2)}, "randint runs from 3 to 2"),
        ({"uniform": (0, math.inf)}, "uniform runs from 0 to inf"),
        ({"loguniform": (0, 1)}, "loguniform begins at 0; a logarithmic axis begins above 0"),
        ({"quniform": (0, 1, 2)}, "quniform has steps of 2"),
        ({"quniform": (0, 1, 0)}, "quniform has steps of 0"),
        ({"choice": ()}, "choice is empty; give at least one value"),
        ({"grid": ("a", "b", "a")}, 'grid has "a" twice'),
    ],
)
def test_impossible_domains_are_refused(given_values, said):
    with pytest.raises(ConfigError) as caught:
        Domain(**given_values)
    assert str(caught.value).startswith(said)


def test_true_and_one_are_two_values():
    assert Domain(choice=(True, 1)).samples() == (True, 1)


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        st.lists(st.integers(), max_size=3).map(tuple),
    )
)
def test_a_value_written_as_a_word_comes_back(value):
    back = decode_value(encode_value(value))
    assert back == value
    assert type(back) is type(value)


def test_a_value_goes_where_its_name_leads():
    before = copy.deepcopy(NESTED)
    updated = with_settings(NESTED, {"b.c": 9, "b.d.1.0": 8, "e.f.g": 7, "new": (1, 2)})
    assert updated == {
        "a": 1,
        "b": {"c": 9, "d": [3, [8, 5]]},
        "e": {"f": {"g": 7}},
        "new": [1, 2],
    }
    assert before == NESTED


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.b", "a.b leads through 1, which has no settings of its own"),
        ("b.d.2", "b.d.2 leads to item '2' of a list that has items 0 to 1"),
        ("b.d.x", "b.d.x leads to item 'x' of a list"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        with_settings(NESTED, {name: 1})


@given(
    st.sampled_from(["a", "b.c", "b.d.0", "b.d.1.1", "e"]),
    st.integers(),
)
def test_what_was_placed_is_found(name, value):
    assert get_setting(with_settings(NESTED, {name: value}), name) == value


def test_what_is_not_there_is_not_found():
    with pytest.raises(KeyError):
        get_setting(NESTED, "b.d.7")


@pytest.mark.parametrize(
    "domain",
    [
        Domain(uniform=(0.5, 2)),
        Domain(loguniform=(0.01, 10)),
        Domain(quniform=(1, 2, 0.25)),
        Domain(randint=(1, 3)),
        Domain(choice=("a", 2, None, (1, 2))),
    ],
)
def test_tune_and_optuna_draw_all_of_a_domain_and_nothing_else(domain):
    search = pytest.importorskip("dfs_rl.sweeping.search")
    tuned = search._tune_domain(domain).sample(size=400)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = [study.ask({"x": search.optuna_distribution(domain)}).params["x"] for _ in range(400)]
    for drawn in (tuned, asked):
        if domain.values:
            assert {decode_value(word) for word in drawn} == set(domain.values)
            continue
        low, high = domain.ends
        assert all(low <= value <= high for value in drawn)
        if domain.randint:
            assert set(drawn) == {1, 2, 3}
        elif domain.quniform:
            assert sorted({round(value, 9) for value in drawn}) == [1, 1.25, 1.5, 1.75, 2]
        else:  # evenly spread over its axis: half of the draws lie in the lower half
            middle = math.sqrt(low * high) if domain.loguniform else (low + high) / 2
            assert 0.4 < sum(value < middle for value in drawn) / 400 < 0.6


@pytest.mark.parametrize(
    ("given_values", "steps"),
    [
        ((0.05, 0.95, 0.3), (0.05, 0.35, 0.65, 0.95)),
        ((1, 2, 0.4), (1, 1.4, 1.8)),
        ((0, 0.3, 0.1), (0, 0.1, 0.2, 0.3)),
    ],
)
def test_steps_count_from_the_lower_end(given_values, steps):
    assert Domain(quniform=given_values).steps == pytest.approx(steps)


def test_a_population_stays_within_what_may_be_searched():
    search = pytest.importorskip("dfs_rl.sweeping.search")
    file = SweepFile(
        command="train_agent",
        search={
            "reward.accuracy": Domain(uniform=(0, 1)),
            "algorithm.ent_coef": Domain(loguniform=(0.01, 0.1)),
        },
    )
    changed = {"reward.accuracy": 1.08, "algorithm.ent_coef": 0.008}
    assert search._clipped(file, changed) == {"reward.accuracy": 1.0, "algorithm.ent_coef": 0.01}


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_what_a_scheduler_rounds_stays_within_what_may_be_searched(name):
    search = pytest.importorskip("dfs_rl.sweeping.search")
    file = SweepFile(
        command="train_agent",
        search={"algorithm.learning_rate": Domain(uniform=(0.0001, 0.05))},
        scheduler=SchedulerConfig(name=name),
    )
    scheduler = search.tune_config(file).scheduler
    # The float32 next to 0.0001, which PB2's model gives back.
    rounded = {"algorithm.learning_rate": 9.999999747378752e-05}
    assert scheduler._custom_explore_fn(rounded) == {"algorithm.learning_rate": 0.0001}
