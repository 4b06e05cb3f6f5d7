"""SkipNet (Wang et al., ECCV 2018): skip a layer or run it in full precision.

The first phase is supervised; in the second one REINFORCE is added to its gradients.
``docs/methods/skipnet.md`` has both losses and the differences from the paper.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.supervised.config import SkipNetConfig, SupervisedConfig
from dfs_rl.agents.supervised.estimators import (
    StraightThroughRollout,
    argmax_choice,
    reinforce_loss,
    sampled_choice,
    straight_through_rollout,
)
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, Metrics, step_metrics
from dfs_rl.data import ImageSet


def leave_one_out_advantages(returns: Tensor) -> Tensor:
    """Return the returns minus the mean return of the other images, ``[batch, layers]``.

    These do not depend on an image's decisions, so the gradient stays unbiased. A batch of one
    image has no baseline.
    """
    others = len(returns) - 1
    if others == 0:
        return returns
    return returns - (returns.sum(dim=0) - returns) / others


def entropy(probabilities: Tensor, choices: Sequence[int]) -> Tensor:
    """Return the entropy of an image's decisions, summed over layers and averaged, in nats.

    Options ``[batch, layers, options]`` outside ``choices`` have probability 0 and no gradient.
    """
    each: Tensor = torch.special.entr(probabilities[:, :, list(choices)])  # of the same shape
    return each.sum(dim=(1, 2)).mean()


def hybrid_loss(
    rollout: StraightThroughRollout, labels: Tensor, *, option_penalties: Tensor
) -> Tensor:
    """Return the loss of the second phase, with sampled choices: cross-entropy plus REINFORCE.

    ``option_penalties`` are the weighted costs of the options, float64 ``[layers, options]``.
    """
    losses = functional.cross_entropy(rollout.logits, labels, reduction="none")  # [batch]
    layers = torch.arange(len(option_penalties), device=rollout.options.device)
    saved = option_penalties.amax(dim=1, keepdim=True) - option_penalties  # [layers, options]
    earned = saved[layers, rollout.options]  # [batch, layers]
    returns = earned.flip(1).cumsum(dim=1).flip(1) - losses.detach().double()[:, None]
    return losses.mean() + reinforce_loss(
        rollout.probabilities, rollout.options, leave_one_out_advantages(returns)
    )


class SkipNetTrainer(GateTrainer):
    """Trains the gate of SkipNet for one budget."""

    def __init__(self, config: SupervisedConfig, task: GateTask, *, skipnet: SkipNetConfig) -> None:
        super().__init__(config, task)
        self._skipnet = skipnet

    def _learn(self, batch: ImageSet) -> Metrics:
        task = self._task
        pretraining = self.progress < self._skipnet.pretraining
        sampled = partial(sampled_choice, generator=self._generator("skipnet"))
        choose = argmax_choice if pretraining else sampled
        rollout = straight_through_rollout(
            task.backbone, self.frozen, self.gate, batch.images, choose
        )
        where = torch.ones(1, dtype=torch.float64)
        target, multiplier = float(task.target(where)), float(self._multipliers.at(where))
        relative = rollout.spent.detach() / target  # [batch]
        labels = functional.cross_entropy(rollout.logits, batch.labels)
        if pretraining:
            multiplier, loss = 0.0, labels
        else:
            costs = task.backbone.costs.option_costs(batch.images.device)
            loss = hybrid_loss(rollout, batch.labels, option_penalties=multiplier * costs / target)
        weight = self._skipnet.ent_coef * (1.0 - self.progress)
        self._descend(loss - weight * entropy(rollout.probabilities, self.gate.choices))
        if not pretraining:
            self._multipliers.update(where.expand(len(relative)), relative.cpu())
        spent = float(relative.mean())
        return step_metrics(rollout.logits, batch.labels, spent=spent, multiplier=multiplier)
