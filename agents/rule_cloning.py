"""Initialization of a gate by behaviour cloning of rules over several passes.

The rules act in the environment, and the gate learns what they do from what it sees there itself.
The imitated distribution keeps some probability on neighbouring options and on the other steps at
the end of a pass, so that training still explores them.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.pretraining import minimize, target_probabilities
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

_Decisions = tuple[Tensor, Tensor, Tensor]
"""Features ``[n, width]`` and context ``[n, size]``, and probabilities ``[n, actions]``."""


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
            rows = torch.randint(n, (min(n, _BATCH),), generator=generator, device=device)
            log_probabilities = gate(features[rows], layer, context[rows]).log_softmax(dim=1)
            loss = loss - (probabilities[rows] * log_probabilities).sum(dim=1).mean()
        return loss

    minimize(gate, cross_entropy, steps=_STEPS)


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
