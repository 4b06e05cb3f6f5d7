"""Stops on figures that are not finite, and the width of a gate."""

import copy
import sys

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.callbacks import UpdateCallback, divergence_as_error
from dfs_rl.agents.gate_export import gate_shape
from dfs_rl.agents.hyperparameters import PPOConfig, TRPOConfig
from dfs_rl.backbones import ResNet, ResNetConfig, default_digits
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import TrainingError
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.planted_task import PlantedBackbone, make_agent, make_task


class Poison(BaseCallback):
    """Spoils advantages or weights before the second update."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        if self.what == "advantage" and self.model.num_timesteps == 256:
            self.model.rollout_buffer.advantages[0, 0] = np.nan

    def _on_rollout_start(self):
        if self.what == "weight" and self.model.num_timesteps == 128:
            with torch.no_grad():
                self.model.policy.value_net.bias.fill_(np.inf)


def learn(model, steps, *callbacks):
    with divergence_as_error(model):
        model.learn(steps, list(callbacks), log_interval=sys.maxsize)


@pytest.mark.parametrize(("what", "steps"), [("advantage", 256), ("weight", 128)])
def test_weights_that_are_not_finite_stop(what, steps):
    model = make_agent(PPOConfig(batch_size=64))
    with pytest.raises(TrainingError, match=f"after {steps} steps: the policy's weights are no"):
        learn(model, 1280, Poison(what), UpdateCallback())


def test_rewards_that_are_not_finite_stop():
    broken = copy.copy(PlantedBackbone())
    broken.head = lambda hidden: torch.full((len(hidden), 2), float("nan"))
    model = make_agent(PPOConfig(), make_task(broken, reward=RewardWeights()))
    with pytest.raises(TrainingError, match="a reward is not finite"):
        learn(model, 640, UpdateCallback())


def test_trpo_skips_updates_with_equal_advantages():
    nothing = RewardWeights(accuracy=0.0, log_likelihood=0.0, cost=0.0)
    model = make_agent(TRPOConfig(), make_task(reward=nothing))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    learn(model, 128)
    after = model.policy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def resnet(depth, width):
    statistics = ChannelStatistics(mean=(0.5,) * 3, std=(0.5,) * 3)
    return ResNet(ResNetConfig(depth=depth, width=width, in_channels=3), statistics)


@pytest.mark.parametrize(
    ("depth", "width", "features", "expected"),
    [
        (8, 4, "all", 8),
        # (0.0005 * 10,027,008 - 144 * 16 * 10 / 16) / (144 + 9 * (3 + 3 + 6)) = 14.2
        (20, 8, "all", 14),
        (20, 8, "confidence", 32),
        (20, 16, "all", 32),
    ],
)
def test_default_width_follows_the_macs(depth, width, features, expected):
    backbone = resnet(depth, width)
    shape = gate_shape(backbone, features=features, hidden=None, budget_conditioning=False)
    assert shape[1] == expected


@pytest.mark.parametrize("features", ["confidence", "all"])
def test_gate_of_resnet20_costs_little(features):
    backbone = resnet(20, 16)
    sizes, width = gate_shape(backbone, features=features, hidden=None, budget_conditioning=False)
    per_layer = sum((size + 3) * width + width * 6 for size in sizes)
    macs = per_layer + 288 * 16 * 10 / 16  # probes of 288 channels in 16 parts, ten classes, 8 bit
    assert macs / backbone.costs.total_macs <= 0.0005


def test_gate_reads_the_chosen_features():
    def shape(features, hidden):
        return gate_shape(
            default_digits(), features=features, hidden=hidden, budget_conditioning=False
        )

    assert shape("confidence", 5) == ((3,) * 6, 5)
    assert shape("all", None) == ((9, 9, 9, 15, 15, 27), 8)
