"""Group-relative advantages: closed forms, a naive reference, and an unbiased policy gradient."""

import itertools
from typing import Any

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


KINDS = {
    "plain": GroupRolloutBuffer,
    "masked": MaskableGroupRolloutBuffer,
    "recurrent": RecurrentGroupRolloutBuffer,
}
MASKS = np.array([[1, 0], [1, 1], [1, 0], [1, 1]])
MEMORY = torch.arange(12.0).view(1, 4, 3)


def fill(rewards, starts, *, group, kind="plain", **settings):
    """Return a buffer filled step by step; features are ``env + 100 * step``."""
    steps, envs = rewards.shape
    memory = torch.zeros(1, envs, 3) if envs != 4 else MEMORY
    masks = np.ones((envs, 2)) if envs != 4 else MASKS
    extra: dict[str, Any] = {}
    shape: tuple[Any, ...] = (steps, SPACE, spaces.Discrete(2))
    if kind == "masked":
        extra = {"action_masks": masks}
    elif kind == "recurrent":
        extra = {"lstm_states": RNNStates((memory, memory), (memory, memory))}
        shape = (*shape, (steps, 1, envs, 3))
    buffer = KINDS[kind](*shape, "cpu", gamma=1.0, n_envs=envs, group_size=group, **settings)
    for step in range(steps):
        place = np.arange(envs, dtype=np.float32)[:, None] + 100.0 * step
        given = ({"features": place}, np.zeros(envs), rewards[step], starts[step])
        buffer.add(*given, torch.zeros(envs), torch.zeros(envs), **extra)
    buffer.compute_returns_and_advantage(torch.zeros(envs, 1), np.full(envs, True))
    return buffer


@pytest.mark.parametrize("kind", KINDS)
def test_one_episode_by_hand(kind):
    buffer = fill(REWARDS, STARTS, group=2, kind=kind)
    np.testing.assert_array_equal(buffer.returns, RETURNS)
    np.testing.assert_array_equal(buffer.advantages, ADVANTAGES)
    if kind == "masked":
        assert buffer.action_masks[1].tolist() == MASKS.tolist()
    if kind == "recurrent":
        assert buffer.hidden_states_pi[1, 0].tolist() == MEMORY[0].tolist()


@pytest.mark.parametrize(
    ("rewards", "starts", "last", "done", "gamma", "expected"),
    [
        ([1.0, 2.0, 4.0, 8.0], [1, 0, 1, 0], 100.0, 1.0, 1.0, [3.0, 2.0, 12.0, 8.0]),
        # The critic completes an unfinished episode.
        ([1.0, 2.0], [1, 0], 8.0, 0.0, 0.5, [1.0 + 0.5 * (2.0 + 0.5 * 8.0), 2.0 + 0.5 * 8.0]),
    ],
)
def test_returns_of_two_episodes(rewards, starts, last, done, gamma, expected):
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
def test_buffer_equals_a_loop(group, images, layers, episodes, seed):
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


def test_advantages_of_a_group_sum_to_zero():
    returns = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    advantages = returns - leave_one_out_baseline(returns, 4)
    np.testing.assert_allclose(advantages.reshape(3, 2, 4).sum(axis=2), 0.0, atol=1e-5)


def test_policy_gradient_is_unbiased_in_a_bandit():
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
    ],
)
def test_groups_that_do_not_fit_are_refused(envs, group, sentence):
    with pytest.raises(ConfigError, match=sentence):
        GroupRolloutBuffer(2, SPACE, spaces.Discrete(2), n_envs=envs, group_size=group)


# --- episodes of different lengths


def episodes_of(seed, layers, group, n_images):
    """Return rewards and starts of whole episodes, some of which end early, and their lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, layers + 1, size=group * n_images)
    rewards = rng.normal(size=(layers, group * n_images)).astype(np.float32)
    starts = np.zeros_like(rewards)
    starts[0] = 1.0
    for env, steps in enumerate(lengths):
        rewards[steps:, env] = 0.0
        starts[steps : steps + 1, env] = 1.0  # an episode ends once
    return rewards, starts, lengths


@given(
    seed=st.integers(0, 2**31 - 1),
    layers=st.integers(1, 5),
    group=st.integers(2, 4),
    n_images=st.integers(1, 3),
)
def test_baselines_equal_a_loop_over_episodes(seed, layers, group, n_images):
    rewards, starts, lengths = episodes_of(seed, layers, group, n_images)
    buffer = fill(rewards, starts, group=group, sync_episodes=True)
    for env, length in enumerate(lengths):
        first = env // group * group
        others = [e for e in range(first, first + group) if e != env]
        for step in range(length):
            own = rewards[step:, env].sum()
            there = [e for e in others if lengths[e] > step]
            if there:
                baseline = np.mean([rewards[step:, e].sum() for e in there])
            else:
                whole = np.mean([rewards[:, e].sum() for e in others])
                baseline = whole - rewards[:step, env].sum()
            assert buffer.returns[step, env] == pytest.approx(own, abs=1e-5)
            assert buffer.advantages[step, env] == pytest.approx(own - baseline, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [None, 1, 4, 7])
def test_minibatches_leave_out_padding(kind, batch):
    rewards, starts, lengths = episodes_of(3, 4, 2, 3)
    seen = []
    for samples in fill(rewards, starts, group=2, kind=kind, sync_episodes=True).get(batch):
        places = samples.observations["features"].flatten()
        seen += (places[samples.mask > 0] if kind == "recurrent" else places).tolist()
    expected = [100 * step + env for env, steps in enumerate(lengths) for step in range(steps)]
    assert sorted(seen) == sorted(expected)


def test_single_episodes_have_upstream_advantages():
    rewards, starts, lengths = episodes_of(5, 4, 1, 6)
    buffer = fill(rewards, starts, group=1, sync_episodes=True, gae_lambda=1.0)
    for env, steps in enumerate(lengths):
        to_go = rewards[:, env][::-1].cumsum()[::-1]
        np.testing.assert_allclose(buffer.advantages[:steps, env], to_go[:steps], atol=1e-5)
