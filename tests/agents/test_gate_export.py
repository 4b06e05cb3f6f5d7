"""The deployed gate says exactly what the policy's actor says, and nothing of the critic ships."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    DQNConfig,
    PPOConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
)
from dfs_rl.costs import BitOptions
from dfs_rl.gating.networks import LSTMGate, MLPGate
from dfs_rl.gating.storage import load_gate, save_gate

CHANNELS = (3, 7, 5)
OPTIONS = BitOptions((0, 2, 8, 32))


class SpacesOnly(gymnasium.Env):
    """Only the spaces matter."""

    observation_space = spaces.Dict(
        {
            "features": spaces.Box(-10.0, 10.0, (7,), np.float32),
            "layer": spaces.Discrete(3),
            "context": spaces.Box(0.0, 1.0, (3,), np.float32),
        }
    )
    action_space = spaces.Discrete(4)


@pytest.fixture
def model() -> BaseAlgorithm:
    return make_model(PPOConfig(batch_size=10**6))


def make_model(config: AlgorithmConfig) -> BaseAlgorithm:
    learning = PolicySettings(
        timesteps=1000, feature_sizes=CHANNELS, hidden=6, group_size=1, seed=0, device="cpu"
    )
    model = build_algorithm(config, DummyVecEnv([SpacesOnly]), learning)
    with torch.no_grad():  # a policy in training
        for parameter in model.policy.parameters():
            parameter.normal_()
    return model


def test_logits_and_choices_equal_the_policys(model: BaseAlgorithm) -> None:
    gate = deploy(model, OPTIONS, feature_macs=7.0, name="ppo")
    generator = torch.Generator().manual_seed(1)
    for layer, channels in enumerate(CHANNELS):
        features = torch.zeros(50, 7)
        features[:, :channels] = torch.randn(50, channels, generator=generator)
        context = torch.rand(50, 3, generator=generator)
        observation = {
            "features": features,
            "layer": torch.full((50,), layer),
            "context": context,
        }
        policy_log_probabilities = model.policy.get_distribution(observation).distribution.logits
        gate_logits = gate(features, layer, context)
        torch.testing.assert_close(gate_logits.log_softmax(dim=1), policy_log_probabilities)
        numpy_observation = {name: value.numpy() for name, value in observation.items()}
        chosen, _ = model.predict(numpy_observation, deterministic=True)
        np.testing.assert_array_equal(gate.decide(features, layer, context).numpy(), chosen)


@pytest.mark.parametrize("config", [DQNConfig(), QRDQNConfig(n_quantiles=5)], ids=["dqn", "qrdqn"])
def test_a_network_of_values_ships_as_what_it_expects_each_option_to_be_worth(
    config: AlgorithmConfig,
) -> None:
    model = make_model(config)
    gate = deploy(model, OPTIONS, feature_macs=7.0, name="q")
    assert gate.macs == 7.0 + sum((c + 3) * 6 + 6 * 4 for c in CHANNELS)
    generator = torch.Generator().manual_seed(1)
    for layer, channels in enumerate(CHANNELS):
        features = torch.zeros(50, 7)
        features[:, :channels] = torch.randn(50, channels, generator=generator)
        context = torch.rand(50, 3, generator=generator)
        observation = {
            "features": features,
            "layer": torch.full((50,), layer),
            "context": context,
        }
        if isinstance(model, QRDQN):
            worth = model.policy.quantile_net(observation).mean(dim=1)
        else:
            worth = model.policy.q_net(observation)
        torch.testing.assert_close(gate(features, layer, context), worth)
        numpy_observation = {name: value.numpy() for name, value in observation.items()}
        chosen, _ = model.predict(numpy_observation, deterministic=True)
        np.testing.assert_array_equal(gate.decide(features, layer, context).numpy(), chosen)


def test_a_memory_ships_as_it_is() -> None:
    model = make_model(RecurrentPPOConfig(batch_size=10**6))
    with torch.no_grad():  # saturated and biased, it would choose the same for all
        for parameter in model.policy.parameters():
            parameter.mul_(0.5)
        model.policy.action_net.bias.zero_()
    gate = deploy(model, OPTIONS, feature_macs=7.0, name="lstm")
    assert isinstance(gate, LSTMGate)
    # An embedding for each layer, four gates over embedding and memory, and the scores.
    assert gate.macs == 7.0 + sum((c + 3) * 6 + 4 * (6 + 6) * 6 + 6 * 4 for c in CHANNELS)
    generator = torch.Generator().manual_seed(1)
    state, memory = None, (torch.zeros(1, 50, 6), torch.zeros(1, 50, 6))
    gate.reset(50)
    for layer, channels in enumerate(CHANNELS):
        features = torch.zeros(50, 7)
        features[:, :channels] = torch.randn(50, channels, generator=generator)
        context = torch.rand(50, 3, generator=generator)
        observation = {
            "features": features,
            "layer": torch.full((50,), layer),
            "context": context,
        }
        distribution, memory = model.policy.get_distribution(observation, memory, torch.zeros(50))
        numpy_observation = {name: value.numpy() for name, value in observation.items()}
        chosen, state = model.predict(numpy_observation, state, deterministic=True)
        logits = gate(features, layer, context)
        torch.testing.assert_close(logits.log_softmax(dim=1), distribution.distribution.logits)
        np.testing.assert_array_equal(logits.argmax(dim=1).numpy(), chosen)
        assert len(np.unique(chosen)) > 1


def test_only_the_actor_ships_and_its_cost_is_counted(model: BaseAlgorithm) -> None:
    gate = deploy(model, OPTIONS, feature_macs=7.0, name="ppo")
    assert isinstance(gate, MLPGate)
    assert gate.macs == 7.0 + sum((c + 3) * 6 + 6 * 4 for c in CHANNELS)
    assert sum(p.numel() for p in gate.parameters()) == sum(
        (c + 3) * 6 + 6 + 6 * 4 + 4 for c in CHANNELS
    )
    assert gate.name == "ppo"


def test_a_deployed_gate_does_not_change_with_the_policy(model: BaseAlgorithm) -> None:
    gate = deploy(model, OPTIONS, feature_macs=7.0, name="ppo")
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in gate.state_dict().items())


def test_the_budget_that_it_was_trained_for_ships_with_the_gate(
    model: BaseAlgorithm, tmp_path: Path
) -> None:
    save_gate(deploy(model, OPTIONS, feature_macs=7.0, name="ppo", budget=1.5), tmp_path)
    assert load_gate(tmp_path).budget == 1.5
