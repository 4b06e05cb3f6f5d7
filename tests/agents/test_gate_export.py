"""The deployed gate has the policy's logits and choices, and nothing of the critic."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3.common.vec_env import DummyVecEnv

from dfs_rl.agents.algorithms import build_algorithm
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import DQNConfig, PPOConfig, QRDQNConfig, RecurrentPPOConfig
from dfs_rl.costs import BitOptions
from dfs_rl.gating.networks import LSTMGate, MLPGate
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.spaces import observation_space

CHANNELS = (3, 7, 5)
OPTIONS = BitOptions((0, 2, 8, 32))
PPO = PPOConfig(batch_size=10**6)


class SpacesOnly(gymnasium.Env):
    observation_space = observation_space(7)
    action_space = spaces.Discrete(4)


def make_model(config):
    env = DummyVecEnv([SpacesOnly])
    model = build_algorithm(config, env, feature_sizes=CHANNELS, hidden=6, timesteps=1000)
    with torch.no_grad():  # a policy in training
        for parameter in model.policy.parameters():
            parameter.normal_()
    return model


def export(model, kind=MLPGate, **settings):
    template = kind(CHANNELS, OPTIONS, hidden=6, feature_macs=7.0, name="gate", **settings)
    return deploy(model, template)


def observations():
    """Yield layer, observation and the same observation in NumPy."""
    generator = torch.Generator().manual_seed(1)
    for layer, channels in enumerate(CHANNELS):
        features = torch.zeros(50, 7)
        features[:, :channels] = torch.randn(50, channels, generator=generator)
        context = torch.rand(50, 3, generator=generator)
        seen = {"features": features, "layer": torch.full((50,), layer), "context": context}
        yield layer, seen, {name: value.numpy() for name, value in seen.items()}


@pytest.mark.parametrize(
    "config", [PPO, DQNConfig(), QRDQNConfig(n_quantiles=5)], ids=["ppo", "dqn", "qrdqn"]
)
def test_logits_and_choices_equal_the_policys(config):
    model = make_model(config)
    gate = export(model)
    for layer, seen, arrays in observations():
        logits = gate(seen["features"], layer, seen["context"])
        if config is PPO:
            logits = logits.log_softmax(dim=1)
            expected = model.policy.get_distribution(seen).distribution.logits
        elif isinstance(model, QRDQN):
            expected = model.policy.quantile_net(seen).mean(dim=1)
        else:
            expected = model.policy.q_net(seen)
        torch.testing.assert_close(logits, expected)
        chosen, _ = model.predict(arrays, deterministic=True)
        decided = gate.decide(seen["features"], layer, seen["context"])
        np.testing.assert_array_equal(decided.numpy(), chosen)


def test_an_lstm_ships_with_its_memory():
    model = make_model(RecurrentPPOConfig(batch_size=10**6))
    with torch.no_grad():  # saturated and biased, it would choose the same for all
        for parameter in model.policy.parameters():
            parameter.mul_(0.5)
        model.policy.action_net.bias.zero_()
    gate = export(model, LSTMGate)
    # An embedding for each layer, four gates over embedding and memory, and the scores.
    assert gate.macs == 7.0 + sum((c + 3) * 6 + 4 * (6 + 6) * 6 + 6 * 4 for c in CHANNELS)
    state, memory = None, (torch.zeros(1, 50, 6), torch.zeros(1, 50, 6))
    gate.reset(50)
    for layer, seen, arrays in observations():
        distribution, memory = model.policy.get_distribution(seen, memory, torch.zeros(50))
        chosen, state = model.predict(arrays, state, deterministic=True)
        logits = gate(seen["features"], layer, seen["context"])
        torch.testing.assert_close(logits.log_softmax(dim=1), distribution.distribution.logits)
        np.testing.assert_array_equal(logits.argmax(dim=1).numpy(), chosen)
        assert len(np.unique(chosen)) > 1


def test_gate_is_a_copy_of_the_actor_alone(tmp_path):
    model = make_model(PPO)
    gate = export(model, budget=1.5)
    assert gate.macs == 7.0 + sum((c + 3) * 6 + 6 * 4 for c in CHANNELS)
    weights = sum((c + 3) * 6 + 6 + 6 * 4 + 4 for c in CHANNELS)
    assert sum(p.numel() for p in gate.parameters()) == weights
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in gate.state_dict().items())
    save_gate(gate, tmp_path)
    assert (load_gate(tmp_path).budget, load_gate(tmp_path).name) == (1.5, "gate")
