"""The network-wide environment against evaluations of tables and HAQ."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from dfs_rl.backbones import default_digits
from dfs_rl.envs import NETWORK_WIDE_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.network_wide_env import (
    NetworkWideEnv,
    layer_descriptors,
    observe_layer,
    round_to_option,
)
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
def test_passes_checkers(budget):
    env = gymnasium.make(
        NETWORK_WIDE_ID, backbone=TableBackbone(), dataset=table_images(), budget=budget
    )
    check_env(env.unwrapped)
    check_env_sb3(env)


def test_continuous_form_passes_checkers():
    env = gymnasium.make(NETWORK_WIDE_ID, images=20, budget=BUDGET, continuous=True)
    check_env(env.unwrapped)
    # Stable-Baselines3 recommends [-1, 1]; its off-policy learners rescale by themselves.
    with pytest.warns(UserWarning, match="symmetric and normalized"):
        check_env_sb3(env)


def test_default_is_the_digits():
    env = gymnasium.make(f"dfs_rl:{NETWORK_WIDE_ID}", images=20)
    assert (env.observation_space.shape, env.action_space.n) == ((10,), 6)
    env.reset(seed=0)
    for _ in range(len(default_digits().layers)):
        *_, terminated, truncated, info = env.step(5)
    assert terminated
    assert not truncated
    assert info["bits"].tolist() == [32] * len(default_digits().layers)
    assert info["computation"] > 100.0


def test_reward_is_mean_of_single_returns():
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


def test_info_equals_evaluation_of_the_table():
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


def test_every_table_is_lowered_as_by_haq():
    env, backbone, images = planted(budget=BUDGET), TableBackbone(), table_images()
    rewards = {}
    for actions in itertools.product(range(4), repeat=3):
        *_, (_, reward, _, _, info) = play(env, actions)
        table = tuple(info["options"].tolist())
        rewards[table] = reward
        assert info["computation"] <= BUDGET + 1e-9
        assert info["accuracy"] == evaluate_static_table(backbone, images, table, name="t").accuracy
        # The most expensive table is correct for all images; the reward is 0.1 for each point.
        assert reward == pytest.approx((info["accuracy"] - 100.0) / 10.0)
    assert max(rewards, key=rewards.__getitem__) == BEST_TABLE
    assert rewards[BEST_TABLE] == pytest.approx((BEST_ACCURACY - 100.0) / 10.0)
    best = play(env, BEST_TABLE)[-1][4]
    assert best["options"].tolist() == list(BEST_TABLE)  # it fits, so it is left as it is


def test_continuous_equals_discrete():
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


def test_a_table_runs_once_for_all_seeds():
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


def test_images_are_spread_over_the_split():
    env = planted(images=5)
    assert env.scorer.image_set.images[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 2]
    assert len(planted(images=1000).scorer.image_set) == 20


def test_bad_steps_and_settings():
    toy = {"backbone": ToyBackbone(), "dataset": toy_image_set()}
    with pytest.raises(ConfigError, match=r"budget is 0\.1 %, too little for the cheapest choice"):
        NetworkWideEnv(**toy, budget=0.1)
    with pytest.raises(ConfigError, match="cost is -1"):
        planted(cost_weight=-1.0)
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


@pytest.mark.parametrize(
    "keyword", [{"passes": 3}, {"cost_weight_range": (1, 9)}, {"exits": False}, {"reward": {}}]
)
def test_keywords_of_other_episodes_are_refused(keyword):
    (name,) = keyword
    with pytest.raises(ConfigError, match=f"it has no {name}"):
        planted(**keyword)


# Descriptors


def test_descriptors_of_the_toy_network():
    # Layer 2 halves 4 x 4 positions and doubles 2 channels.
    weights = np.array([MACS[0] / 16, MACS[1] / 16, MACS[2] / 4, MACS[3] / 4])
    expected = [
        np.arange(4) / 3,
        np.array([2, 2, 2, 4]) / 4,
        np.array([2, 2, 4, 4]) / 4,
        np.array([16, 16, 16, 4]) / 16,
        np.array([0, 0, 0.75, 0]),
        np.array(MACS) / max(MACS),
        weights / weights.max(),
        np.array([0, 0, 1, 0]),
    ]
    described = layer_descriptors(ToyBackbone())
    np.testing.assert_allclose(described, np.stack(expected, axis=1), rtol=1e-6)


def test_weights_are_those_of_the_convolutions():
    backbone = default_digits()
    counts = np.array([b.conv1.weight.numel() + b.conv2.weight.numel() for b in backbone.layers])
    described = layer_descriptors(backbone.to_inference())
    np.testing.assert_allclose(described[:, 6], counts / counts.max(), rtol=1e-6)
    assert described.min() >= 0
    assert described.max() <= 1


def test_observation_ends_with_action_and_cost():
    fixed = layer_descriptors(ToyBackbone())
    seen = observe_layer(fixed, 2, previous=0.25, spent=(8 / 32) ** 2)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen[:8], fixed[2])
    assert seen[8:] == pytest.approx([0.25, np.log2(9) / np.log2(33)])
    np.testing.assert_array_equal(observe_layer(fixed, 4, previous=0, spent=1)[:8], fixed[3])


@given(st.floats(0, 1), st.integers(1, 12))
def test_continuous_action_is_rounded_as_by_haq(action, n):
    option = round_to_option(action, n)
    assert 0 <= option < n
    # HAQ rounds action * n - 1/2; at the edges between two options either is right.
    assert abs(action * n - 0.5 - option) <= 0.5 + 1e-9
    assert round_to_option((option + 0.5) / n, n) == option
