"""Initialization of a gate by behaviour cloning of the best uniform option.

Nearly all mixes of options over layers are worse than one option for all layers, and a gate without
preference spends its decisions on finding that out. Before its first decision a gate therefore
imitates the uniform option that earns most at each cost weight, or within each budget, with odds
that leave neighbouring options to be tried. It then learns where to depart from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.agents.evaluation_callback import rewards_of
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import ImageSet
from dfs_rl.envs.task import Task
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.execution import run_layer, run_stem
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import Observation, observe
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.seeding import torch_generator

IMAGES = 2048
"""Images of the agent split, with repeats, that each option is tried on and a gate is cloned on."""
_NEIGHBOUR = -2.0
"""Log-odds of an option one place away on the menu; they fall with the square of the distance."""
_STEPS = 300
_BATCH = 256
_LEARNING_RATE = 0.02


class UniformOptionRewards(NamedTuple):
    """Mean reward and cost of running all layers at one option.

    Attributes:
        rewards: Mean reward of each option without its cost, float64 ``[options]``; minus infinity
            above a per-input budget.
        spent: Cost of each option, as a fraction, float64 ``[options]``.
    """

    rewards: Tensor
    spent: Tensor

    def best_at(self, cost_weight: Tensor) -> Tensor:
        """Return the best option at each cost weight, int64 ``[n]``; the cheaper of equals."""
        return (self.rewards - cost_weight[:, None] * self.spent).argmax(dim=1)

    def best_within(self, targets: Tensor) -> Tensor:
        """Return the best option within each target cost, float64 ``[n]`` to int64 ``[n]``.

        It is the cheaper one of equals, and the cheapest of all where all cost more.
        """
        within = self.spent <= targets[:, None]  # [n, options]
        best = self.rewards.where(within, -torch.inf).argmax(dim=1)
        return torch.where(within.any(dim=1), best, self.spent.argmin())


TargetOptions = Callable[[ImageSet, Tensor | None], Tensor]
"""Return the option for each image of the agent split and its preference, float32 ``[n]``."""


def evaluate_uniform_options(
    backbone: WalkableBackbone,
    images: ImageSet,
    weights: RewardWeights,
    *,
    budget: float | None = None,
    gate_macs: float = 0.0,
) -> UniformOptionRewards:
    """Try every option of the menu at all layers of a network on some images.

    Args:
        backbone: The network, frozen.
        images: What to try them on.
        weights: What is rewarded; the price of computation is left out.
        budget: Hard upper bound on computation in percent; ``None`` for none.
        gate_macs: MACs of the gate, which count towards that.
    """
    costs = backbone.costs
    records = [
        evaluate_static_table(backbone, images, (option,) * costs.n_layers, name="")
        for option in range(len(backbone.options))
    ]
    free = replace(weights, cost=0.0)
    rewards = torch.stack(
        [rewards_of(record, costs, free, budget=budget).mean() for record in records]
    )
    spent = torch.stack([costs.fractions(record.options[:1])[0] for record in records])
    if budget is not None:
        rewards[spent > gated_budget(costs, budget, gate_macs=gate_macs)] = -torch.inf
    return UniformOptionRewards(rewards, spent)


def best_uniform_at_cost_weight(task: Task) -> TargetOptions:
    """Want what is worth most at the price that each image pays in an agent's task."""

    def target_options(images: ImageSet, preferences: Tensor | None) -> Tensor:
        uniform_rewards = evaluate_uniform_options(
            task.backbone, images, task.reward, budget=task.budget, gate_macs=task.gate_macs
        )
        if preferences is None or task.cost_weight_range is None:
            cost_weight = torch.full((len(images),), task.reward.cost, dtype=torch.float64)
        else:
            cost_weight = task.cost_weight_range.at(preferences.double().cpu())
        return uniform_rewards.best_at(cost_weight)

    return target_options


def best_uniform_within_budget(
    backbone: WalkableBackbone, target: Callable[[Tensor], Tensor]
) -> TargetOptions:
    """Choose the option under which labels are likeliest within the gated layers' budget.

    Args:
        backbone: The network, frozen.
        target: That budget as a fraction at each position, float64 ``[n]`` in and out; for a gate
            for one budget it is called with position 1.
    """

    def target_options(images: ImageSet, preferences: Tensor | None) -> Tensor:
        likelihood = RewardWeights(accuracy=0.0, log_likelihood=1.0)
        uniform_rewards = evaluate_uniform_options(backbone, images, likelihood)
        where = torch.ones(len(images)) if preferences is None else preferences.cpu()
        return uniform_rewards.best_within(target(where.double()))

    return target_options


