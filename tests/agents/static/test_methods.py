"""Learning on a planted network whose best table is known and which no untrained policy solves."""

from itertools import pairwise
from pkgutil import resolve_name

import numpy as np
import pytest
from stable_baselines3 import DDPG, PPO, SAC, TD3

from dfs_rl.agents.static.haq import WARM_UP, DecayingNoise, build_learner
from dfs_rl.agents.static.methods import STATIC_METHODS
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from tests.helpers.planted_table import (
    BEST_ACCURACY,
    BEST_TABLE,
    BUDGET,
    UNIFORM_ACCURACY,
    TableBackbone,
    table_images,
)

SEARCHES = ("greedy", "search")  # without episodes
ALGORITHMS = {"ddpg": (DDPG, 100), "td3": (TD3, 100), "sac": (SAC, 60), "ppo": (PPO, 160)}


def make_env(method):
    return NetworkWideEnv(
        backbone=TableBackbone(),
        dataset=table_images(),
        budget=BUDGET,
        continuous=STATIC_METHODS[method].continuous,
    )


def find(method):
    return resolve_name(STATIC_METHODS[method].find)


def greedy_table(model, method):
    """Return the table of a policy without noise, and its accuracy."""
    env = make_env(method)
    observation, _ = env.reset()
    terminated = False
    while not terminated:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, _, info = env.step(action)
    return tuple(info["options"].tolist()), info["accuracy"]


@pytest.mark.parametrize("method", ALGORITHMS)
def test_learner_finds_the_best_table(method):
    algorithm, episodes = ALGORITHMS[method]
    learner = build_learner(algorithm, make_env(method), seed=0)
    assert greedy_table(learner, method) == ((1, 1, 1), UNIFORM_ACCURACY)
    learner.learn(episodes * 3)
    assert greedy_table(learner, method) == (BEST_TABLE, BEST_ACCURACY)


@pytest.mark.parametrize("method", STATIC_METHODS)
def test_tables_are_reported_until_stopped(method):
    found = []

    def on_table(evaluated):
        found.append(evaluated)
        return len(found) < 3

    env = make_env(method)
    find(method)(env, 50, 0, on_table)
    assert len(found) == 3
    for one in found:
        assert one.accuracy == env.scorer.accuracy(one.table)
        if method in SEARCHES:
            assert one.reward is None
        else:
            assert one.reward == pytest.approx((one.accuracy - 100.0) / 10.0)
        if method != "greedy":
            assert one.computation <= BUDGET + 1e-9
    each = 1 if method == "greedy" else 3
    assert [b.timesteps - a.timesteps for a, b in pairwise(found)] == [each] * 2


@pytest.mark.parametrize("tables", [30, 64])  # of 64 in all
def test_local_search_finds_the_best_table(tables):
    found, env = [], make_env("search")
    find("search")(env, tables, 0, lambda one: found.append(one) or True)
    assert max(found, key=lambda one: one.accuracy)[1:3] == (BEST_TABLE, BEST_ACCURACY)
    assert len(found) == len({one.table for one in found}) <= tables
    assert (0, 0, 1) in env.scorer.scores  # it skips what no image needs at 8 bit


@pytest.mark.parametrize("method", ["td3", "sac", "ppo"])
def test_seed_determines_the_tables(method):
    runs = [[], [], []]
    for seed, found in zip((5, 5, 6), runs, strict=True):
        find(method)(make_env(method), 25, seed, lambda table, to=found: not to.append(table))
    assert len(runs[0]) == 25
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_noise_decays_after_the_warm_up():
    np.random.seed(0)  # noqa: NPY002 - Stable-Baselines3 draws from it
    noise = DecayingNoise()
    deviations = []
    for _ in range(2):
        deviations.append(np.std([noise() for _ in range(4000)]))
        for _ in range(WARM_UP + 50):
            noise.reset()
    # Actions in [-1, 1] are twice as wide as [0, 1]; 4000 draws measure to 3 %.
    assert deviations[0] == pytest.approx(2 * 0.5, rel=0.05)
    assert deviations[1] == pytest.approx(2 * 0.5 * 0.99**50, rel=0.05)
