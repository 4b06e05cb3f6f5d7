"""Episodes of several passes against a plain loop over one image, and against each other."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import dfs_rl
from dfs_rl.envs import ENV_ID, SB3GatingVecEnv, make_task
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.errors import ConfigError
from dfs_rl.gating.passes import AGAIN, AGAIN_MIRRORED, ANSWER
from tests.helpers.toy_backbone import MACS, ToyBackbone, run_alone_with_exits
from tests.helpers.toy_env import (
    WEIGHTS,
    assert_same,
    assert_steps_equal,
    random_actions,
    toy_image_set,
    toy_kwargs,
)

N, N_LAYERS = 5, len(MACS)
LIMIT = 3
SETTINGS = {"limit": LIMIT, "mirrored": True, "answer": "mean"}
with_exits = pytest.mark.parametrize("after", [(), (1, 3)], ids=["no exits", "exits"])
with_answers = pytest.mark.parametrize("answer", ["mean", "last", "surest"])


def make(after=(), **changes):
    return FractionalSkippingEnv(**toy_kwargs(after=after, passes=SETTINGS | changes))


def test_two_bit_options_run_with_the_three_actions_of_passes():
    kwargs = toy_kwargs(passes=SETTINGS) | {"backbone": ToyBackbone(bits=(0, 32))}
    env, same = FractionalSkippingEnv(**kwargs), FractionalSkippingEnv(**kwargs)
    assert env.action_space.n == 3
    for one in (env, same):
        one.reset(seed=0)
    for action in [2, 1] * N_LAYERS:
        layer = int(env._episodes.observation["layer"][0])
        if layer < N_LAYERS:
            assert env.action_masks().tolist() == [True, True, False]
        # No layer has the third action: it skips.
        ours = env.step(action)
        assert_same(ours, same.step(0 if action == 2 and layer < N_LAYERS else action))
        if ours[2]:
            return


def play(env, rng):
    """Play an episode at random: actions of each pass, views, rewards and the last result."""
    passes, views, rewards, actions = [], [False], [], []
    while True:
        layer = int(env._episodes.observation["layer"][0])
        action = int(rng.integers(env.action_space.n))
        if layer < N_LAYERS:
            actions.append(action)
        observation, reward, done, _, info = env.step(action)
        rewards.append(reward)
        if layer == N_LAYERS and not done:
            views.append(action == AGAIN_MIRRORED)
        if layer < N_LAYERS and (done or observation["layer"] == N_LAYERS):
            passes.append(actions)
            actions = []
        if done:
            return passes, views, rewards, observation, info


@with_exits
@with_answers
def test_episode_equals_a_plain_loop(answer, after):
    env, rng, seen = make(after, answer=answer), np.random.default_rng(0), set()
    backbone, images, costs = env.task.backbone, toy_image_set(), env.task.backbone.costs
    for seed in range(30):
        _, info = env.reset(seed=seed)
        image, label = images.images[info["index"]], int(images.labels[info["index"]])
        passes, views, rewards, observation, last = play(env, rng)
        padded = [actions + [0] * (N_LAYERS - len(actions)) for actions in passes]
        results = [
            run_alone_with_exits(backbone, image.flip(-1) if view else image, actions)
            for actions, view in zip(padded, views, strict=True)
        ]
        probabilities = torch.stack([each.logits.double().softmax(0) for each in results])
        combined = {
            "mean": probabilities.mean(dim=0),
            "last": probabilities[-1],
            "surest": probabilities[int(probabilities.amax(dim=1).argmax())],
        }[answer]
        total = sum(each.macs for each in results) / sum(MACS)
        assert last["n_passes"] == len(results)
        assert last["computation"] == pytest.approx(100 * total)
        assert last["prediction"] == int(combined.argmax())
        assert last["label"] == label
        floor = WEIGHTS.log_likelihood_floor
        likelihood = max(math.log(combined[label]), floor) / -floor
        spent = total - costs.fixed_cost()  # the first pass pays for no fixed parts
        expected = 0.5 * (combined.argmax() == label) + 0.5 * likelihood - WEIGHTS.cost * spent
        assert sum(rewards) == pytest.approx(float(expected), abs=1e-5)
        evidence = observation["context"][-10:]
        top = combined.sort(descending=True).values
        entropy = -(combined * combined.log()).sum() / math.log(len(combined))
        certainty = math.log(max(1 - top[0], 1e-6)) / math.log(1e-6)
        agree = (probabilities.argmax(dim=1) == combined.argmax()).double().mean()
        options = [o if o < 4 else 0 for o in results[-1].options]
        expected = [*top[:3], entropy, certainty, agree, np.mean(options) / 3, views[-1]]
        finished = [len(results) >= 1, len(results) >= 2]
        np.testing.assert_allclose(evidence, np.float32([*expected, *finished]), atol=2e-5)
        seen.add(len(results))
    assert seen == {1, 2, 3}


@with_exits
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_env_equals_single_ones(mode, after):
    kwargs = toy_kwargs(after=after, passes=SETTINGS, cost_weight_range=(1.0, 50.0), budget=60.0)
    ours = FractionalSkippingVectorEnv(N, autoreset_mode=mode, **kwargs)
    theirs = SyncVectorEnv([lambda: FractionalSkippingEnv(**kwargs)] * N, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    assert sum(assert_steps_equal(ours, theirs, random_actions(ours, 60, N, seed=2))) > 2 * N


@with_exits
def test_sb3_env_equals_dummy_vec_env(after):
    kwargs = toy_kwargs(after=after, passes=SETTINGS)
    ours = SB3GatingVecEnv(make_task(**kwargs), N, seed=5)
    theirs = DummyVecEnv([lambda: FractionalSkippingEnv(**kwargs)] * N)
    theirs.seed(5)
    assert_same(ours.reset(), dict(theirs.reset()))
    lengths = np.zeros(N, dtype=int)
    for actions in random_actions(ours, 60, N, seed=3):
        seen, rewards, dones, infos = ours.step(actions)
        seen2, rewards2, dones2, infos2 = theirs.step(actions)
        lengths += 1
        assert_same(seen, dict(seen2))
        np.testing.assert_array_equal(rewards, rewards2)
        np.testing.assert_array_equal(dones, dones2)
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["l"] == lengths[i]
            assert infos[i]["computation"] == infos2[i]["computation"]
            lengths[i] = 0


@with_exits
def test_stored_state_continues_exactly(after):
    kwargs = toy_kwargs(after=after, passes=SETTINGS)
    ours, again = (SB3GatingVecEnv(make_task(**kwargs), N, seed=s) for s in (5, 6))
    ours.reset()
    again.reset()
    actions = random_actions(ours, 40, N, seed=7)
    for step in actions[:17]:
        seen = ours.step(step)[0]
    assert_same(again.set_state(ours.get_state()), seen)
    for step in actions[17:]:
        assert_same(again.step(step), ours.step(step))


def test_masks_at_the_end_of_a_pass():
    env = make(mirrored=False)
    env.reset(seed=0)
    for _ in range(N_LAYERS):
        assert env.action_masks().all()
        env.step(0)
    assert np.flatnonzero(env.action_masks()).tolist() == [ANSWER, AGAIN]
    assert make().task.passes.mirrored
    fixed = 160 / 16 + 16  # a pass of skips
    tight = toy_kwargs(passes=SETTINGS, budget=(2 * fixed - 1) / sum(MACS) * 100)
    env = FractionalSkippingEnv(**tight)
    env.reset(seed=0)
    for _ in range(N_LAYERS):
        env.step(0)
    assert np.flatnonzero(env.action_masks()).tolist() == [ANSWER]


def test_checker_spec_and_learning():
    env = gymnasium.make(f"{dfs_rl.__name__}:{ENV_ID}", passes=SETTINGS)
    check_env(env.unwrapped, skip_render_check=True)
    assert gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    vec = SB3GatingVecEnv(make_task(**toy_kwargs(passes=2)), 6, seed=0)
    PPO("MultiInputPolicy", vec, n_steps=9, batch_size=27, device="cpu", seed=0).learn(200)
    assert vec.episodes > 10


def test_observations_stay_float32_under_another_default():
    settings = toy_kwargs(passes=2)
    torch.set_default_dtype(torch.float64)
    try:
        env = FractionalSkippingEnv(**settings)
        seen = [env.reset(seed=0)[0], *(env.step(action)[0] for action in (1, 2, 0, 3, AGAIN, 1))]
        assert all(env.observation_space.contains(each) for each in seen)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (0, "limit is 0"),
        ("3", "passes is '3'"),
        (True, "passes is True"),
        ({"limit": 2, "view": 1}, "view"),
        ({"limit": 2, "answer": "first"}, "answer"),
    ],
)
def test_bad_passes(passes, message):
    with pytest.raises(ConfigError, match=message):
        make_task(**toy_kwargs(passes=passes))


def test_groups_need_a_single_pass():
    with pytest.raises(ConfigError, match="episodes of 3 passes end at different times"):
        SB3GatingVecEnv(make_task(**toy_kwargs(passes=3)), 6, group_size=3)
