"""Initialization of a gate by behaviour cloning of threshold rules over several passes.

The rules act in the environment, and the gate learns what they do from what it sees there itself.
The imitated distribution keeps some probability on neighbouring options and on the other steps at
the end of a pass, so that training still explores them.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfs_rl.agents.pretraining import target_probabilities
from dfs_rl.costs import CostTable
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.task import Task
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import N_END_ACTIONS
from dfs_rl.gating.rules import RuleGate
from dfs_rl.utils.seeding import torch_generator

EPISODES = 4096
"""Number of episodes, on images drawn with repeats."""
_EXPLORATION = 0.05
"""Probability of the other steps at the end of a pass together."""
_STEPS = 1500
_BATCH = 512
_LEARNING_RATE = 0.02


class _Decisions(NamedTuple):
    """What the gate sees at one layer, or at the end of a pass, and how it should act."""

    features: Tensor  # float32 [n, width]
    context: Tensor  # float32 [n, size]
    probabilities: Tensor  # of the actions, float32 [n, actions]


def clone_rules(gate: LearnedGate, rules: RuleGate, task: Task, *, seed: int) -> None:
    """Train a gate in place to act as rules do.

    Args:
        gate: Gate on the device of the task.
        rules: The rules, with one for each of evenly spaced preferences if the task has a range of
            cost weights.
        task: Task of the training.
        seed: Seed of the images and of the random draws.
    """
    device = task.images.labels.device
    generator = torch_generator(seed, "rule start", device=device)
    decisions = _act(gate, rules, task, generator)
    optimizer = torch.optim.Adam(gate.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=_STEPS)
    gate.train()
    for _ in range(_STEPS):
        loss = torch.zeros((), device=device)
        for layer, each in decisions.items():
            n = len(each.context)
            rows = torch.randint(n, (min(n, _BATCH),), generator=generator, device=device)
            logits = gate(each.features[rows], layer, each.context[rows])
            log_probabilities = logits.log_softmax(dim=1)
            loss = loss - (each.probabilities[rows] * log_probabilities).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    gate.eval()


@torch.no_grad()
def _act(
    gate: LearnedGate, rules: RuleGate, task: Task, generator: torch.Generator
) -> dict[int, _Decisions]:
    """Run episodes of the rules, with exploration; return the decisions at each layer."""
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
            each = _Decisions(features, context, probabilities)
            found.setdefault(layer, []).append(each)
        episodes.advance(actions.cpu().numpy().astype(np.int64))
    return {
        layer: _Decisions(*(torch.cat(parts) for parts in zip(*each, strict=True)))
        for layer, each in found.items()
    }


def _probabilities(chosen: Tensor, costs: CostTable, layer: int, n_actions: int) -> Tensor:
    """Return the probabilities of all actions around the chosen ones, float32 ``[n, actions]``."""
    if layer < costs.n_layers:
        probabilities = target_probabilities(chosen, costs, layer)
        missing = n_actions - probabilities.shape[1]
        return torch.nn.functional.pad(probabilities, (0, missing))
    probabilities = torch.full((len(chosen), n_actions), _EXPLORATION / (N_END_ACTIONS - 1))
    probabilities[:, N_END_ACTIONS:] = 0.0
    probabilities = probabilities.to(chosen.device)
    return probabilities.scatter(1, chosen[:, None], 1.0 - _EXPLORATION)
