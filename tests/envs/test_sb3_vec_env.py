import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv

from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task
from dfs_rl.errors import CheckpointError, ConfigError
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone
from tests.helpers.toy_env import toy_kwargs

N = 6


def make(n=N, *, seed=0, group_size=1, **changes):
    return SB3GatingVecEnv(make_task(**toy_kwargs(**changes)), n, seed=seed, group_size=group_size)


def random_actions(steps, n=N, seed=0):
    return np.random.default_rng(seed).integers(len(BITS), size=(steps, n))


def assert_observations_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
        assert ours[key].dtype == theirs[key].dtype


@pytest.mark.parametrize("prices", [None, (1.0, 50.0)])
def test_equals_dummy_vec_env_step_for_step(prices):
    ours = make(seed=3, cost_weight_range=prices)
    theirs = DummyVecEnv(
        [lambda: FractionalSkippingEnv(**toy_kwargs(cost_weight_range=prices))] * N
    )
    theirs.seed(3)
    assert_observations_equal(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    for actions in random_actions(3 * len(MACS)):
        observation, rewards, dones, infos = ours.step(actions)
        expected, expected_rewards, expected_dones, expected_infos = theirs.step(actions)
        assert_observations_equal(observation, expected)
        np.testing.assert_array_equal(rewards, expected_rewards)
        assert rewards.dtype == expected_rewards.dtype
        np.testing.assert_array_equal(dones, expected_dones)
        for info, expected_info in zip(infos, expected_infos, strict=True):
            if not dones[0]:
                assert info == {}
                continue
            final, expected_final = (
                info.pop("terminal_observation"),
                expected_info.pop("terminal_observation"),
            )
            assert_observations_equal(final, expected_final)
            np.testing.assert_array_equal(info.pop("bits"), expected_info.pop("bits"))
            assert info.pop("episode")["l"] == len(MACS)
            assert info == expected_info


def test_groups_share_their_images_and_draw_like_single_environments():
    env = make(seed=8, group_size=3)
    env.reset()
    single = [FractionalSkippingEnv(**toy_kwargs()) for _ in range(2)]
    expected = [s.reset(seed=8 + j)[1]["index"] for j, s in enumerate(single)]
    for _ in range(5):
        for actions in random_actions(len(MACS)):
            *_, infos = env.step(actions)
        assert [info["index"] for info in infos] == np.repeat(expected, 3).tolist()
        expected = [s.reset()[1]["index"] for s in single]


def test_groups_share_their_price_as_well():
    env = make(group_size=3, cost_weight_range=(1.0, 50.0))
    turned = env.reset()["context"][:, 3]
    assert turned[:3].tolist() == [turned[0]] * 3
    assert turned[0] != turned[3]


def test_episode_returns_and_statistics_are_sums_of_what_was_returned():
    env = make()
    env.reset()
    returns, final, chosen = np.zeros(N), [], random_actions(3 * len(MACS))
    totals = []
    for actions in chosen:
        _, rewards, dones, infos = env.step(actions)
        returns += rewards
        if dones[0]:
            assert [info["episode"]["r"] for info in infos] == pytest.approx(
                returns.tolist(), rel=1e-5
            )
            totals.append(returns)
            final += infos
            returns = np.zeros(N)
    stats = env.pop_stats()
    assert stats.episodes == 3 * N
    assert stats.mean_return == pytest.approx(np.mean(totals), rel=1e-5)
    assert stats.accuracy == pytest.approx(np.mean([info["correct"] for info in final]))
    assert stats.computation == pytest.approx(np.mean([info["computation"] for info in final]))
    by_layer = chosen.reshape(3, len(MACS), N).transpose(1, 0, 2).reshape(len(MACS), -1)
    np.testing.assert_allclose(
        stats.option_shares, [np.bincount(row, minlength=4) / (3 * N) for row in by_layer]
    )
    assert env.pop_stats().episodes == 0


@pytest.mark.parametrize("prices", [None, (1.0, 50.0)])
@pytest.mark.parametrize("steps", [0, 2, len(MACS), 2 * len(MACS) + 3])
def test_a_restored_state_goes_on_exactly(steps, prices):
    actions = random_actions(steps + 9)
    first = make(seed=1, group_size=2, cost_weight_range=prices)
    observation = first.reset()
    for row in actions[:steps]:
        observation = first.step(row)[0]
    state = json.loads(json.dumps(first.get_state()))
    second = make(seed=None, group_size=2, cost_weight_range=prices)
    assert_observations_equal(second.set_state(state), observation)
    for row in actions[steps:]:
        ours, theirs = second.step(row), first.step(row)
        assert_observations_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        if ours[2][0]:
            assert [i["episode"]["r"] for i in ours[3]] == [i["episode"]["r"] for i in theirs[3]]


def test_a_state_of_other_environments_is_refused():
    env = make(group_size=2)
    env.reset()
    with pytest.raises(CheckpointError, match="6 in 3 groups"):
        make(group_size=3).set_state(env.get_state())


def test_a_changed_backbone_takes_effect_for_walks_under_way():
    changed = ToyBackbone()
    with torch.no_grad():
        for weight in changed.weights:
            weight.fill_(2.0)
    env, reference = make(), make(backbone=changed)
    actions = random_actions(6)
    env.reset()
    expected = reference.reset()
    for row in actions[:2]:
        env.step(row)
        expected = reference.step(row)[0]
    assert_observations_equal(env.set_backbone(changed), expected)
    for row in actions[2:]:
        ours, theirs = env.step(row), reference.step(row)
        assert_observations_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_masks_reach_maskable_algorithms():
    env = make(budget=3.0)
    env.reset()
    assert env.has_attr("action_masks")
    masks = np.stack(env.env_method("action_masks"))
    np.testing.assert_array_equal(masks, env.action_masks())
    assert not masks.all()
    assert env.env_method("action_masks", indices=[1]) == [pytest.approx(masks[1])]
    assert not env.has_attr("no_such_thing")


@settings(max_examples=40)
@given(
    budget=st.floats(7.5, 20.0),
    gate_macs=st.sampled_from([0.0, 5.0, 40.0]),
    seed=st.integers(0, 99),
)
def test_masked_walks_can_always_be_completed_within_the_budget_and_nothing_else_is_masked(
    budget, gate_macs, seed
):
    task = replace(make_task(**toy_kwargs(budget=budget)), gate_macs=gate_macs)
    costs, rng = task.backbone.costs, np.random.default_rng(seed)
    env = SB3GatingVecEnv(task, N, seed=seed)
    env.reset()
    every = torch.cartesian_prod(*(torch.arange(len(BITS)) for _ in MACS))  # [256, layers]
    within = costs.computation(every, gate_macs=gate_macs) <= budget
    walked = torch.zeros(N, 0, dtype=torch.int64)
    for layer in range(len(MACS)):
        masks = env.action_masks()
        for mask, prefix in zip(masks, walked, strict=True):
            reachable = every[within & (every[:, :layer] == prefix).all(dim=1), layer]
            assert np.flatnonzero(mask).tolist() == reachable.unique().tolist()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        walked = torch.cat([walked, torch.from_numpy(actions)[:, None]], dim=1)
        env.step(actions)
    assert float(costs.computation(walked, gate_macs=gate_macs).max()) <= budget


def test_an_algorithm_as_it_is_learns_on_it():
    env = make(seed=0, group_size=2)
    model = A2C("MultiInputPolicy", env, n_steps=len(MACS), seed=0, device="cpu")
    model.learn(8 * len(MACS) * N)
    assert len(model.ep_info_buffer) > 0
    assert len(model.ep_success_buffer) == 8 * N  # what rollout/success_rate is the mean of
    assert env.pop_stats().episodes == 8 * N


def test_pictures_are_tiled():
    env = SB3GatingVecEnv(make_task(**toy_kwargs()), 2, seed=0, render_mode="rgb_array")
    env.reset()
    assert env.render().shape == (2 * 360, 640, 3)


@pytest.mark.parametrize(("n", "per_group"), [(6, 4), (6, 0), (0, 1)])
def test_groups_must_divide_the_environments(n, per_group):
    with pytest.raises(ConfigError, match="group_size"):
        make(n, group_size=per_group)


def test_misuse_is_refused():
    env = make()
    with pytest.raises(ConfigError, match="run as one batch"):
        env.set_attr("task", None)
    with pytest.raises(AttributeError, match="action_masks"):
        env.env_method("reset")
