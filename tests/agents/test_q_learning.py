"""How walks explore, what is remembered of them, and that little enough is."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer

from dfs_rl.agents.hyperparameters import DQNConfig, QLearningConfig, QRDQNConfig, RolloutSize
from dfs_rl.agents.q_learning import replay_tensors, restore_replay
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data import ImageSet
from dfs_rl.envs.spaces import observation_bytes
from dfs_rl.errors import ConfigError
from tests.agents.conftest import small_agent

SPACE = spaces.Dict(
    {
        "features": spaces.Box(-10.0, 10.0, (5,), np.float32),
        "layer": spaces.Discrete(3),
        "context": spaces.Box(0.0, 1.0, (3,), np.float32),
    }
)
# Before and after: 8 float32 and an int64; an int64 action; reward, end and cut as float32.
BYTES = 2 * (8 * 4 + 8) + 8 + 12


@pytest.mark.parametrize("config", [DQNConfig(), QRDQNConfig()], ids=["dqn", "qrdqn"])
def test_each_walk_explores_by_itself_as_often_as_is_scheduled(
    planted_backbone: WalkableBackbone, planted_images: ImageSet, config: QLearningConfig
) -> None:
    model = small_agent(planted_backbone, planted_images, config, group=1)
    features = np.zeros((30_000, 3), np.float32)
    observation = {
        "features": features,
        "layer": np.zeros(30_000, np.int64),
        "context": features,
    }
    np.random.seed(0)  # noqa: NPY002 - what upstream draws from
    # An untrained network finds all options alike and takes the first; of the random ones a third are the first as well.
    for progress, rate in [(0.0, 1.0), (0.25, 0.525), (0.5, 0.05), (1.0, 0.05)]:
        model._current_progress_remaining = 1.0 - progress
        actions, _ = model.predict(observation)
        shares = np.bincount(actions, minlength=3) / 30_000
        np.testing.assert_allclose(shares, [1 - rate * 2 / 3, rate / 3, rate / 3], atol=0.01)
    assert not model.predict(observation, deterministic=True)[0].any()


def test_memory_is_as_large_as_allowed() -> None:
    config = DQNConfig(buffer_size=100)
    seen = observation_bytes(SPACE)
    assert config.transitions(RolloutSize(10, 3, seen)) == 100
    assert DQNConfig().transitions(RolloutSize(10, 3, seen)) == int(64e6 / BYTES)
    with pytest.raises(ConfigError, match=r"takes .* megabytes; at most 16384"):
        DQNConfig(buffer_size=10**12).check_update(RolloutSize(10, 3, seen))
    with pytest.raises(ConfigError, match="buffer_size is 100; it must hold the 120 decisions"):
        config.check_update(RolloutSize(40, 3, seen))


def test_memory_takes_the_bytes_that_are_counted() -> None:
    buffer = DictReplayBuffer(100, SPACE, spaces.Discrete(4), "cpu", n_envs=10)
    parts = [*buffer.observations.values(), *buffer.next_observations.values()]
    parts += [buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts]
    assert sum(part.nbytes for part in parts) == BYTES * 100


@pytest.mark.parametrize("steps", [3, 10, 17])
def test_memory_comes_back_as_it_was(steps: int) -> None:
    rng = np.random.default_rng(0)

    def observe() -> dict[str, np.ndarray]:
        return {
            "features": rng.normal(size=(4, 5)).astype(np.float32),
            "layer": rng.integers(3, size=4),
            "context": rng.random((4, 3), dtype=np.float32),
        }

    def make() -> DictReplayBuffer:
        return DictReplayBuffer(40, SPACE, spaces.Discrete(4), "cpu", n_envs=4)

    buffer, copy = make(), make()
    for _ in range(steps):
        buffer.add(
            observe(), observe(), rng.integers(4, size=4), rng.random(4), np.ones(4), [{}] * 4
        )
    tensors = {name: value.clone() for name, value in replay_tensors(buffer, "replay").items()}
    assert all(len(value) == min(steps, 10) for value in tensors.values())
    restore_replay(copy, tensors, "replay", position=buffer.pos)
    for memory in (buffer, copy):  # both go on, over the end
        rng = np.random.default_rng(1)
        memory.add(
            observe(), observe(), rng.integers(4, size=4), rng.random(4), np.ones(4), [{}] * 4
        )
    np.random.seed(0)  # noqa: NPY002 - what upstream draws from
    first = buffer.sample(200)
    np.random.seed(0)  # noqa: NPY002 - what upstream draws from
    second = copy.sample(200)
    for name in SPACE.spaces:
        assert torch.equal(first.observations[name], second.observations[name])
        assert torch.equal(first.next_observations[name], second.next_observations[name])
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.rewards, second.rewards)
    assert torch.equal(first.dones, second.dones)


def test_groups_are_refused(planted_backbone: WalkableBackbone, planted_images: ImageSet) -> None:
    with pytest.raises(ConfigError, match="group_size is 8, but DQN learns from single"):
        small_agent(planted_backbone, planted_images, DQNConfig())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: DQNConfig(exploration_fraction=0.0),
            "exploration_fraction is 0.0; it must be above 0",
        ),
        (
            lambda: DQNConfig(exploration_fraction=1.5),
            "exploration_fraction is 1.5; it must be at most 1",
        ),
        (lambda: DQNConfig(gradient_steps=0), "gradient_steps is 0; it must be at least 1"),
        (lambda: QRDQNConfig(n_quantiles=0), "n_quantiles is 0; it must be at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused(make, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()
