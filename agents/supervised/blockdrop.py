"""BlockDrop (Wu et al., CVPR 2018): one decision on all layers, by reinforcement learning alone.

``docs/methods/blockdrop.md`` has the reward, the curriculum and the differences from the paper.
"""

import torch
from torch import Tensor

from dfs_rl.agents.supervised.config import BlockDropConfig, SupervisedConfig
from dfs_rl.agents.supervised.estimators import reinforce_loss, sampled_choice
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, Metrics, step_metrics
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.data import ImageSet
from dfs_rl.gating.execution import ExecutionState, run_stem, run_to_head
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import observe


def decide_at_once(gate: LearnedGate, backbone: GatedBackbone, state: ExecutionState) -> Tensor:
    """Return the gate's logits at all layers, float32 ``[batch, layers, choices]``."""
    with torch.no_grad():
        seen = observe(backbone, state, budget=None)
    gate.reset(len(state.spent))
    logits = [gate(seen.features, layer, seen.context) for layer in range(backbone.costs.n_layers)]
    return torch.stack(logits, dim=1)[:, :, list(gate.choices)]


def bounded_probabilities(logits: Tensor, bound: float) -> Tensor:
    """Return sampling probabilities, the softmax mixed with its complement.

    With two choices this is the formula of the paper. Probabilities are between
    ``(1 - bound) / (choices - 1)`` and ``bound``, and rows sum to 1.
    """
    probabilities, others = logits.softmax(dim=-1), logits.shape[-1] - 1
    if others == 0:
        return probabilities
    return bound * probabilities + (1.0 - bound) * (1.0 - probabilities) / others


@torch.no_grad()
def run_options(backbone: GatedBackbone, state: ExecutionState, options: Tensor) -> Tensor:
    """Run the remaining layers at ``options``, int64 ``[batch, layers]``, and return logits."""
    return run_to_head(backbone, state, lambda at: options[:, at.layer])


def episode_rewards(right: Tensor, paid: Tensor, *, penalty: float) -> Tensor:
    """Return the reward, ``1 - paid`` for right and ``-penalty`` for wrong answers, ``[batch]``."""
    return torch.where(right, 1.0 - paid, torch.full_like(paid, -penalty))


def open_layers(n_layers: int, progress: float, *, curriculum: float) -> int:
    """Return the number of open layers, from 1 at the start to all at progress ``curriculum``."""
    return min(n_layers, 1 + int(n_layers * progress / curriculum))


class BlockDropTrainer(GateTrainer):
    """Trains the gate of BlockDrop for one budget.

    Each image runs twice, under sampled and under the most likely options. Metrics and the Lagrange
    multiplier follow the latter, which the deployed gate chooses.
    """

    def __init__(
        self, config: SupervisedConfig, task: GateTask, *, blockdrop: BlockDropConfig
    ) -> None:
        super().__init__(config, task)
        self._blockdrop = blockdrop

    def _learn(self, batch: ImageSet) -> Metrics:
        settings = self._blockdrop
        n_layers = self.frozen.costs.n_layers
        opened = open_layers(n_layers, self.progress, curriculum=settings.curriculum)
        with torch.no_grad():
            state = run_stem(self.frozen, batch.images)
        logits = decide_at_once(self.gate, self.frozen, state)[:, -opened:]
        probabilities = bounded_probabilities(logits, settings.bound)  # [batch, opened, choices]
        log_probabilities = probabilities.detach().flatten(0, 1).log()
        drawn, _ = sampled_choice(log_probabilities, generator=self._generator("blockdrop"))
        drawn = drawn.view(len(logits), opened)
        likeliest = logits.argmax(dim=2)  # [batch, opened]
        where = torch.ones(1, dtype=torch.float64)
        multiplier = float(self._multipliers.at(where))
        answers, relative, rewards = [], [], []
        for picked in (drawn, likeliest):
            answers.append(run_options(self.frozen, state, self._complete(picked)))
            relative.append(self._relative(picked))
            right, paid = answers[-1].argmax(dim=1) == batch.labels, multiplier * relative[-1]
            rewards.append(episode_rewards(right, paid, penalty=settings.penalty))
        advantages = (rewards[0] - rewards[1])[:, None].expand(-1, opened)
        self._descend(reinforce_loss(probabilities, drawn, advantages))
        self._multipliers.update(where.expand(len(logits)), relative[1].cpu())
        spent = float(relative[1].mean())
        return step_metrics(answers[1], batch.labels, spent=spent, multiplier=multiplier)

    def _complete(self, picked: Tensor) -> Tensor:
        """Return the options of all layers ``[batch, layers]``, from choices of open layers."""
        choices = torch.tensor(self.gate.choices, device=picked.device)
        closed = self.frozen.costs.n_layers - picked.shape[1]
        return torch.cat([choices[-1].expand(len(picked), closed), choices[picked]], dim=1)

    def _relative(self, picked: Tensor) -> Tensor:
        """Return the cost of open layers over their share of the budget, float64 ``[batch]``."""
        opened = picked.shape[1]
        costs = self.frozen.costs.option_costs(picked.device)
        options = self._complete(picked)[:, -opened:]
        spent = costs[-opened:][torch.arange(opened, device=picked.device), options].sum(dim=1)
        share = costs[-opened:].amax(dim=1).sum() / costs.amax(dim=1).sum()
        return spent / (share * float(self._task.target(torch.ones(1, dtype=torch.float64))))
