"""Exploration per environment, and checkpointing of the replay buffer."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer

from dfs_rl.agents.hyperparameters import DQNConfig, QRDQNConfig
from dfs_rl.agents.q_learning import replay_tensors, restore_replay
from dfs_rl.envs.spaces import observation_bytes
from dfs_rl.errors import ConfigError
from tests.helpers.planted_task import make_agent
from tests.helpers.spaces import observation_space

SPACE = observation_space(5)
# Before and after: 8 float32 and an int64; an int64 action; reward, end and cut as float32.
BYTES = 2 * (8 * 4 + 8) + 8 + 12


@pytest.mark.parametrize("config", [DQNConfig(), QRDQNConfig()], ids=["dqn", "qrdqn"])
def test_each_environment_explores_on_schedule(config):
    model = make_agent(config, group=1)
    features = np.zeros((30_000, 3), np.float32)
    observation = {"features": features, "layer": np.zeros(30_000, np.int64), "context": features}
    np.random.seed(0)  # noqa: NPY002 - upstream's generator
    # An untrained network takes the first option, as a third of the random choices are.
    for progress, rate in [(0.0, 1.0), (0.25, 0.525), (0.5, 0.05), (1.0, 0.05)]:
        model._current_progress_remaining = 1.0 - progress
        actions, _ = model.predict(observation)
        shares = np.bincount(actions, minlength=3) / 30_000
        np.testing.assert_allclose(shares, [1 - rate * 2 / 3, rate / 3, rate / 3], atol=0.01)
    assert not model.predict(observation, deterministic=True)[0].any()


def test_size_of_the_replay_buffer():
    seen = observation_bytes(SPACE)

    def size(config, n_envs):
        return config.resolve(n_envs, 3, seen, timesteps=1000, start="indifferent").buffer_size

    assert size(DQNConfig(buffer_size=100), 10) == 100
    assert size(DQNConfig(), 10) == int(64e6 / BYTES)
    with pytest.raises(ConfigError, match=r"takes .* megabytes; at most 16384"):
        size(DQNConfig(buffer_size=10**9), 10)
    with pytest.raises(ConfigError, match="buffer_size is 100; it must be at least 120"):
        size(DQNConfig(buffer_size=100), 40)
    buffer = DictReplayBuffer(100, SPACE, spaces.Discrete(4), "cpu", n_envs=10)
    parts = [*buffer.observations.values(), *buffer.next_observations.values()]
    parts += [buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts]
    assert sum(part.nbytes for part in parts) == BYTES * 100


@pytest.mark.parametrize("steps", [3, 10, 17])
def test_replay_buffer_is_restored(steps):
    def make():
        return DictReplayBuffer(40, SPACE, spaces.Discrete(4), "cpu", n_envs=4)

    def add(buffer, rng):
        before, after = (
            {
                "features": rng.normal(size=(4, 5)).astype(np.float32),
                "layer": rng.integers(3, size=4),
                "context": rng.random((4, 3), dtype=np.float32),
            }
            for _ in range(2)
        )
        buffer.add(before, after, rng.integers(4, size=4), rng.random(4), np.ones(4), [{}] * 4)

    buffer, copy = make(), make()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        add(buffer, rng)
    tensors = {name: value.clone() for name, value in replay_tensors(buffer, "replay").items()}
    assert all(len(value) == min(steps, 10) for value in tensors.values())
    restore_replay(copy, tensors, "replay", position=buffer.pos)
    samples = []
    for replay in (buffer, copy):  # both continue, over the end
        add(replay, np.random.default_rng(1))
        np.random.seed(0)  # noqa: NPY002 - upstream's generator
        samples.append(replay.sample(200))
    first, second = samples
    for name in SPACE.spaces:
        assert torch.equal(first.observations[name], second.observations[name])
        assert torch.equal(first.next_observations[name], second.next_observations[name])
    for name in ("actions", "rewards", "dones"):
        assert torch.equal(getattr(first, name), getattr(second, name))
