"""TorchRL's wrappers of Gymnasium accept the environment: alone, in processes, as one batch."""

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode

from dfs_rl.envs import ENV_ID
from tests.helpers.pages import run_recipe
from tests.helpers.toy_env import toy_kwargs

torchrl_envs = pytest.importorskip("torchrl.envs", reason="torchrl is not installed")

N = 2


def single():
    return torchrl_envs.GymEnv(ENV_ID, **toy_kwargs())


def processes():
    """TorchRL fills the final observation with zeros, which are no one-hot layer."""
    return torchrl_envs.GymEnv(ENV_ID, num_envs=N, categorical_action_encoding=True, **toy_kwargs())


def batch():
    """TorchRL resets environments itself."""
    settings = {"autoreset_mode": AutoresetMode.DISABLED, **toy_kwargs()}
    return torchrl_envs.GymWrapper(gymnasium.make_vec(ENV_ID, N, **settings))


def ends_of(env, steps):
    """Check the specs of an environment and return where its episodes end."""
    try:
        torchrl_envs.check_env_specs(env, seed=0)
        rollout = env.rollout(steps, break_when_any_done=False)
    finally:
        env.close()
    assert rollout["next", "reward"].isfinite().all()
    return rollout["next", "terminated"][..., 0].tolist()


def test_single():
    assert ends_of(single(), 8) == [False, False, False, True] * 2


def test_batch():
    assert ends_of(batch(), 8) == [[False, False, False, True] * 2] * N


def test_processes():
    """TorchRL 0.14.1 goes no further: it asks every step for the entries of the reset's info."""
    assert ends_of(processes(), 3) == [[False] * 3] * N


def test_recipe():
    assert run_recipe("TorchRL")["batch"].batch_size == (8,)
