"""Results of trials: the best ones, importances, and gains on fresh seeds."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame
from ray.tune import Result

from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.results import best_settings, best_trials, importances, trial_record
from dfs_rl.sweeping.space import Domain
from dfs_rl.sweeping.spec import SweepFile
from dfs_rl.sweeping.trial import FAILED, FULL_PROGRESS, POINTS, PROGRESS
from tests.helpers.fake_sweep import fake_trial, retrained

FILE = SweepFile(
    command="train_agent",
    search={
        "reward.accuracy": Domain(uniform=(0, 1)),
        "algorithm.ent_coef": Domain(loguniform=(0.001, 0.1)),
        "algo": Domain(choice=("ppo", "a2c")),
    },
)
PARETO = SweepFile(
    command="train_gumbel",
    search={"budget": Domain(uniform=(1, 2))},
    objective=ObjectiveConfig(name="pareto_front"),
)


def trial(name, values, *, settings=None, history=(), **changes):
    changes |= {"settings": settings or {}, "history": tuple(history)}
    return replace(fake_trial(1), name=name, values=values, **changes)


def test_best_trial_is_finished():
    trials = [
        trial("001", {"hypervolume": 2.0}),
        trial("002", {"hypervolume": 9.0}, status="stopped"),
        trial("003", {"hypervolume": 3.0}),
    ]
    assert best_trials(trials, FILE) == ("003", "001")


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12)


@given(PAIRS)
def test_best_trials_of_two_objectives_are_optimal(points):
    trials = [
        trial(f"{i:03d}", {"accuracy": float(a), "computation": float(c)})
        for i, (a, c) in enumerate(points)
    ]
    best = best_trials(trials, PARETO)
    for i, (a, c) in enumerate(points):
        dominated = any(x >= a and y <= c and (x > a or y < c) for x, y in points)
        assert (f"{i:03d}" in best) == (not dominated)
    accuracies = [points[int(name)][0] for name in best]
    assert accuracies == sorted(accuracies, reverse=True)


def test_importances_rank_settings_by_their_effect():
    draw = random.Random(0)
    trials = []
    for number in range(40):
        settings = {
            "reward.accuracy": draw.uniform(0, 1),
            "algorithm.ent_coef": 10 ** draw.uniform(-3, -1),
            "algo": draw.choice(["ppo", "a2c"]),
        }
        value = 10 * settings["reward.accuracy"] + 4 * (settings["algo"] == "ppo")
        history = [(0.5, value), (1.0, -value)]
        if number % 2 == 0:  # stopped trials count at the progress that all trials have reached
            ended = {"status": "stopped", "history": history[:1]}
        else:
            ended = {"history": history}
        trials.append(trial(f"{number:03d}", {}, settings=settings, **ended))
    found = importances(trials, FILE)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["algorithm.ent_coef"] < found["algo"] < found["reward.accuracy"]


@pytest.mark.parametrize(
    ("values", "estimated"),
    [([2.0] * 9, False), ([1, 1, 1, 2, 3, 4, 5, 6, 7], False), ([1, 1, 0, 2, 3, 4, 5, 6, 7], True)],
)
def test_importances_need_eight_distinct_values(values, estimated):
    draw = random.Random(0)
    trials = []
    for value in values:
        settings = {"reward.accuracy": draw.random(), "algorithm.ent_coef": 0.01, "algo": "ppo"}
        trials.append(trial("001", {}, settings=settings, history=[(1.0, value)]))
    assert bool(importances(trials, FILE)) == estimated
    assert importances(trials[:2], FILE) == {}


@pytest.mark.parametrize(
    ("accuracy", "status", "values", "history"),
    [(97.0, "finished", {"accuracy": 97.0}, ((1.0, 97.0),)), (-12.5, "failed", {}, ())],
)
def test_trial_above_the_budget_fails(accuracy, status, values, history):
    metrics = {PROGRESS: FULL_PROGRESS, FAILED: "", POINTS: "[[[2.0, 99.0]]]", "time_total_s": 1.0}
    metrics["accuracy"] = accuracy
    result = Result(metrics=metrics, checkpoint=None, error=None, path="")
    result.metrics_dataframe = DataFrame([metrics])
    bounded = replace(FILE, objective=ObjectiveConfig(name="accuracy", budget=1.5))
    found = trial_record("001", result, bounded)
    assert (found.status, found.values, found.history) == (status, values, history)
    assert ("1.5 %" in (found.reason or "")) == (status == "failed")


def test_best_settings_are_those_that_differ():
    values = {"reward.accuracy": 0.25, "algorithm.vf_coef": 0.5, "algo": "a2c"}
    assert best_settings(FILE, values) == {"algo": "a2c", "reward": {"accuracy": 0.25}}


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_gain_is_paired_over_common_seeds(mode, sign):
    trial = replace(retrained("001", {"x": (3.0, 3.2, 9.9)}), seeds=(101, 102, 200))
    gain = trial.gain(retrained("defaults", {"x": (2.0, 2.1, 2.2)}), "x", mode)
    assert gain.mean == pytest.approx(sign * np.mean([1.0, 1.1]))
    assert gain.deviation == pytest.approx(np.std([1.0, 1.1], ddof=1))
    assert retrained("002", {}, failed={101: "killed"}).gain(trial, "x", mode) is None
