"""Group-relative advantages: closed forms, a naive reference, and an unbiased policy gradient."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from dfs_rl.agents.buffers import (
    GroupRolloutBuffer,
    MaskableGroupRolloutBuffer,
    RecurrentGroupRolloutBuffer,
    leave_one_out_baseline,
    returns_to_go,
)
from dfs_rl.errors import ConfigError

SPACE = spaces.Dict({"features": spaces.Box(-1.0, 1.0, (1,), np.float32)})
# Two images (columns 0-1 and 2-3), two layers: a cost per step, accuracy at the end.
REWARDS = np.array([[-1.0, -3.0, 0.0, -2.0], [9.0, 4.0, 1.0, 1.0]], np.float32)
STARTS = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
RETURNS = [[8.0, 1.0, 1.0, -1.0], [9.0, 4.0, 1.0, 1.0]]
ADVANTAGES = [[7.0, -7.0, 2.0, -2.0], [5.0, -5.0, 0.0, 0.0]]


def fill(rewards: np.ndarray, starts: np.ndarray, *, group: int) -> GroupRolloutBuffer:
    """Return a buffer filled step by step, as by an algorithm."""
    steps, envs = rewards.shape
    buffer = GroupRolloutBuffer(
        steps, SPACE, spaces.Discrete(2), "cpu", gamma=1.0, n_envs=envs, group_size=group
    )
    for step in range(steps):
        observation = {"features": np.zeros((envs, 1), np.float32)}
        zeros = torch.zeros(envs)
        buffer.add(observation, np.zeros(envs), rewards[step], starts[step], zeros, zeros)
    buffer.compute_returns_and_advantage(torch.zeros(envs, 1), np.full(envs, True))
    return buffer


def test_one_episode_by_hand() -> None:
    buffer = fill(REWARDS, STARTS, group=2)
    np.testing.assert_array_equal(buffer.returns, RETURNS)
    np.testing.assert_array_equal(buffer.advantages, ADVANTAGES)


def test_masked_and_recurrent_buffers() -> None:
    space = (SPACE, spaces.Discrete(2))
    settings = {"gamma": 1.0, "n_envs": 4, "group_size": 2}
    masked = MaskableGroupRolloutBuffer(2, *space, "cpu", **settings)
    recurrent = RecurrentGroupRolloutBuffer(2, *space, (2, 1, 4, 3), "cpu", **settings)
    masks = np.array([[1, 0], [1, 1], [1, 0], [1, 1]])
    memory = torch.arange(12.0).view(1, 4, 3)
    for step in range(2):
        given = ({"features": np.zeros((4, 1), np.float32)}, np.zeros(4), REWARDS[step])
        given += (STARTS[step], torch.zeros(4), torch.zeros(4))
        masked.add(*given, action_masks=masks)
        recurrent.add(*given, lstm_states=RNNStates((memory, memory), (memory, memory)))
    for buffer in (masked, recurrent):
        buffer.compute_returns_and_advantage(torch.zeros(4, 1), np.full(4, True))
        np.testing.assert_array_equal(buffer.returns, RETURNS)
        np.testing.assert_array_equal(buffer.advantages, ADVANTAGES)
    assert masked.action_masks[1].tolist() == masks.tolist()
    assert recurrent.hidden_states_pi[1, 0].tolist() == memory[0].tolist()


@pytest.mark.parametrize(
    ("rewards", "starts", "last", "done", "gamma", "expected"),
    [
        ([1.0, 2.0, 4.0, 8.0], [1, 0, 1, 0], 100.0, 1.0, 1.0, [3.0, 2.0, 12.0, 8.0]),
        # The critic completes an unfinished episode.
        ([1.0, 2.0], [1, 0], 8.0, 0.0, 0.5, [1.0 + 0.5 * (2.0 + 0.5 * 8.0), 2.0 + 0.5 * 8.0]),
    ],
)
def test_returns_of_two_episodes(rewards, starts, last, done, gamma, expected) -> None:
    def column(values):
        return np.array(values, np.float32).reshape(-1, 1)

    ends = (np.array([last], np.float32), np.array([done], np.float32))
    returns = returns_to_go(column(rewards), column(starts), *ends, gamma=gamma)
    np.testing.assert_array_equal(returns, column(expected))


@given(
    group=st.integers(2, 4),
    images=st.integers(1, 3),
    layers=st.integers(1, 4),
    episodes=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_buffer_equals_a_loop(
    group: int, images: int, layers: int, episodes: int, seed: int
) -> None:
    steps, envs = layers * episodes, group * images
    rewards = np.random.default_rng(seed).normal(size=(steps, envs)).astype(np.float32)
    starts = np.zeros_like(rewards)
    starts[::layers] = 1.0
    buffer = fill(rewards, starts, group=group)
    for env, step in itertools.product(range(envs), range(steps)):
        end = (step // layers + 1) * layers
        first = env // group * group
        members = [m for m in range(first, first + group) if m != env]
        own = rewards[step:end, env].sum()
        others = sum(rewards[step:end, member].sum() for member in members) / len(members)
        assert buffer.returns[step, env] == pytest.approx(own, abs=1e-5)
        assert buffer.advantages[step, env] == pytest.approx(own - others, abs=1e-4)


def test_advantages_of_a_group_sum_to_zero() -> None:
    returns = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    advantages = returns - leave_one_out_baseline(returns, 4)
    np.testing.assert_allclose(advantages.reshape(3, 2, 4).sum(axis=2), 0.0, atol=1e-5)


def test_policy_gradient_is_unbiased_in_a_bandit() -> None:
    # Three actions, two rollouts per image: the exact expectation over all nine pairs.
    reward = torch.tensor([1.0, -0.5, 3.0])
    logits = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    (exact,) = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)
    probabilities = logits.detach().softmax(0)
    expectation = torch.zeros(3)
    for pair in itertools.product(range(3), repeat=2):
        rewards = reward[list(pair)].numpy()[None]
        advantages = torch.from_numpy(fill(rewards, np.ones_like(rewards), group=2).advantages[0])
        loss = (advantages * logits.log_softmax(0)[list(pair)]).mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        expectation += float(probabilities[pair[0]] * probabilities[pair[1]]) * gradient
    torch.testing.assert_close(expectation, exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("envs", "group", "sentence"),
    [
        (6, 4, "num_envs is 6 and group_size is 4"),
        (4, 0, "num_envs is 4 and group_size is 0"),
        (4, 8, "num_envs is 4 and group_size is 8"),
        (4, 1, "plain rollout buffer"),
    ],
)
def test_groups_that_do_not_fit_are_refused(envs: int, group: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GroupRolloutBuffer(2, SPACE, spaces.Discrete(2), n_envs=envs, group_size=group)
