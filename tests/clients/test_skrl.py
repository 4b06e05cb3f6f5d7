"""skrl wraps the environment, alone and as a batch."""

import gymnasium
import numpy as np
import pytest
import torch

from dfs_rl.envs import ENV_ID
from tests.helpers.pages import run_recipe
from tests.helpers.toy_env import toy_kwargs

wrappers = pytest.importorskip("skrl.envs.wrappers.torch", reason="skrl is not installed")

N, WIDTH = 3, 8  # three values of context, four features and the index of the layer


def single():
    return gymnasium.make(ENV_ID, **toy_kwargs())


def batch():
    return gymnasium.make_vec(ENV_ID, N, **toy_kwargs())


@pytest.mark.parametrize("make", [single, batch])
def test_wrapper_steps_like_the_environment(make):
    env, plain = wrappers.wrap_env(make(), verbose=False), make()
    n = 1 if make is single else N
    assert (env.num_envs, env.action_space.n) == (n, 4)
    env._seed = 5
    seen, _ = env.reset()
    expected, _ = plain.reset(seed=5)
    for action in (0, 3, 1, 2):
        parts = [np.reshape(expected[key], (n, -1)) for key in ("context", "features", "layer")]
        np.testing.assert_array_equal(seen.numpy(), np.concatenate(parts, axis=1))
        assert seen.shape == (n, WIDTH)
        seen, reward, terminated, truncated, info = env.step(torch.full((n, 1), action))
        taken = action if make is single else np.full(n, action)
        expected, rewards, ended, _, _ = plain.step(taken)
        np.testing.assert_allclose(reward[:, 0], np.reshape(rewards, n), rtol=1e-6)
        np.testing.assert_array_equal(terminated[:, 0], np.reshape(ended, n))
        assert not truncated.any()
    assert terminated.all()
    assert "is_success" in info


def test_recipe():
    info = run_recipe("skrl")["info"]
    assert info["_is_success"].tolist() == [True] * 8
