"""Initialization of a gate by behaviour cloning of the best uniform option, or of tuned rules.

Nearly all mixes of options over layers earn less than one option for all layers, and a gate that
starts without a preference has to learn this first. Pretraining therefore imitates the uniform
option with the highest reward at each cost weight, or within each budget. With several passes,
rules act in the environment, and the gate learns what they do from what it sees there itself. The
imitated distribution keeps probability on neighbouring options, and on the other steps at the end
of a pass, so that training still explores them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.validation import rewards_of
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import ImageSet
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.task import Task
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.gating.action_masks import TOLERANCE, gated_budget
from dfs_rl.gating.execution import run_layer, run_stem
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import Observation, observe
from dfs_rl.gating.passes import N_END_ACTIONS
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.gating.rules import RuleGate
from dfs_rl.utils.seeding import torch_generator

IMAGES = 2048
"""Number of images, drawn with repeats, for evaluating the options and for cloning."""
_NEIGHBOUR = -2.0
"""Logit of an option next to the target option; it scales with the squared index distance."""
_STEPS = 300
_BATCH = 256
_LEARNING_RATE = 0.02
EPISODES = 4096
"""Number of episodes, on images drawn with repeats."""
_EXPLORATION = 0.05
"""Probability of the other steps at the end of a pass together."""
_RULE_STEPS = 1500
_RULE_BATCH = 512
_Decisions = tuple[Tensor, Tensor, Tensor]
"""Features ``[n, width]`` and context ``[n, size]``, and probabilities ``[n, actions]``."""


class UniformOptionRewards(NamedTuple):
    """Mean reward and cost of each option when all layers run at it, float64 ``[options]``.

    The reward has no cost term, and is minus infinity above a per-input budget.
    """

    rewards: Tensor
    spent: Tensor

    def best_at(self, cost_weight: Tensor) -> Tensor:
        """Return the best option at each cost weight, int64 ``[n]``; ties go to fewer bits."""
        return (self.rewards - cost_weight[:, None] * self.spent).argmax(dim=1)

    def best_within(self, targets: Tensor) -> Tensor:
        """Return the best option within each target, a fraction, ``[n]``; else the cheapest."""
        within = self.spent <= targets[:, None] + TOLERANCE  # [n, options]
        best = self.rewards.where(within, -torch.inf).argmax(dim=1)
        return torch.where(within.any(dim=1), best, self.spent.argmin())


ChooseOptions = Callable[[UniformOptionRewards, Tensor], Tensor]
"""Maps rewards and preferences, float64 ``[n]``, to the options to imitate, int64 ``[n]``."""


def evaluate_uniform_options(
    backbone: GatedBackbone,
    images: ImageSet,
    weights: RewardWeights,
    *,
    budget: float | None = None,
    gate_macs: float = 0.0,
) -> UniformOptionRewards:
    """Evaluate each bit option at all layers of a backbone in inference form."""
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
        most = gated_budget(costs, budget, gate_macs=gate_macs) + TOLERANCE
        rewards[spent > most] = -torch.inf
    return UniformOptionRewards(rewards, spent)


def target_probabilities(target_options: Tensor, costs: CostTable, layer: int) -> Tensor:
    """Return the probabilities of a layer's actions, ``[n, actions]``; an exit is a neighbour."""
    options = torch.arange(len(costs.options), device=target_options.device)
    scores = _NEIGHBOUR * (options - target_options[:, None]).float().square()
    if costs.exits:
        exit_score = _NEIGHBOUR if layer in costs.exits_after else -torch.inf
        scores = torch.cat([scores, scores.new_full((len(target_options), 1), exit_score)], dim=1)
    return scores.softmax(dim=1)


def pretraining_images(costs: CostTable) -> int:
    """Return the number of images that pretraining runs through the backbone."""
    return IMAGES * (len(costs.options) + 1)


