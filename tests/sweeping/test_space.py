"""Domains of searched settings, and dotted names."""

import copy
import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.space import (
    Domain,
    decode_value,
    encode_value,
    get_setting,
    optuna_distribution,
    tune_domain,
    with_settings,
)
from dfs_rl.sweeping.spec import SchedulerConfig, SweepFile
from dfs_rl.sweeping.tuner import tune_config

NESTED = {"a": 1, "b": {"c": 2, "d": [3, [4, 5]]}, "e": None}


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({}, "nothing is given; give one of uniform, loguniform, "),
        ({"uniform": (0, 1), "choice": (1,)}, "uniform and choice is given"),
        ({"uniform": (1, 1)}, "uniform is 1 to 1; give the lower end first"),
        ({"randint": (3, 2)}, "randint is 3 to 2"),
        ({"uniform": (0, math.inf)}, "uniform[1] is inf; it must be finite"),
        ({"loguniform": (0, 1)}, "loguniform[0] is 0; it must be above 0"),
        ({"quniform": (0, 1, 2)}, "quniform has intervals of 2"),
        ({"quniform": (0, 1, 0)}, "quniform[2] is 0; it must be above 0"),
        ({"choice": ()}, "choice is empty; give at least one value"),
        ({"grid": ("a", "b", "a")}, "grid has a twice"),
    ],
)
def test_invalid_domains_are_refused(given_values, message):
    with pytest.raises(ConfigError) as caught:
        Domain(**given_values)
    assert str(caught.value).startswith(message)


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
def test_encoded_values_are_decoded(value):
    back = decode_value(encode_value(value))
    assert back == value
    assert type(back) is type(value)


def test_values_are_set_by_dotted_name():
    before = copy.deepcopy(NESTED)
    values = {"b.c": 9, "b.d.1.0": 8, "e.f.g": 7, "new": [1, 2]}
    updated = with_settings(NESTED, values)
    assert updated == {"a": 1, "b": {"c": 9, "d": [3, [8, 5]]}, "e": {"f": {"g": 7}}, "new": [1, 2]}
    assert before == NESTED
    assert {name: get_setting(updated, name) for name in values} == values


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.b", "a.b leads through 1, which has no settings of its own"),
        ("b.d.2", "b.d.2 leads to item '2' of a list that has items 0 to 1"),
        ("b.d.x", "b.d.x leads to item 'x' of a list"),
    ],
)
def test_names_without_a_place_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        with_settings(NESTED, {name: 1})
    with pytest.raises(ConfigError, match=message):
        get_setting(NESTED, name)


@pytest.mark.parametrize(
    "domain",
    [
        Domain(uniform=(0.5, 2)),
        Domain(loguniform=(0.01, 10)),
        Domain(quniform=(1, 2, 0.25)),
        Domain(randint=(1, 3)),
        Domain(choice=("a", 2, True, 1, None, (1, 2))),
    ],
)
def test_tune_and_optuna_sample_the_domain(domain):
    tuned = tune_domain(domain).sample(size=400)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = [study.ask({"x": optuna_distribution(domain)}).params["x"] for _ in range(400)]
    for drawn in (tuned, asked):
        if domain.values:
            assert set(map(repr, map(decode_value, drawn))) == set(map(repr, domain.values))
            continue
        low, high = domain.ends
        assert all(low <= value <= high for value in drawn)
        if domain.randint:
            assert set(drawn) == {1, 2, 3}
        elif domain.quniform:
            assert sorted({round(value, 9) for value in drawn}) == [1, 1.25, 1.5, 1.75, 2]
        else:  # half of the samples lie in the lower half of the axis
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
def test_steps_start_at_the_lower_end(given_values, steps):
    assert Domain(quniform=given_values).steps == pytest.approx(steps)


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_schedulers_stay_within_the_domain(name):
    file = SweepFile(
        command="train_agent",
        search={"algorithm.learning_rate": Domain(uniform=(0.0001, 0.05))},
        scheduler=SchedulerConfig(name=name),
    )
    explore = tune_config(file).scheduler._custom_explore_fn
    # The float32 next to 0.0001, which PB2's model returns.
    for value, clipped in ((9.999999747378752e-05, 0.0001), (0.06, 0.05), (0.01, 0.01)):
        assert explore({"algorithm.learning_rate": value}) == {"algorithm.learning_rate": clipped}
