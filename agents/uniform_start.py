"""Where reinforcement begins: at the uniform option that is worth most at each price of computation.

Nearly all ways to mix options over layers are worse than running all layers alike, and a policy that begins indifferent spends its
decisions on telling them apart: on a ResNet-20 for CIFAR-10 its gates ended below the best uniform option of each price, which
needs no gate. One that begins there has only to learn where to depart from it, layer by layer and image by image. Before the
first decision the gate imitates that choice (behaviour cloning) with odds that leave the neighbours on the menu to be tried.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from agents.validation import rewards_of
from dfs_rl.cost import CostTable
from dfs_rl.data import ImageSet
from dfs_rl.evaluation.run_gate import evaluate_table
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.observation import observe
from dfs_rl.gating.walk import start, step
from dfs_rl.seeding import torch_generator
from envs.task import Task

IMAGES = 2048
"""Of the agent split, drawn with repeats, that every option is tried on, and that are walked once to be imitated on."""
_NEIGHBOUR = -2.0
"""Log-odds of an option one place away on the menu; they fall with the square of the distance."""
_STEPS = 300
_BATCH = 256
_LEARNING_RATE = 0.02


class UniformWorth(NamedTuple):
    """What it is worth to run all layers alike.

    Attributes:
        rewards: Mean reward of each option but for the price of computation, float64 ``[options]``; minus infinity where it exceeds
            the budget.
        spent: What it costs, as a fraction, float64 ``[options]``.
    """

    rewards: Tensor
    spent: Tensor

    def best(self, prices: Tensor) -> Tensor:
        """Return the option that is worth most at each price, float64 ``[n]`` to int64 ``[n]``; the cheaper one of equals."""
        return (self.rewards - prices[:, None] * self.spent).argmax(dim=1)


def uniform_worth(task: Task, images: ImageSet) -> UniformWorth:
    """Try every option of the menu at all layers of a task's network on some images."""
    costs = task.backbone.costs
    options = range(len(task.backbone.options))
    records = [
        evaluate_table(task.backbone, images, (option,) * costs.n_layers, name="")
        for option in options
    ]
    free = replace(task.weights, cost=0.0)
    rewards = torch.stack(
        [rewards_of(record, costs, free, budget=task.budget).mean() for record in records]
    )
    spent = torch.stack([costs.fractions(record.options[:1])[0] for record in records])
    if task.gated_budget is not None:
        rewards[spent > task.gated_budget] = -torch.inf
    return UniformWorth(rewards, spent)


def odds_around(wanted: Tensor, costs: CostTable, layer: int) -> Tensor:
    """Return how likely each action is to be tried at a layer, float32 ``[n, actions]``; rows sum to 1.

    Args:
        wanted: The option that all layers should run at, int64 ``[n]``.
        costs: Of the network; leaving it, where that is possible, counts as a neighbour of every option.
        layer: Index of the layer.
    """
    menu = torch.arange(len(costs.options), device=wanted.device)
    scores = _NEIGHBOUR * (menu - wanted[:, None]).float().square()
    if costs.exits:
        leaving = _NEIGHBOUR if layer in costs.exits_after else -torch.inf
        scores = torch.cat([scores, scores.new_full((len(wanted), 1), leaving)], dim=1)
    return scores.softmax(dim=1)


def walks_to_begin(costs: CostTable) -> int:
    """Return how many images are walked before the first decision is learned from."""
    return IMAGES * (len(costs.options) + 1)


def begin_uniform(gate: LearnedGate, task: Task, *, seed: int) -> None:
    """Let a gate draw, at every layer, from the odds around the uniform option that is worth most at its price.

    Args:
        gate: Changed in place, on the device of the task's images; it chooses from the whole menu.
        task: What it will learn on.
        seed: Of the images and the draws.
    """
    device = task.images.labels.device
    generator = torch_generator(seed, "uniform start", device=device)
    rows = torch.randint(len(task.images), (IMAGES,), generator=generator, device=device)
    images = task.images.subset(rows)
    positions = None
    prices = torch.full((IMAGES,), task.weights.cost, dtype=torch.float64, device=device)
    if task.prices is not None:
        positions = torch.rand(IMAGES, generator=generator, device=device)
        prices = task.prices.weights(positions.double())
    worth = uniform_worth(task, images)
    wanted = UniformWorth(*(part.to(device) for part in worth)).best(prices)
    _imitate(gate, task, images, positions, wanted, generator)


def _imitate(
    gate: LearnedGate,
    task: Task,
    images: ImageSet,
    positions: Tensor | None,
    wanted: Tensor,
    generator: torch.Generator,
) -> None:
    """Fit a gate to the odds around what is wanted, on what it sees while options are drawn from them."""
    backbone, device = task.backbone, wanted.device
    seen, odds = [], []
    with torch.no_grad():
        state = start(backbone, images.images)
        while state.layer < backbone.costs.n_layers:
            odds.append(odds_around(wanted, backbone.costs, state.layer))
            seen.append(observe(backbone, state, budget=task.budget, positions=positions))
            to_stay = odds[-1][:, : len(backbone.options)]
            drawn = torch.multinomial(to_stay, 1, generator=generator)[:, 0]
            state = step(backbone, state, drawn)
    optimizer = torch.optim.Adam(gate.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=_STEPS)
    gate.train()
    for _ in range(_STEPS):
        rows = torch.randint(len(wanted), (_BATCH,), generator=generator, device=device)
        gate.reset(_BATCH)
        log_odds = [
            gate(s.features[rows], s.layer, s.context[rows]).log_softmax(dim=1) for s in seen
        ]
        loss = -sum(
            (theirs[rows] * ours).sum(dim=1).mean()
            for theirs, ours in zip(odds, log_odds, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    gate.eval()