def behavior_cloning(
    gate: LearnedGate,
    backbone: GatedBackbone,
    images: ImageSet,
    weights: RewardWeights,
    choose: ChooseOptions,
    *,
    budget: float | None = None,
    seed: int,
) -> None:
    """Train a gate in place to imitate the best uniform option at every layer.

    The gate, on the device of ``images``, must choose from all options; with budget conditioning it
    learns the option of each preference, else ``choose`` is called with preference 1. Of the
    ``weights`` of the reward the cost weight is ignored. The gate observes the per-input ``budget``
    in percent.
    """
    device = images.labels.device
    generator = torch_generator(seed, "uniform start", device=device)
    rows = torch.randint(len(images), (IMAGES,), generator=generator, device=device)
    drawn = images.subset(rows)
    preferences = None
    if gate.budget_conditioning is not None:
        preferences = torch.rand(IMAGES, generator=generator, device=device)
    uniform = evaluate_uniform_options(backbone, drawn, weights, budget=budget, gate_macs=gate.macs)
    where = torch.ones(1) if preferences is None else preferences.cpu()
    options = choose(uniform, where.double()).to(device).expand(IMAGES)
    seen: list[tuple[Observation, Tensor]] = []
    settings: dict[str, Any] = {"budget": budget, "preferences": preferences}
    with torch.no_grad():
        state = run_stem(backbone, drawn.images)
        while state.layer < backbone.costs.n_layers:
            probabilities = target_probabilities(options, backbone.costs, state.layer)
            observation = observe(backbone, state, gate_macs=gate.macs, **settings)
            seen.append((observation, probabilities))
            to_stay = probabilities[:, : len(backbone.options)]
            sampled = torch.multinomial(to_stay, 1, generator=generator)[:, 0]
            state = run_layer(backbone, state, sampled)

    def cross_entropy() -> Tensor:
        rows = torch.randint(IMAGES, (_BATCH,), generator=generator, device=device)
        gate.reset(_BATCH)
        terms = [
            (wanted[rows] * gate(s.features[rows], s.layer, s.context[rows]).log_softmax(dim=1))
            .sum(dim=1)
            .mean()
            for s, wanted in seen
        ]
        return -torch.stack(terms).sum()

    minimize(gate, cross_entropy, steps=_STEPS)


def minimize(gate: LearnedGate, loss_of_batch: Callable[[], Tensor], *, steps: int) -> None:
    """Minimize a loss by Adam, with a learning rate that falls linearly to 0."""
    optimizer = torch.optim.Adam(gate.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    gate.train()
    for _ in range(steps):
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    gate.eval()


def clone_rules(gate: LearnedGate, rules: RuleGate, task: Task, *, seed: int) -> None:
    """Train a gate, on the device of the task, in place to act as rules do.

    If the task has a range of cost weights, there is a rule for each of evenly spaced preferences.
    """
    device = task.images.labels.device
    generator = torch_generator(seed, "rule start", device=device)
    decisions = _act(gate, rules, task, generator)

    def cross_entropy() -> Tensor:
        loss = torch.zeros((), device=device)
        for layer, (features, context, probabilities) in decisions.items():
            n = len(context)
            rows = torch.randint(n, (min(n, _RULE_BATCH),), generator=generator, device=device)
            log_probabilities = gate(features[rows], layer, context[rows]).log_softmax(dim=1)
            loss = loss - (probabilities[rows] * log_probabilities).sum(dim=1).mean()
        return loss

    minimize(gate, cross_entropy, steps=_RULE_STEPS)


@torch.no_grad()
def _act(
    gate: LearnedGate, rules: RuleGate, task: Task, generator: torch.Generator
) -> dict[int, _Decisions]:
    """Run episodes of the rules, with exploration; return the decisions by layer.

    The end of a pass counts as a layer.
    """
    costs, device = task.backbone.costs, task.images.labels.device
    episodes = BatchedEpisodes(task, EPISODES)
    drawn = torch.randint(len(task.images), (EPISODES,), generator=generator, device=device)
    preferences = None
    if task.cost_weight_range is not None:
        preferences = torch.rand(EPISODES, generator=generator, device=device).double()
    episodes.reset(drawn.cpu().numpy(), None if preferences is None else preferences.cpu().numpy())
    found: dict[int, list[_Decisions]] = {}
    while not episodes.ended.all():
        seen = {key: torch.from_numpy(v).to(device) for key, v in episodes.observation.items()}
        actions = torch.zeros(EPISODES, dtype=torch.int64, device=device)
        running = torch.from_numpy(~episodes.ended).to(device)
        for layer in set(seen["layer"][running].tolist()):
            rows = (running & (seen["layer"] == layer)).nonzero()[:, 0]
            features, context = seen["features"][rows], seen["context"][rows]
            chosen = rules.decide(features, layer, context)
            probabilities = _probabilities(chosen, costs, layer, gate.n_actions)
            actions[rows] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            found.setdefault(layer, []).append((features, context, probabilities))
        episodes.advance(actions.cpu().numpy().astype(np.int64))
    decisions = {}
    for layer, steps in found.items():
        features, context, probabilities = (torch.cat(p) for p in zip(*steps, strict=True))
        decisions[layer] = features, context, probabilities
    return decisions


def _probabilities(chosen: Tensor, costs: CostTable, layer: int, n_actions: int) -> Tensor:
    """Return the probabilities of all actions around the chosen ones, float32 ``[n, actions]``."""
    if layer < costs.n_layers:
        probabilities = target_probabilities(chosen, costs, layer)
        return functional.pad(probabilities, (0, n_actions - probabilities.shape[1]))
    probabilities = torch.full((len(chosen), n_actions), _EXPLORATION / (N_END_ACTIONS - 1))
    probabilities[:, N_END_ACTIONS:] = 0.0
    return probabilities.to(chosen.device).scatter(1, chosen[:, None], 1.0 - _EXPLORATION)
