"""Flat observations equal what Gymnasium flattens, in every form of the environment."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import flatten, flatten_space
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.errors import ConfigError
from tests.helpers.toy_env import assert_same, assert_steps_equal, random_actions, toy_kwargs

N = 5
TASKS = {
    "plain": {},
    "budget and cost weights": {"budget": 3.0, "cost_weight_range": (1.0, 50.0)},
    "exits": {"after": (1, 3)},
    "passes": {"passes": 2},
}
with_tasks = pytest.mark.parametrize("changes", TASKS.values(), ids=TASKS)


@with_tasks
def test_observations_are_those_of_the_dict_flattened(changes):
    plain = FractionalSkippingEnv(**toy_kwargs(**changes))
    flat = FractionalSkippingEnv(flat=True, **toy_kwargs(**changes))
    space = plain.observation_space
    assert flat.observation_space == flatten_space(space)
    assert flat.action_space == plain.action_space

    def assert_flattened(ours, theirs):
        assert flat.observation_space.contains(ours[0])
        assert_same(ours, (flatten(space, theirs[0]), *theirs[1:]))

    assert_flattened(flat.reset(seed=3), plain.reset(seed=3))
    for (action,) in random_actions(flat, 40, 1, seed=6):
        ours, theirs = flat.step(action), plain.step(action)
        assert_flattened(ours, theirs)
        if ours[2]:
            assert_flattened(flat.reset(), plain.reset())


@with_tasks
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_equals_gymnasiums_over_flat_ones(mode, changes):
    kwargs = toy_kwargs(**changes)
    ours = FractionalSkippingVectorEnv(N, autoreset_mode=mode, flat=True, **kwargs)
    theirs = SyncVectorEnv(
        [lambda: FlattenObservation(FractionalSkippingEnv(**kwargs))] * N, autoreset_mode=mode
    )
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    assert sum(assert_steps_equal(ours, theirs, random_actions(ours, 25, N, seed=2))) > N


def test_later_steps_keep_returned_arrays():
    env = FractionalSkippingVectorEnv(N, flat=True, **toy_kwargs())
    first, _ = env.reset(seed=0)
    kept = first.copy()
    for actions in random_actions(env, 6, N):
        env.step(actions)
    np.testing.assert_array_equal(first, kept)


def test_spec_round_trips_through_json():
    env = gymnasium.make(ENV_ID, flat=True, split="val")
    spec = EnvSpec.from_json(env.spec.to_json())
    assert json.loads(env.spec.to_json())["kwargs"] == {"flat": True, "split": "val"}
    again = gymnasium.make(spec)
    assert_same(again.reset(seed=2), env.reset(seed=2))
    several = gymnasium.make_vec(ENV_ID, num_envs=2, flat=True)
    again = gymnasium.make_vec(EnvSpec.from_json(several.spec.to_json()))
    assert again.observation_space.shape == (2, *env.observation_space.shape)
    assert_same(again.reset(seed=2), several.reset(seed=2))


def test_checkers_and_a_policy_of_vectors_accept_it():
    env = gymnasium.make(ENV_ID, flat=True, **toy_kwargs())
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env)
    model = DQN("MlpPolicy", env, learning_starts=8, train_freq=4, seed=0, device="cpu")
    model.learn(40)
    assert model.policy.q_net.q_net[0].in_features == env.observation_space.shape[0]


@pytest.mark.parametrize("flat", ["yes", 1, None])
@pytest.mark.parametrize("form", [FractionalSkippingEnv, FractionalSkippingVectorEnv])
def test_flat_is_a_truth_value(form, flat):
    with pytest.raises(ConfigError, match=r"^flat is "):
        form(flat=flat, **toy_kwargs())
