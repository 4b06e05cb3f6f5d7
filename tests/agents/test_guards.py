"""What happens when figures stop being finite, and how wide a gate may be."""

import copy

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.callbacks import FiniteGuard, Lifecycle, learn
from dfs_rl.agents.gate_export import gate_shape
from dfs_rl.agents.hyperparameters import FeatureChoice, PPOConfig, TRPOConfig
from dfs_rl.backbones import ResNet, ResNetConfig, default_digits
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.errors import TrainingError
from dfs_rl.gating.reward import RewardWeights
from tests.agents.conftest import small_agent


class Poison(BaseCallback):
    """Spoils rewards or weights before the second update."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.what == "advantage" and self.model.num_timesteps == 128:
            self.model.rollout_buffer.advantages[0, 0] = np.nan

    def _on_rollout_start(self) -> None:
        if self.what == "weight" and self.model.num_timesteps == 64:
            with torch.no_grad():
                self.model.policy.value_net.bias.fill_(np.inf)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "advantage",
            "training stopped after 128 steps: the policy's weights are no longer finite",
        ),
        ("weight", "training stopped after 64 steps: the policy's weights are no longer finite"),
    ],
)
def test_training_stops_with_a_sentence(
    planted_backbone: WalkableBackbone, planted_images: ImageSet, what: str, words: str
) -> None:
    model = small_agent(planted_backbone, planted_images, PPOConfig(batch_size=32))
    with pytest.raises(TrainingError, match=words):
        learn(model, 640, [Poison(what), FiniteGuard(Lifecycle())], fresh=True)


def test_rewards_that_are_not_finite_are_the_backbones_fault(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    broken = copy.copy(planted_backbone)
    broken.head = lambda hidden: torch.full((len(hidden), 2), float("nan"))
    model = small_agent(broken, planted_images, PPOConfig())
    with pytest.raises(TrainingError, match="a reward is not finite"):
        learn(model, 640, [FiniteGuard(Lifecycle())], fresh=True)


def test_trpo_leaves_the_policy_alone_where_every_choice_is_worth_the_same(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    nothing = RewardWeights(accuracy=0.0, log_likelihood=0.0, cost=0.0)
    model = small_agent(planted_backbone, planted_images, TRPOConfig(), nothing)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    learn(model, 128, [], fresh=True)
    after = model.policy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def resnet(depth: int, width: int) -> ResNet:
    statistics = ChannelStatistics(mean=(0.5,) * 3, std=(0.5,) * 3)
    return ResNet(ResNetConfig(depth=depth, width=width, in_channels=3), statistics)


@pytest.mark.parametrize(
    ("depth", "width", "features", "expected"),
    [
        (8, 4, "all", 8),
        (
            20,
            8,
            "all",
            14,
        ),  # (0.0005 * 10,027,008 - 144 * 16 * 10 / 16) / (144 + 9 * (3 + 3 + 6)) = 14.2
        (20, 8, "confidence", 32),
        (20, 16, "all", 32),
    ],
)
def test_width_of_the_gate_follows_the_networks_macs(
    depth: int, width: int, features: FeatureChoice, expected: int
) -> None:
    assert (
        gate_shape(
            resnet(depth, width), features=features, hidden=None, budget_conditioning=False
        ).hidden
        == expected
    )


@pytest.mark.parametrize("features", ["confidence", "all"])
def test_the_gate_of_resnet20_costs_less_than_a_two_thousandth(features: FeatureChoice) -> None:
    backbone = resnet(20, 16)
    sizes, width = gate_shape(backbone, features=features, hidden=None, budget_conditioning=False)
    per_layer = sum((size + 3) * width + width * 6 for size in sizes)
    macs = per_layer + 288 * 16 * 10 / 16  # probes of 288 channels in 16 parts, ten classes, 8 bit
    assert macs / backbone.costs.total_macs <= 0.0005


def test_a_gate_looks_at_the_confidence_or_at_everything() -> None:
    digits = default_digits()
    assert gate_shape(digits, features="confidence", hidden=5, budget_conditioning=False) == (
        (3,) * 6,
        5,
    )
    assert gate_shape(digits, features="all", hidden=None, budget_conditioning=False) == (
        (9, 9, 9, 15, 15, 27),
        8,
    )
