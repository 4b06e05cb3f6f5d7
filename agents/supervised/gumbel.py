"""Gates that learn by supervision: hard choices, gradients through a relaxation, and a budget that is held on average.

Two methods share one loop. ``gumbel`` draws by the straight-through Gumbel-softmax and pays a price for computation that rises
while the gate spends more than its budget and falls while it spends less; with a dial it learns many budgets at once, each with a
price of its own. ``dfs`` is the gate of Dynamic Fractional Skipping (Shen
et al., AAAI 2020): no noise, and a cost term of fixed weight whose sign flips at the budget, after a first phase in which the gate
learns to execute everything.

The paper's second phase trains gate and backbone together, by one loss. So does a trainer with a ``CoTrainer``, whose loss on images
of the train split joins the gate's on the agent split in one backward pass: the weights take no gradients from the gate's images,
whose labels must stay unknown to them, and the gate none from the weights' images, on which hardly any choice is wrong. The price
of computation is the gate's alone in either case, for what an option costs does not depend on weights.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.cotraining import CoTrainer, CoTrainLosses
from dfs_rl.agents.supervised.config import RelaxedMethod, SupervisedConfig
from dfs_rl.agents.supervised.straight_through import (
    Estimator,
    argmax_choice,
    gumbel_choice,
    soft_walk,
)
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, StepLosses, accuracy_of
from dfs_rl.data import ImageSet
from dfs_rl.utils.seeding import torch_generator

_EXECUTES_EVERYTHING = 0.95
"""Of what the dearest options cost, where the first phase of dfs ends."""


class SupervisedTrainer(GateTrainer):
    """See the module; a gate with a dial learns many budgets at once: each image draws a position.

    Args:
        method: How choices are made and the budget is held.
        config: Hyperparameters.
        task: What to learn on.
        cotrainer: Of the task's backbone, once a dfs gate has learned to execute everything; ``None`` leaves it frozen.
    """

    def __init__(
        self,
        method: RelaxedMethod,
        config: SupervisedConfig,
        task: GateTask,
        cotrainer: CoTrainer | None = None,
    ) -> None:
        super().__init__(config, task)
        self._method = method
        self._cotrainer = cotrainer
        self._dearest = float(task.backbone.costs.option_costs().amax(dim=1).sum())
        self._executed_everything = method != "dfs"

    def _learn(self, batch: ImageSet) -> StepLosses:
        config, task = self._config, self._task
        positions = self._positions(batch.images)
        with self._cotrainer.resting() if self._cotrainer else nullcontext():
            walk = soft_walk(
                task.backbone,
                self.frozen,
                self.gate,
                batch.images,
                self._estimator(),
                positions=positions,
            )
        labels = functional.cross_entropy(walk.logits, batch.labels)
        where = torch.ones(len(batch.images)) if positions is None else positions.cpu()
        relative = walk.spent / task.target(where.double()).to(walk.spent.device)  # [batch]
        spent = float(relative.detach().mean())
        prices = self._signed_prices(where, spent)
        loss = labels + (prices.to(relative.device) * relative).mean()
        divergence: Tensor | None = None
        if config.distillation:
            divergence = self._divergence(batch.images, walk.logits)
            loss = loss + config.distillation * divergence
        taught = self._descend_together(loss)
        self._adjust(where, relative.detach().cpu())
        return StepLosses(
            labels=float(labels.detach()),
            divergence=None if divergence is None else float(divergence.detach()),
            accuracy=accuracy_of(walk.logits, batch.labels),
            spent=spent,
            price=float(prices.mean()),
            backbone=None if taught is None else taught.gated,
        )

    def _descend_together(self, loss: Tensor) -> CoTrainLosses | None:
        """Take a step of the gate and, where it learns, of the backbone; returns what the backbone learned from."""
        if self._cotrainer is None or not self._executed_everything:
            self._descend(loss)
            return None
        prepared = self._cotrainer.prepare_step(self.gate)
        self._descend(loss + prepared.loss)
        self._cotrainer.finish_step()
        self.frozen = self._cotrainer.freeze()
        return prepared.losses

    def tensors(self) -> dict[str, Tensor]:
        """See ``GateTrainer``."""
        return super().tensors() | (self._cotrainer.tensors() if self._cotrainer else {})

    @property
    def state(self) -> dict[str, object]:
        """See ``GateTrainer``."""
        steps = self._cotrainer.steps if self._cotrainer else 0
        return super().state | {
            "executed_everything": self._executed_everything,
            "backbone_steps": steps,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        """See ``GateTrainer``."""
        super().restore(tensors, state)
        if self._cotrainer is not None:
            self._cotrainer.restore(tensors, int(str(state["backbone_steps"])))
            self.frozen = self._cotrainer.freeze()

    def _restore_state(self, state: Mapping[str, object]) -> None:
        super()._restore_state(state)
        self._executed_everything = bool(state["executed_everything"])

    def _estimator(self) -> Estimator:
        if self._method == "dfs":
            return argmax_choice
        config, task = self._config, self._task
        ratio = config.final_temperature / config.temperature
        temperature = config.temperature * ratio**self.progress
        device = task.images.labels.device
        generator = torch_generator(task.seed, "gumbel", self.steps, device=device)
        return partial(gumbel_choice, temperature=temperature, generator=generator)

    def _positions(self, images: Tensor) -> Tensor | None:
        """Draw a position of the gate's dial for each image, ``None`` without a dial."""
        if self.gate.dial is None:
            return None
        generator = torch_generator(self._task.seed, "dial", self.steps, device=images.device)
        return torch.rand(len(images), generator=generator, device=images.device)

    def _signed_prices(self, positions: Tensor, spent: float) -> Tensor:
        """Return what each image pays for its computation relative to its target, float64 ``[batch]``."""
        prices = self._prices.at(positions)
        if self._method == "gumbel":
            return prices
        rewarded = not self._executed_everything or spent < 1.0
        return -prices if rewarded else prices

    def _adjust(self, positions: Tensor, relative: Tensor) -> None:
        """Move the prices, or the phase, by what the images of the last batch cost relative to their targets."""
        if self._method == "gumbel":
            self._prices.follow(positions, relative, rate=self._config.price_rate)
        else:
            spent = float((relative * self._task.target(positions.double())).mean())
            if spent >= _EXECUTES_EVERYTHING * self._dearest:
                self._executed_everything = True

    def _divergence(self, images: Tensor, logits: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the walk's answer from the full-precision network's."""
        frozen = self.frozen
        with torch.no_grad():
            hidden = frozen.stem(images)
            for layer in frozen.layers:
                hidden = layer(hidden, frozen.options[frozen.options.full])
            teacher = frozen.head(hidden).log_softmax(dim=1)
        return functional.kl_div(
            logits.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True
        )