def target_probabilities(target_options: Tensor, costs: CostTable, layer: int) -> Tensor:
    """Return the probability of each action at a layer, float32 ``[n, actions]``; rows sum to 1.

    Args:
        target_options: The option for all layers, int64 ``[n]``.
        costs: Of the network; an exit, if possible, counts as a neighbour of every option.
        layer: Index of the layer.
    """
    menu = torch.arange(len(costs.options), device=target_options.device)
    scores = _NEIGHBOUR * (menu - target_options[:, None]).float().square()
    if costs.exits:
        leaving = _NEIGHBOUR if layer in costs.exits_after else -torch.inf
        scores = torch.cat([scores, scores.new_full((len(target_options), 1), leaving)], dim=1)
    return scores.softmax(dim=1)


def pretraining_images(costs: CostTable) -> int:
    """Return the number of images that pretraining runs."""
    return IMAGES * (len(costs.options) + 1)


def behavior_cloning(
    gate: LearnedGate,
    backbone: WalkableBackbone,
    images: ImageSet,
    target_options: TargetOptions,
    *,
    budget: float | None = None,
    seed: int,
) -> None:
    """Train a gate to draw, at every layer, from the odds around the wanted uniform option.

    Args:
        gate: Changed in place, on the device of ``images``; chooses from all options. A gate for
            all budgets learns the wanted option of each.
        backbone: The network, frozen.
        images: The agent split.
        target_options: Returns the options to imitate.
        budget: Per-input budget that the gate sees.
        seed: Seed of images and draws.
    """
    device = images.labels.device
    generator = torch_generator(seed, "uniform start", device=device)
    rows = torch.randint(len(images), (IMAGES,), generator=generator, device=device)
    drawn = images.subset(rows)
    preferences = None
    if gate.budget_conditioning is not None:
        preferences = torch.rand(IMAGES, generator=generator, device=device)
    options = target_options(drawn, preferences).to(device)
    probabilities, seen = _rollout_targets(
        options, backbone, drawn, preferences, generator, budget=budget, gate_macs=gate.macs
    )
    _fit_gate(gate, probabilities, seen, generator)


def _rollout_targets(
    target_options: Tensor,
    backbone: WalkableBackbone,
    images: ImageSet,
    preferences: Tensor | None,
    generator: torch.Generator,
    *,
    budget: float | None,
    gate_macs: float,
) -> tuple[list[Tensor], list[Observation]]:
    """Return each layer's odds and observations of episodes whose options are drawn from them."""
    probabilities, seen = [], []
    with torch.no_grad():
        state = run_stem(backbone, images.images)
        while state.layer < backbone.costs.n_layers:
            probabilities.append(target_probabilities(target_options, backbone.costs, state.layer))
            seen.append(
                observe(
                    backbone, state, budget=budget, gate_macs=gate_macs, preferences=preferences
                )
            )
            to_stay = probabilities[-1][:, : len(backbone.options)]
            drawn = torch.multinomial(to_stay, 1, generator=generator)[:, 0]
            state = run_layer(backbone, state, drawn)
    return probabilities, seen


def _fit_gate(
    gate: LearnedGate,
    probabilities: Sequence[Tensor],
    seen: Sequence[Observation],
    generator: torch.Generator,
) -> None:
    """Fit a gate to the odds of each layer, from what it sees there."""
    n, device = len(probabilities[0]), probabilities[0].device
    optimizer = torch.optim.Adam(gate.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=_STEPS)
    gate.train()
    for _ in range(_STEPS):
        rows = torch.randint(n, (_BATCH,), generator=generator, device=device)
        gate.reset(_BATCH)
        log_odds = [
            gate(s.features[rows], s.layer, s.context[rows]).log_softmax(dim=1) for s in seen
        ]
        loss = -sum(
            (theirs[rows] * ours).sum(dim=1).mean()
            for theirs, ours in zip(probabilities, log_odds, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    gate.eval()
