"""Learning on a planted network whose best table is known."""

from itertools import pairwise

import numpy as np
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.agents.static.haq import WARM_UP, DecayingNoise, build_learner
from dfs_rl.agents.static.methods import STATIC_METHODS
from dfs_rl.agents.static.tried import EvaluatedTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from tests.helpers.planted_table import (
    BEST_ACCURACY,
    BEST_TABLE,
    BUDGET,
    UNIFORM_ACCURACY,
    TableBackbone,
    table_images,
)

EPISODES = {"ddpg": 120, "td3": 120, "sac": 60, "ppo": 240}


def make_env(method: StaticMethod) -> NetworkWideEnv:
    return NetworkWideEnv(
        backbone=TableBackbone(),
        dataset=table_images(),
        budget=BUDGET,
        continuous=STATIC_METHODS[method].continuous,
    )


def table_of(model: BaseAlgorithm, method: StaticMethod) -> tuple[tuple[int, ...], float]:
    """Return the table of a policy without noise, and its accuracy."""
    env = make_env(method)
    observation, _ = env.reset()
    terminated = False
    while not terminated:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, _, info = env.step(action)
    return tuple(info["options"].tolist()), info["accuracy"]


@pytest.mark.parametrize("method", EPISODES)
def test_learners_find_the_best_table(
    method: StaticMethod,
) -> None:
    untrained = build_learner(method, make_env(method), seed=0)
    assert table_of(untrained, method) == ((1, 1, 1), UNIFORM_ACCURACY)
    learner = build_learner(method, make_env(method), seed=0)
    learner.learn(EPISODES[method] * 3)
    assert table_of(learner, method) == (BEST_TABLE, BEST_ACCURACY)


@pytest.mark.parametrize("method", STATIC_METHODS)
def test_tables_are_reported_until_a_stop(method: StaticMethod) -> None:
    tried: list[EvaluatedTable] = []

    def on_table(one: EvaluatedTable) -> bool:
        tried.append(one)
        return len(tried) < 3

    env = make_env(method)
    STATIC_METHODS[method].find(env, 50, 0, on_table)
    assert len(tried) == 3
    for one in tried:
        assert one.accuracy == env.scorer.accuracy(one.table)
        if method == "greedy":
            assert one.reward is None
        else:
            assert one.reward == pytest.approx((one.accuracy - 100.0) / 10.0)
            assert one.computation <= BUDGET + 1e-9
    each = 1 if method == "greedy" else 3
    assert [b.timesteps - a.timesteps for a, b in pairwise(tried)] == [each] * 2


@pytest.mark.parametrize("method", ["td3", "sac", "ppo"])
def test_search_repeats_with_its_seed(
    method: StaticMethod,
) -> None:
    runs = []
    for seed in (5, 5, 6):
        tried: list[EvaluatedTable] = []
        STATIC_METHODS[method].find(
            make_env(method), 25, seed, lambda t, to=tried: not to.append(t)
        )
        runs.append(tried)
    assert len(runs[0]) == 25
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_noise_decays_after_the_warm_up() -> None:
    np.random.seed(0)  # noqa: NPY002 - Stable-Baselines3 draws from it
    noise = DecayingNoise()
    spreads = []
    for _ in range(2):
        spreads.append(np.std([noise() for _ in range(4000)]))
        for _ in range(WARM_UP + 50):
            noise.reset()
    # Of an action in [-1, 1], twice as long as [0, 1]; 4000 draws give the spread to 3 %.
    assert spreads[0] == pytest.approx(2 * 0.5, rel=0.05)
    assert spreads[1] == pytest.approx(2 * 0.5 * 0.99**50, rel=0.05)
