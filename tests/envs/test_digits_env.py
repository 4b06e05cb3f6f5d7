import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from dfs_rl.backbones import default_digits
from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv


def test_made_without_arguments_it_is_the_digits():
    env = gymnasium.make(ENV_ID)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    steps = 0
    terminated = False
    while not terminated:
        _, _, terminated, truncated, info = env.step(env.action_space.n - 1)
        steps += 1
        assert not truncated
    assert steps == len(default_digits().layers)
    assert info["bits"].tolist() == [32] * steps
    assert info["computation"] > 100.0


def test_the_digits_pass_both_checkers():
    env = gymnasium.make(ENV_ID, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_batch_equals_single_environments_on_the_digits(mode):
    kwargs = {"backbone": default_digits().to_inference(), "split": "val"}
    ours = FractionalSkippingVectorEnv(6, autoreset_mode=mode, **kwargs)
    theirs = SyncVectorEnv([lambda: FractionalSkippingEnv(**kwargs)] * 6, autoreset_mode=mode)
    a, b = ours.reset(seed=4)[0], theirs.reset(seed=4)[0]
    for key in b:
        np.testing.assert_array_equal(a[key], b[key])
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(
            5, size=6
        )  # 32 bit is left out: its floating point sums depend on the batch
        a, b = ours.step(actions), theirs.step(actions)
        for key in a[0]:
            np.testing.assert_array_equal(a[0][key], b[0][key])
        for i in (1, 2, 3):
            np.testing.assert_array_equal(a[i], b[i])
        assert a[4].keys() == b[4].keys()


def test_the_full_network_is_right_most_of_the_time_and_2_bit_less_often():
    shares = {}
    for option in (1, 5):
        env = FractionalSkippingVectorEnv(256, split="val")
        env.reset(seed=0)
        for _ in range(len(default_digits().layers)):
            *_, infos = env.step(np.full(256, option))
        shares[option] = infos["correct"].mean()
    assert shares[5] > 0.9
    assert shares[1] < shares[5]
