"""Episodes of unequal length: every form of the environment equals the single one, and the single one a plain loop."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task
from dfs_rl.errors import ConfigError
from tests.envs.test_gating_vector_env import assert_same
from tests.envs.test_sb3_vec_env import assert_observations_equal
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone, run_alone_with_exits
from tests.helpers.toy_env import WEIGHTS, toy_image_set, toy_kwargs

N = 6
LEAVE = len(BITS)
AFTER = (1, 3)


def kwargs(**changes):
    return toy_kwargs(backbone=ToyBackbone(exits=AFTER), **changes)


def random_actions(steps, n=N, seed=0):
    return np.random.default_rng(seed).integers(LEAVE + 1, size=(steps, n))


@pytest.mark.parametrize("index", range(8))
def test_the_single_environment_pays_what_a_plain_loop_does(index):
    env = FractionalSkippingEnv(**kwargs())
    images = toy_image_set()
    actions = np.random.default_rng(index).integers(LEAVE + 1, size=4)
    alone = run_alone_with_exits(ToyBackbone(exits=AFTER), images.images[index], actions.tolist())
    n_layers_run = sum(option < LEAVE for option in alone.options)
    env.reset(options={"index": index})
    total, steps, terminated = 0.0, 0, False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(actions[steps])
        assert env.observation_space.contains(observation)
        total, steps = total + reward, steps + 1
        assert not truncated
    assert steps == min(n_layers_run + 1, 4)
    assert info["n_layers_run"] == n_layers_run
    assert info["bits"].tolist() == [BITS[o] if o < LEAVE else 0 for o in alone.options]
    assert info["prediction"] == int(alone.logits.argmax())
    assert info["computation"] == pytest.approx(alone.macs / 10)
    label = int(images.labels[index])
    likelihood = float(alone.logits.double().log_softmax(0)[label])
    spent = (alone.macs - 160 / 16 - 16) / 1000  # a head that does not run is taken off
    by_hand = 0.5 * (info["prediction"] == label) + 0.5 * max(likelihood, -3) / 3
    assert total == pytest.approx(by_hand - WEIGHTS.cost * spent)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))


def test_after_leaving_nothing_is_seen_but_where_it_was():
    env = FractionalSkippingEnv(**kwargs())
    env.reset(seed=0)
    env.step(np.int64(2))
    assert env.action_masks().tolist() == [True] * (LEAVE + 1)
    observation, *_ = env.step(np.int64(LEAVE))
    assert not observation["features"].any()
    assert observation["layer"] == 1
    assert observation["context"][2] == pytest.approx(2 / 3)


def test_to_leave_where_there_is_no_exit_is_the_cheapest_option():
    ours, theirs = (FractionalSkippingEnv(**kwargs()) for _ in range(2))
    ours.reset(seed=4)
    theirs.reset(seed=4)
    assert ours.action_masks().tolist() == [True] * LEAVE + [False]
    assert_same(ours.step(np.int64(LEAVE))[0], theirs.step(np.int64(0))[0])


@pytest.mark.parametrize("prices", [None, (1.0, 50.0)])
@pytest.mark.parametrize("budget", [None, 3.0])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_batch_equals_single_environments_step_for_step(mode, budget, prices):
    settings = kwargs(budget=budget, cost_weight_range=prices)
    ours = FractionalSkippingVectorEnv(N, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: FractionalSkippingEnv(**settings)] * N, autoreset_mode=mode)
    assert ours.action_space == theirs.action_space
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    ended = []
    for actions in random_actions(40, seed=2):
        masks = ours.action_masks()
        if mode is AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(masks, np.stack(theirs.call("action_masks")))
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        ended.append(result[2].sum())
    assert len(set(ended)) > 2  # they do not end together
    assert_same(ours.reset(), theirs.reset())


def test_the_batch_equals_single_environments_without_autoreset():
    ours = FractionalSkippingVectorEnv(N, autoreset_mode="Disabled", **kwargs())
    theirs = SyncVectorEnv(
        [lambda: FractionalSkippingEnv(**kwargs())] * N, autoreset_mode=AutoresetMode.DISABLED
    )
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    some = 0
    for actions in random_actions(30, seed=1):
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        if result[2].any():
            some += not result[2].all()
            with pytest.raises(gymnasium.error.ResetNeeded):
                ours.step(actions)
            mask = result[2]
            assert_same(
                ours.reset(options={"reset_mask": mask.copy()}),
                theirs.reset(options={"reset_mask": mask.copy()}),
            )
    assert some > 3


@pytest.mark.parametrize("settings", [toy_kwargs, kwargs], ids=["no exits", "exits"])
@pytest.mark.parametrize("steps", [1, 3, 4, 5])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episodes_are_truncated_as_by_the_time_limit_of_gymnasium(mode, steps, settings):
    ours = FractionalSkippingVectorEnv(
        N, autoreset_mode=mode, max_episode_steps=steps, **settings()
    )
    theirs = SyncVectorEnv(
        [lambda: TimeLimit(FractionalSkippingEnv(**settings()), steps)] * N, autoreset_mode=mode
    )
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    truncated = 0
    for actions in random_actions(30, seed=2):
        result = ours.step(actions % ours.single_action_space.n)
        assert_same(result, theirs.step(actions % ours.single_action_space.n))
        truncated += result[3].sum()
    assert (truncated > 0) == (steps <= 4)


def test_a_picture_of_a_truncated_episode_shows_no_answer():
    env = FractionalSkippingVectorEnv(
        1, autoreset_mode="Disabled", max_episode_steps=2, render_mode="rgb_array", **toy_kwargs()
    )
    plain = FractionalSkippingVectorEnv(1, render_mode="rgb_array", **toy_kwargs())
    for each in (env, plain):
        each.reset(seed=0)
        for action in (1, 3):
            each.step(np.array([action]))
    np.testing.assert_array_equal(env.render()[0], plain.render()[0])
    env.reset(options={"reset_mask": np.array([True])})


def test_make_vec_takes_the_batched_form_and_statistics_are_kept():
    env = gymnasium.make_vec(ENV_ID, num_envs=3, **kwargs(autoreset_mode="SameStep"))
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    env.step(np.array([1, 1, 1]))
    *_, infos = env.step(np.array([LEAVE, 2, LEAVE]))
    assert infos["episode"]["l"].tolist() == [2, 0, 2]
    assert infos["final_info"]["n_layers_run"].tolist() == [1, 0, 1]


def test_pictures_show_who_has_left():
    env = FractionalSkippingVectorEnv(
        2, autoreset_mode="Disabled", render_mode="rgb_array", **kwargs()
    )
    env.reset(seed=0)
    env.step(np.array([1, 1]))
    env.step(np.array([LEAVE, 2]))
    left, walking = env.render()
    assert left.shape == walking.shape == (360, 640, 3)
    assert not np.array_equal(left, walking)


def make(n=N, *, seed=0, sync_episodes=True, group_size=1, **changes):
    task = make_task(**kwargs(**changes))
    return SB3GatingVecEnv(task, n, seed=seed, group_size=group_size, sync_episodes=sync_episodes)


@pytest.mark.parametrize("prices", [None, (1.0, 50.0)])
def test_equals_dummy_vec_env_step_for_step(prices):
    ours = make(seed=3, sync_episodes=False, cost_weight_range=prices)
    theirs = DummyVecEnv([lambda: FractionalSkippingEnv(**kwargs(cost_weight_range=prices))] * N)
    theirs.seed(3)
    assert_observations_equal(ours.reset(), theirs.reset())
    for actions in random_actions(25):
        observation, rewards, dones, infos = ours.step(actions)
        expected, expected_rewards, expected_dones, expected_infos = theirs.step(actions)
        assert_observations_equal(observation, expected)
        np.testing.assert_array_equal(rewards, expected_rewards)
        np.testing.assert_array_equal(dones, expected_dones)
        np.testing.assert_array_equal(
            ours.action_masks(), np.stack(theirs.env_method("action_masks"))
        )
        for done, info, expected_info in zip(dones, infos, expected_infos, strict=True):
            if not done:
                assert info == {}
                continue
            final, expected_final = (i.pop("terminal_observation") for i in (info, expected_info))
            assert_observations_equal(final, expected_final)
            np.testing.assert_array_equal(info.pop("bits"), expected_info.pop("bits"))
            assert info.pop("episode")["l"] == min(info["n_layers_run"] + 1, 4)
            assert info == expected_info


def test_whole_walks_are_those_of_single_environments_and_rest_when_they_have_left():
    ours = make(seed=3)
    single = [FractionalSkippingEnv(**kwargs()) for _ in range(N)]
    seen = ours.reset()
    for walk in range(5):
        first = [env.reset(seed=3 + i if walk == 0 else None)[0] for i, env in enumerate(single)]
        for i in range(N):
            assert_observations_equal({k: v[i] for k, v in seen.items()}, first[i])
        over = np.zeros(N, dtype=bool)
        for step, actions in enumerate(random_actions(4, seed=walk)):
            seen, rewards, dones, infos = ours.step(actions)
            for i, env in enumerate(single):
                if over[i]:
                    assert rewards[i] == 0.0
                    assert not dones[i]
                    assert infos[i] == {"padding": True}
                    continue
                observation, reward, over[i], _, info = env.step(actions[i])
                assert rewards[i] == np.float32(reward)
                assert dones[i] == over[i]
                if over[i]:
                    assert infos[i]["computation"] == info["computation"]
                    assert_observations_equal(infos[i]["terminal_observation"], observation)
                elif step < 3:
                    assert_observations_equal({k: v[i] for k, v in seen.items()}, observation)
            if step < 3:
                assert seen["layer"].tolist() == [step + 1] * N
    assert ours.pop_stats().episodes == 5 * N


def test_groups_begin_at_the_same_image_together():
    env = make(group_size=3, seed=8)
    env.reset()
    for actions in random_actions(12, seed=5):
        env.step(actions)
        indices = env._batched_episodes.indices
        assert indices.tolist() == np.repeat(indices[::3], 3).tolist()


def test_groups_without_whole_walks_are_refused():
    with pytest.raises(ConfigError, match="group_size is 3 on a network with exits"):
        make(group_size=3, sync_episodes=False)
    env = make(sync_episodes=False)
    env.reset()
    with pytest.raises(ConfigError, match="only with sync_episodes=True"):
        env.get_state()


@pytest.mark.parametrize("prices", [None, (1.0, 50.0)])
@pytest.mark.parametrize("steps", [0, 2, 3, 4, 11])
def test_a_restored_state_goes_on_exactly(steps, prices):
    actions = random_actions(steps + 9, seed=7)
    first = make(seed=1, group_size=2, cost_weight_range=prices)
    observation = first.reset()
    for row in actions[:steps]:
        observation = first.step(row)[0]
    state = json.loads(json.dumps(first.get_state()))
    second = make(seed=None, group_size=2, cost_weight_range=prices)
    restored = second.set_state(state)
    padding = first._batched_episodes.ended
    for key in observation:
        np.testing.assert_array_equal(restored[key][~padding], observation[key][~padding])
    np.testing.assert_array_equal(restored["layer"], observation["layer"])
    for row in actions[steps:]:
        ours, theirs = second.step(row), first.step(row)
        for key in ours[0]:
            awake = ~first._batched_episodes.ended
            np.testing.assert_array_equal(ours[0][key][awake], theirs[0][key][awake])
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])
        episodes = [[i.get("episode") for i in infos] for infos in (ours[3], theirs[3])]
        assert episodes[0] == episodes[1]


def test_nothing_runs_while_all_rest():
    env = make()
    env.reset()
    backbone = env.task.backbone
    env.step(np.full(N, 1))
    env.step(np.full(N, LEAVE))
    for layer in backbone.layers:
        layer.seen.clear()
    for _ in range(2):
        _, rewards, dones, _ = env.step(np.full(N, 3))
        assert not rewards.any()
        assert not dones.any()
    assert not any(layer.seen for layer in backbone.layers)
    env.step(np.full(N, 3))  # all have begun anew
    assert backbone.layers[0].seen == [(8, N)]


@pytest.mark.parametrize("gate_macs", [0.0, 5.0])
def test_masked_walks_keep_to_the_budget(gate_macs):
    task = replace(make_task(**kwargs(budget=3.6)), gate_macs=gate_macs)
    env = SB3GatingVecEnv(task, 32, seed=0, sync_episodes=True)
    env.reset()
    rng, ended = np.random.default_rng(0), []
    for _ in range(12):
        masks = env.action_masks()
        infos = env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))[3]
        ended += [info["computation"] for info in infos if "computation" in info]
    assert len(ended) == 3 * 32
    assert max(ended) <= 3.6 - 100 * gate_macs / sum(MACS) + 1e-9


def test_the_returns_of_statistics_are_those_of_the_walks():
    env = make()
    env.reset()
    totals, shares = [], np.zeros((4, LEAVE + 1))
    returns = np.zeros(N)
    for actions in random_actions(16, seed=9):
        _, rewards, _, infos = env.step(actions)
        returns += rewards
        for i, info in enumerate(infos):
            if "episode" in info:
                assert info["episode"]["r"] == pytest.approx(returns[i], rel=1e-5)
                totals.append(returns[i])
                returns[i] = 0.0
                for layer in range(4):
                    left = layer >= info["n_layers_run"]
                    bits = int(info["bits"][layer])
                    shares[layer, LEAVE if left else BITS.index(bits)] += 1
    stats = env.pop_stats()
    assert stats.mean_return == pytest.approx(np.mean(totals), rel=1e-5)
    np.testing.assert_allclose(stats.option_shares, shares / stats.episodes)


@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO])
def test_algorithms_as_they_are_learn_on_it(algorithm):
    env = make(seed=0, sync_episodes=False)
    model = algorithm("MultiInputPolicy", env, n_steps=8, batch_size=24, seed=0, device="cpu")
    model.learn(6 * 8 * N)
    assert env.pop_stats().episodes > 6 * 8 * N / 4
    assert torch.isfinite(model.policy.action_net.weight).all()
