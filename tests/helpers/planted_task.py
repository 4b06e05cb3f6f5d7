"""Planted task: the channels of an image tell how many bits each layer needs."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from torch import Tensor

from dfs_rl.agents.algorithms import build_algorithm
from dfs_rl.agents.callbacks import Schedules
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import AlgorithmConfig
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer
from dfs_rl.agents.validation import rewards_of
from dfs_rl.backbones.interfaces import GatedBackbone, GatedLayer
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate, exit_info
from dfs_rl.gating.reward import RewardWeights

LAYERS = 2
OPTIONS = (0, 16, 32)
WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=0.5)


class DemandingLayer:
    """Lowers an image's demand on this layer by the index of the option."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        hidden = hidden.clone()
        demand = hidden[:, 1 + self.layer] - float(OPTIONS.index(bits))
        hidden[:, 1 + self.layer] = demand.clamp(min=0.0)
        return hidden


class PlantedBackbone:
    """Backbone that is right only if every layer runs at least at the demanded option.

    Channel 0 is the label, channels 1 and 2 are the options that layers 0 and 1 need. No static
    table is right for all images.
    """

    options = BitOptions(OPTIONS)
    costs = CostTable(options=BitOptions(OPTIONS), layer_macs=(100, 100))
    feature_sizes = (3, 3)
    feature_macs = 0.0
    image_shape = (3, 4, 4)
    n_classes = 2
    feature_mean = torch.tensor([[0.5, 1.0, 1.0]] * LAYERS)
    feature_std = torch.tensor([[0.5, 0.8, 0.8]] * LAYERS)

    @property
    def layers(self) -> Sequence[GatedLayer]:
        return [DemandingLayer(layer) for layer in range(LAYERS)]

    def stem(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3), keepdim=True)

    def head(self, hidden: Tensor) -> Tensor:
        demand = hidden[:, 1:, 0, 0].sum(dim=1)
        side = self.margin(demand) * (2.0 * hidden[:, 0, 0, 0] - 1.0)  # [batch]
        return 3.0 * torch.stack([-side, side], dim=1)

    def margin(self, demand: Tensor) -> Tensor:
        return torch.where(demand > 0, -1.0, 1.0)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3))


class SmoothPlantedBackbone(PlantedBackbone):
    """Planted task with a gradient: the margin falls with the demand that is left."""

    def margin(self, demand: Tensor) -> Tensor:
        return torch.tanh(1.0 - 2.0 * demand)


def planted_images() -> ImageSet:
    """Every combination of label and demands, 18 images."""
    return images_of(torch.arange(2), torch.arange(3), torch.arange(3))


def images_of(*channels: Tensor) -> ImageSet:
    """Return one image per combination of channel values; the first is the label."""
    grid = torch.cartesian_prod(*channels)
    images = grid.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    return ImageSet(images=images, labels=grid[:, 0].clone())


def make_task(
    backbone: GatedBackbone | None = None, images: ImageSet | None = None, **settings: Any
) -> Task:
    """Return the task of an agent; without a budget and with ``WEIGHTS`` unless given."""
    return Task(
        backbone=backbone or PlantedBackbone(),
        images=images or planted_images(),
        **({"reward": WEIGHTS, "budget": None, "class_names": ("no", "yes")} | settings),
    )


def make_agent(
    config: AlgorithmConfig,
    task: Task | None = None,
    *,
    group: int = 8,
    n_envs: int = 64,
    hidden: int = 16,
    seed: int = 0,
    sync_episodes: bool = False,
) -> BaseAlgorithm:
    """Return an algorithm on the planted task that logs nowhere."""
    task = task or make_task()
    model = build_algorithm(
        config,
        SB3GatingVecEnv(task, n_envs, group_size=group, sync_episodes=sync_episodes, seed=seed),
        feature_sizes=task.backbone.feature_sizes,
        hidden=hidden,
        timesteps=600_000,
        group_size=group,
        sync_episodes=sync_episodes,
        seed=seed,
    )
    model.set_logger(Logger(None, []))
    return model


def learn(model: BaseAlgorithm, config: AlgorithmConfig, steps: int, *callbacks: Any) -> None:
    model.learn(steps, [Schedules(seed=0, config=config), *callbacks], log_interval=10**9)


def gate_of(model: BaseAlgorithm, config: AlgorithmConfig, **settings: Any) -> LearnedGate:
    """Return the gate that ships with a policy; ``settings`` are those of ``LearnedGate``."""
    backbone = model.get_env().task.backbone
    hidden = model.policy.features_extractor_kwargs.get("hidden", 16)
    template = make_gate(
        config.gate, backbone, hidden=hidden, exits=exit_info(backbone), **settings
    )
    return deploy(model, template)


def make_gate(
    kind: str = "ff", backbone: GatedBackbone | None = None, *, hidden: int = 16, **settings: Any
) -> LearnedGate:
    """Return an untrained gate; the same weights every time."""
    torch.manual_seed(0)
    backbone = backbone or PlantedBackbone()
    gate = {"ff": MLPGate, "lstm": LSTMGate}[kind]
    return gate(backbone.feature_sizes, backbone.options, hidden=hidden, **settings)


def mean_reward(
    records: GateRecords, backbone: GatedBackbone, weights: RewardWeights = WEIGHTS
) -> float:
    return float(rewards_of(records, backbone.costs, weights, budget=None).mean())


def reward_of(model: BaseAlgorithm, config: AlgorithmConfig) -> float:
    """Return the mean reward of a policy's gate."""
    task = model.get_env().task
    records = evaluate_gate(task.backbone, gate_of(model, config), task.images)
    return mean_reward(records, task.backbone, task.reward)


def make_gate_task(
    gate: LearnedGate,
    *,
    backbone: PlantedBackbone | None = None,
    budget: float = 0.45,
    **settings: Any,
) -> GateTask:
    """Return the task of a supervised trainer; 600 steps on all images unless given."""
    backbone = backbone or SmoothPlantedBackbone()
    usual = {"images": planted_images(), "steps": 600, "seed": 0}
    usual["target"] = lambda preferences: torch.full_like(preferences, budget)
    return GateTask(backbone=backbone, frozen=backbone, gate=gate, **(usual | settings))


def run_steps(trainer: GateTrainer, steps: int) -> LearnedGate:
    """Train for a number of steps and return the gate."""
    for _ in range(steps):
        trainer.step()
    return trainer.gate.eval()


def accuracy_and_spent(gate: LearnedGate) -> tuple[float, float]:
    """Return accuracy and mean cost of the gated layers on the smooth task, in percent."""
    backbone = SmoothPlantedBackbone()
    records = evaluate_gate(backbone, gate.eval(), planted_images())
    return records.accuracy, float(records.computation(backbone.costs, "dfs").mean())


def best_table_accuracy(options: Sequence[int], budget: float) -> float:
    """Return the highest accuracy of a static table within a budget of the gated layers."""
    backbone, images = SmoothPlantedBackbone(), planted_images()
    tables = [
        evaluate_static_table(backbone, images, table, name="table")
        for table in itertools.product(options, repeat=LAYERS)
    ]
    costs = [float(table.computation(backbone.costs, "dfs").mean()) for table in tables]
    return max(t.accuracy for t, c in zip(tables, costs, strict=True) if c <= 100 * budget)
