import itertools
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from dfs_rl.backbones import default_digits
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.envs.registration import NETWORK_WIDE_ID
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.planted_table import (
    BEST_ACCURACY,
    BEST_TABLE,
    BUDGET,
    TableBackbone,
    table_images,
)
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone
from tests.helpers.toy_env import toy_image_set


def planted(**changes):
    return NetworkWideEnv(backbone=TableBackbone(), dataset=table_images(), **changes)


def play(env, actions):
    """The transitions of one episode."""
    env.reset()
    return [env.step(np.int64(a)) for a in actions]


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_passes_both_checkers_without_a_warning(budget):
    env = gymnasium.make(
        NETWORK_WIDE_ID, backbone=TableBackbone(), dataset=table_images(), budget=budget
    )
    check_env(env.unwrapped)
    check_env_sb3(env)


def test_the_continuous_form_passes_both_checkers():
    env = gymnasium.make(NETWORK_WIDE_ID, images=20, budget=BUDGET, continuous=True)
    check_env(env.unwrapped)
    # Stable-Baselines3 likes [-1, 1] best; its off-policy learners rescale by themselves.
    with pytest.warns(UserWarning, match="symmetric and normalized"):
        check_env_sb3(env)


def test_made_without_an_import_it_is_the_digits():
    code = (
        "import gymnasium\n"
        f"env = gymnasium.make('dfs_rl:{NETWORK_WIDE_ID}')\n"
        "print(env.observation_space.shape, env.action_space)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(10,) Discrete(6)\n", done.stderr
    env = gymnasium.make(NETWORK_WIDE_ID, images=20)
    env.reset(seed=0)
    for _ in range(len(default_digits().layers)):
        *_, terminated, truncated, info = env.step(5)
    assert terminated
    assert not truncated
    assert info["bits"].tolist() == [32] * len(default_digits().layers)
    assert info["computation"] > 100.0


def test_without_a_budget_it_pays_the_mean_of_what_each_image_would_pay():
    images, actions = toy_image_set(), [1, 0, 3, 2]
    weights = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=3.0)
    single = FractionalSkippingEnv(backbone=ToyBackbone(), dataset=images, reward=weights)
    returns = []
    for index in range(len(images)):
        single.reset(options={"index": index})
        returns.append(sum(single.step(np.int64(a))[1] for a in actions))
    env = NetworkWideEnv(backbone=ToyBackbone(), dataset=images, cost_weight=3.0)
    transitions = play(env, actions)
    assert [t[1] for t in transitions[:3]] == [0, 0, 0]
    assert transitions[-1][1] == pytest.approx(np.mean(returns))
    assert [t[2] for t in transitions] == [False, False, False, True]
    assert [t[4] for t in transitions[:3]] == [{}, {}, {}]


def test_the_last_info_against_an_evaluation_of_the_table():
    images, actions = toy_image_set(), (1, 0, 3, 2)
    info = play(NetworkWideEnv(backbone=ToyBackbone(), dataset=images), actions)[-1][4]
    records = evaluate_static_table(ToyBackbone(), images, actions, name="t")
    shares = sum(m * (BITS[a] / 32) ** 2 for m, a in zip(MACS, actions, strict=True)) / sum(MACS)
    fixed = (160 * (8 / 32) ** 2 + 16) / sum(MACS)
    assert info.pop("options").tolist() == list(actions)
    assert info.pop("bits").tolist() == [BITS[a] for a in actions]
    assert info == pytest.approx(
        {"accuracy": records.accuracy, "computation": 100 * (shares + fixed)}
    )


def test_every_table_of_three_layers_is_lowered_and_paid_as_haq_says():
    env, backbone, images = planted(budget=BUDGET), TableBackbone(), table_images()
    rewards = {}
    for actions in itertools.product(range(4), repeat=3):
        *_, (_, reward, _, _, info) = play(env, actions)
        table = tuple(info["options"].tolist())
        rewards[table] = reward
        assert info["computation"] <= BUDGET + 1e-9
        assert info["accuracy"] == evaluate_static_table(backbone, images, table, name="t").accuracy
        # The dearest table is right for all images, and a tenth of a point is paid for each point.
        assert reward == pytest.approx((info["accuracy"] - 100.0) / 10.0)
    assert max(rewards, key=rewards.__getitem__) == BEST_TABLE
    assert rewards[BEST_TABLE] == pytest.approx((BEST_ACCURACY - 100.0) / 10.0)
    best = play(env, BEST_TABLE)[-1][4]
    assert best["options"].tolist() == list(BEST_TABLE)  # it fits, so it is left as it is


def test_continuous_and_discrete_actions_mean_the_same():
    discrete, continuous = planted(), planted(continuous=True)
    discrete.reset()
    continuous.reset()
    for option, action in zip((0, 3, 2), (0.1, 1.0, 0.6), strict=True):
        a = discrete.step(option)
        b = continuous.step(np.array([action], dtype=np.float32))
        assert a[1:4] == b[1:4]
        np.testing.assert_array_equal(np.delete(a[0], 8), np.delete(b[0], 8))
        assert a[0][8] == pytest.approx(option / 3)
        assert b[0][8] == pytest.approx(action)
    assert a[4]["options"].tolist() == b[4]["options"].tolist() == [0, 3, 2]


def test_a_table_is_run_once_whatever_the_seed():
    backbone = TableBackbone()
    env = NetworkWideEnv(backbone=backbone, dataset=table_images())
    seen = []
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        seen.append([observation, *(env.step(o) for o in (1, 2, 3))])
    assert [t[1] for t in seen[0][1:]] == [t[1] for t in seen[1][1:]]
    assert len(env.scorer.scores) == 1
    cached_scores = env.scorer.cached_scores
    again = NetworkWideEnv(backbone=backbone, dataset=table_images())
    again.scorer.cached_scores.update(cached_scores)
    assert again.scorer.cached_scores == cached_scores


def test_the_batch_is_spread_over_the_split():
    env = planted(images=5)
    assert env.scorer.image_set.images[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 2]
    assert len(planted(images=1000).scorer.image_set) == 20


def test_what_is_not_allowed_is_refused():
    with pytest.raises(ConfigError, match="images is 0; at least 1 is needed"):
        planted(images=0)
    with pytest.raises(ConfigError, match="cost is -1"):
        planted(cost_weight=-1.0)
    toy = {"backbone": ToyBackbone(), "dataset": toy_image_set()}
    with pytest.raises(ConfigError, match=r"budget 0\.1 % is not enough for the cheapest choice"):
        NetworkWideEnv(**toy, budget=0.1)
    exits = ToyBackbone(exits=(1, 3))  # an exit suffices for this budget, but no table uses one
    with pytest.raises(ConfigError, match="no static bit table without an exit costs less"):
        NetworkWideEnv(backbone=exits, dataset=toy_image_set(), budget=2.0)
    env = planted()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(gymnasium.error.InvalidAction, match="action 4 is not allowed"):
        env.step(4)
    env = planted(continuous=True)
    env.reset()
    with pytest.raises(gymnasium.error.InvalidAction):
        env.step(np.array([1.5], dtype=np.float32))
