"""SkipNet (Wang et al., ECCV 2018): skip a layer or run it in full precision.

The first phase is supervised by cross-entropy alone, with hard choices forward and gradients
through the softmax. In the second phase choices are sampled and REINFORCE is added to these
gradients: the reward at the end of an episode is minus its cross-entropy, and each skipped layer
earns alpha / N times its cost ``C``. The paper sets ``C`` to 1 and alpha by hand; here ``C`` is the
layer's share of all costs, and alpha is the Lagrange multiplier of the budget.

Other differences from the paper: the backbone is fixed, the mean return of the batch's other images
is the baseline, and an entropy bonus preserves exploration.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.supervised.config import SkipNetConfig, SupervisedConfig
from dfs_rl.agents.supervised.reinforce import (
    entropy,
    leave_one_out_advantages,
    returns_to_go,
    surrogate,
)
from dfs_rl.agents.supervised.straight_through import (
    StraightThroughRollout,
    argmax_choice,
    sampled_choice,
    straight_through_rollout,
)
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, StepLosses, accuracy_of
from dfs_rl.costs import FULL, SKIP, BitOptions
from dfs_rl.data import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.gating.execution import option_costs
from dfs_rl.utils.seeding import torch_generator


def skip_or_run(menu: BitOptions) -> tuple[int, ...]:
    """Return the indices of SkipNet's two options.

    Raises:
        ConfigError: If one of them is not among the bit options.
    """
    for bits in (SKIP, FULL):
        if bits not in menu.values:
            raise ConfigError(
                f"method is 'skipnet', which skips a layer or runs it at {FULL} bit, "
                f"but the backbone's menu {list(menu)} lacks {bits} bit."
            )
    return menu.indices((SKIP, FULL))


def hybrid_loss(
    rollout: StraightThroughRollout, labels: Tensor, *, option_penalties: Tensor
) -> Tensor:
    """Return the loss of the second phase: cross-entropy plus REINFORCE.

    Args:
        rollout: Rollout with sampled choices.
        labels: Labels, int64 ``[batch]``.
        option_penalties: Weighted cost of each option at each layer, float64 ``[layers, options]``.
    """
    losses = functional.cross_entropy(rollout.logits, labels, reduction="none")  # [batch]
    layers = torch.arange(len(option_penalties), device=rollout.options.device)
    earned = (option_penalties.amax(dim=1, keepdim=True) - option_penalties)[
        layers, rollout.options
    ]  # [batch, layers]
    returns = returns_to_go(earned, -losses.detach().double())
    return losses.mean() + surrogate(
        rollout.probabilities, rollout.options, leave_one_out_advantages(returns)
    )


class SkipNetTrainer(GateTrainer):
    """Trains the gate of SkipNet, which chooses from ``skip_or_run``, for one budget.

    Args:
        skipnet: Hyperparameters of SkipNet.
        config: Hyperparameters of all methods.
        task: Task of the gate.
    """

    def __init__(self, skipnet: SkipNetConfig, config: SupervisedConfig, task: GateTask) -> None:
        super().__init__(config, task)
        self._skipnet = skipnet

    def _learn(self, batch: ImageSet) -> StepLosses:
        task, device = self._task, batch.images.device
        pretraining = self.progress < self._skipnet.pretraining
        generator = torch_generator(task.seed, "skipnet", self.steps, device=device)
        rollout = straight_through_rollout(
            task.backbone,
            self.frozen,
            self.gate,
            batch.images,
            argmax_choice if pretraining else partial(sampled_choice, generator=generator),
        )
        where = torch.ones(1, dtype=torch.float64)
        target, multiplier = float(task.target(where)), float(self._multipliers.at(where))
        relative = rollout.spent.detach() / target  # [batch]
        labels = functional.cross_entropy(rollout.logits, batch.labels)
        if pretraining:
            multiplier, loss = 0.0, labels
        else:
            option_penalties = multiplier * option_costs(task.backbone.costs, device) / target
            loss = hybrid_loss(rollout, batch.labels, option_penalties=option_penalties)
        weight = self._skipnet.ent_coef * (1.0 - self.progress)
        self._descend(loss - weight * entropy(rollout.probabilities, self.gate.choices))
        if not pretraining:
            self._multipliers.update(
                where.expand(len(relative)), relative.cpu(), rate=self._config.multiplier_lr
            )
        return StepLosses(
            labels=float(labels.detach()),
            divergence=None,
            accuracy=accuracy_of(rollout.logits, batch.labels),
            spent=float(relative.mean()),
            multiplier=multiplier,
        )
