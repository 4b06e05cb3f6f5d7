"""The environment of Stable-Baselines3 equals ``DummyVecEnv``, step for step."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task
from dfs_rl.errors import CheckpointError, ConfigError
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone
from tests.helpers.toy_env import assert_same, random_actions, toy_kwargs

N = 6
EXIT = len(BITS)
AFTER = (1, 3)
with_exits = pytest.mark.parametrize("after", [(), AFTER], ids=["no exits", "exits"])
with_range = pytest.mark.parametrize("cost_weight_range", [None, (1.0, 50.0)])


def make(n=N, *, seed=0, group_size=1, sync_episodes=False, **changes):
    task = make_task(**toy_kwargs(**changes))
    return SB3GatingVecEnv(task, n, seed=seed, group_size=group_size, sync_episodes=sync_episodes)


@with_exits
@with_range
def test_equals_dummy_vec_env(cost_weight_range, after):
    changes = {"cost_weight_range": cost_weight_range, "after": after}
    ours = make(seed=3, **changes)
    theirs = DummyVecEnv([lambda: FractionalSkippingEnv(**toy_kwargs(**changes))] * N)
    theirs.seed(3)
    assert_same(dict(ours.reset()), dict(theirs.reset()))
    assert ours.reset_infos == theirs.reset_infos
    ended = set()
    for actions in random_actions(ours, 25, N):
        observation, rewards, dones, infos = ours.step(actions)
        expected, *other, expected_infos = theirs.step(actions)
        assert_same(dict(observation), dict(expected))
        assert_same([rewards, dones], other)
        masks = np.stack(theirs.env_method("action_masks"))
        np.testing.assert_array_equal(ours.action_masks(), masks)
        for done, info, expected_info in zip(dones, infos, expected_infos, strict=True):
            if done:
                assert info.pop("episode")["l"] == min(info.get("n_layers_run", 4) + 1, 4)
            assert_same(info, expected_info if done else {})
        ended.add(int(dones.sum()))
    assert (len(ended) > 2) == bool(after)


def test_groups_share_image_and_cost_weight():
    env = make(seed=8, group_size=3, cost_weight_range=(1.0, 50.0))
    preferences = env.reset()["context"][:, 3].tolist()
    assert preferences == [preferences[0]] * 3 + [preferences[3]] * 3
    assert preferences[0] != preferences[3]
    single = [FractionalSkippingEnv(**toy_kwargs()) for _ in range(2)]
    expected = [s.reset(seed=8 + j)[1]["index"] for j, s in enumerate(single)]
    for episode in range(5):
        for actions in random_actions(env, len(MACS), N, seed=episode):
            *_, infos = env.step(actions)
        assert [info["index"] for info in infos] == np.repeat(expected, 3).tolist()
        expected = [s.reset()[1]["index"] for s in single]


@pytest.mark.parametrize(("after", "sync_episodes"), [((), False), (AFTER, True), (AFTER, False)])
def test_statistics_are_sums_of_what_was_returned(after, sync_episodes):
    env = make(after=after, sync_episodes=sync_episodes)
    env.reset()
    returns, totals, final = np.zeros(N), [], []
    for actions in random_actions(env, 16, N, seed=9):
        _, rewards, dones, infos = env.step(actions)
        returns += rewards
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], rel=1e-5)
            totals.append(returns[i])
            final.append(infos[i])
            returns[i] = 0.0
    assert env.episodes == len(totals) >= 4 * N
    stats = env.pop_stats()
    assert stats["reward"] == pytest.approx(np.mean(totals), rel=1e-5)
    assert stats["accuracy"] == pytest.approx(np.mean([100 * info["correct"] for info in final]))
    assert stats["computation"] == pytest.approx(np.mean([i["computation"] for i in final]))
    assert set(env.pop_stats().values()) == {0.0}


@with_exits
@with_range
@pytest.mark.parametrize("steps", [0, 2, 3, 4, 11])
def test_restored_state_continues_exactly(steps, cost_weight_range, after):
    changes = {"after": after, "cost_weight_range": cost_weight_range, "sync_episodes": True}
    first, second = make(seed=1, group_size=2, **changes), make(seed=None, group_size=2, **changes)
    actions = random_actions(first, steps + 9, N, seed=7)
    observation = first.reset()
    for row in actions[:steps]:
        observation = first.step(row)[0]
    restored = second.set_state(json.loads(json.dumps(first.get_state())))

    def assert_observed_equally(ours, theirs):
        np.testing.assert_array_equal(ours["layer"], theirs["layer"])
        running = ~first._episodes.ended  # padding shows nothing
        assert_same(*({k: v[running] for k, v in each.items()} for each in (ours, theirs)))

    assert_observed_equally(restored, observation)
    for row in actions[steps:]:
        ours, theirs = second.step(row), first.step(row)
        assert_observed_equally(ours[0], theirs[0])
        assert_same(list(ours[1:3]), list(theirs[1:3]))
        episodes = [[info.get("episode") for info in infos] for infos in (ours[3], theirs[3])]
        assert episodes[0] == episodes[1]


def test_state_of_other_environments():
    env = make(group_size=2)
    env.reset()
    with pytest.raises(CheckpointError, match=r"has 6 environments in 3 groups.* 6 in 2"):
        make(group_size=3).set_state(env.get_state())


def test_changed_backbone_replays_running_episodes():
    changed = ToyBackbone()
    with torch.no_grad():
        for weight in changed.weights:
            weight.fill_(2.0)
    env, reference = make(), make(backbone=changed)
    actions = random_actions(env, 6, N)
    env.reset()
    expected = reference.reset()
    for row in actions[:2]:
        env.step(row)
        expected = reference.step(row)[0]
    assert_same(env.set_backbone(changed), expected)
    for row in actions[2:]:
        assert_same(env.step(row)[:2], reference.step(row)[:2])


# Masks


def test_masks_reach_maskable_algorithms():
    env = make(budget=3.0)
    env.reset()
    assert env.has_attr("action_masks")
    masks = np.stack(env.env_method("action_masks"))
    np.testing.assert_array_equal(masks, env.action_masks())
    assert not masks.all()
    assert env.env_method("action_masks", indices=[1]) == [pytest.approx(masks[1])]
    assert not env.has_attr("no_such_thing")


@settings(max_examples=10)  # every case is one of gating.action_masks
@given(
    budget=st.floats(7.5, 20.0),
    gate_macs=st.sampled_from([0.0, 5.0, 40.0]),
    seed=st.integers(0, 99),
)
def test_masks_allow_exactly_what_fits(budget, gate_macs, seed):
    task = replace(make_task(**toy_kwargs(budget=budget)), gate_macs=gate_macs)
    costs, rng = task.backbone.costs, np.random.default_rng(seed)
    env = SB3GatingVecEnv(task, N, seed=seed)
    env.reset()
    every = torch.cartesian_prod(*(torch.arange(len(BITS)) for _ in MACS))  # [256, layers]
    within = costs.computation(every, gate_macs=gate_macs) <= budget
    chosen = torch.zeros(N, 0, dtype=torch.int64)
    for layer in range(len(MACS)):
        masks = env.action_masks()
        for mask, prefix in zip(masks, chosen, strict=True):
            reachable = every[within & (every[:, :layer] == prefix).all(dim=1), layer]
            assert np.flatnonzero(mask).tolist() == reachable.unique().tolist()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        chosen = torch.cat([chosen, torch.from_numpy(actions)[:, None]], dim=1)
        env.step(actions)
    assert float(costs.computation(chosen, gate_macs=gate_macs).max()) <= budget


@pytest.mark.parametrize("gate_macs", [0.0, 5.0])
def test_masked_exits_stay_within_budget(gate_macs):
    task = replace(make_task(**toy_kwargs(budget=3.6, after=AFTER)), gate_macs=gate_macs)
    env = SB3GatingVecEnv(task, 32, seed=0, sync_episodes=True)
    env.reset()
    rng, ended = np.random.default_rng(0), []
    for _ in range(12):
        masks = env.action_masks()
        infos = env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))[3]
        ended += [info["computation"] for info in infos if "computation" in info]
    assert len(ended) == 3 * 32
    assert max(ended) <= 3.6 - 100 * gate_macs / sum(MACS) + 1e-9


# Padding after exits


def test_synced_episodes_equal_single_ones():
    ours = make(seed=3, sync_episodes=True, after=AFTER)
    single = [FractionalSkippingEnv(**toy_kwargs(after=AFTER)) for _ in range(N)]
    seen = ours.reset()
    for episode in range(5):
        seeds = [3 + i if episode == 0 else None for i in range(N)]
        first = [env.reset(seed=seed)[0] for env, seed in zip(single, seeds, strict=True)]
        assert_same([{k: v[i] for k, v in seen.items()} for i in range(N)], first)
        ended = np.zeros(N, dtype=bool)
        for step, actions in enumerate(random_actions(ours, 4, N, seed=episode)):
            seen, rewards, dones, infos = ours.step(actions)
            for i, env in enumerate(single):
                if ended[i]:
                    assert (rewards[i], dones[i], infos[i]) == (0.0, False, {"padding": True})
                    continue
                observation, reward, ended[i], _, info = env.step(actions[i])
                assert rewards[i] == np.float32(reward)
                assert dones[i] == ended[i]
                if ended[i]:
                    assert infos[i]["computation"] == info["computation"]
                    assert_same(infos[i]["terminal_observation"], observation)
                else:
                    assert_same({k: v[i] for k, v in seen.items()}, observation)
            if step < 3:
                assert seen["layer"].tolist() == [step + 1] * N
    assert ours.episodes == 5 * N


def test_synced_groups_start_at_the_same_image():
    env = make(group_size=3, seed=8, sync_episodes=True, after=AFTER)
    env.reset()
    for actions in random_actions(env, 12, N, seed=5):
        env.step(actions)
        indices = env._episodes.indices
        assert indices.tolist() == np.repeat(indices[::3], 3).tolist()


def test_no_layer_runs_in_padding():
    env = make(sync_episodes=True, after=AFTER)
    env.reset()
    layers = env.task.backbone.layers
    env.step(np.full(N, 1))
    env.step(np.full(N, EXIT))
    for layer in layers:
        layer.seen.clear()
    for _ in range(2):
        observation, rewards, dones, _ = env.step(np.full(N, 3))
        assert not rewards.any()
        assert not dones.any()
    assert not any(layer.seen for layer in layers)
    assert observation["features"].any()  # all have started again
    env.step(np.full(N, 3))
    assert layers[0].seen == [(8, N)]


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [(A2C, {"group_size": 2}), (PPO, {"after": AFTER}), (MaskablePPO, {"after": AFTER})],
)
def test_algorithms_learn_unchanged(algorithm, changes):
    env = make(**changes)
    size = {} if algorithm is A2C else {"batch_size": 24}
    model = algorithm("MultiInputPolicy", env, n_steps=8, seed=0, device="cpu", **size)
    model.learn(6 * 8 * N)
    assert env.episodes >= 6 * 8 * N / 4
    assert len(model.ep_info_buffer) == len(model.ep_success_buffer) > 0
    assert torch.isfinite(model.policy.action_net.weight).all()


# Errors


@pytest.mark.parametrize(("n", "group_size"), [(6, 4), (6, 0), (0, 1)])
def test_groups_must_divide_environments(n, group_size):
    with pytest.raises(ConfigError, match="group_size"):
        make(n, group_size=group_size)


def test_groups_have_one_image():
    env = make(group_size=3)
    env.set_options([{"index": 4}] * 3 + [{"index": 5}] * 3)
    env.reset()
    assert [info["index"] for info in env.reset_infos] == [4, 4, 4, 5, 5, 5]
    env.set_options([{"index": i} for i in range(N)])
    with pytest.raises(ConfigError, match="group_size is 3"):
        env.reset()


def test_groups_with_exits_need_sync_episodes():
    with pytest.raises(ConfigError, match="group_size is 3 on a network with exits"):
        make(group_size=3, after=AFTER)


def test_unsupported_methods():
    env = make()
    with pytest.raises(ConfigError, match="run as one batch"):
        env.set_attr("task", None)
    with pytest.raises(AttributeError, match="action_masks"):
        env.env_method("reset")
