"""Gumbel gate: straight-through Gumbel-softmax with Lagrange multipliers for the budget.

Options are sampled by the straight-through Gumbel-softmax (Jang et al., ICLR 2017; Maddison et al.,
ICLR 2017) at a temperature that falls exponentially. The multiplier rises while the cost is above
the budget and falls while it is below. A budget-conditioned gate interpolates multipliers between
preferences.
"""

from functools import partial

from torch import Tensor

from dfs_rl.agents.supervised.relaxed import RelaxedTrainer
from dfs_rl.agents.supervised.straight_through import Estimator, gumbel_choice
from dfs_rl.utils.seeding import torch_generator


class GumbelTrainer(RelaxedTrainer):
    """Trains a Gumbel gate."""

    def _estimator(self) -> Estimator:
        config, task = self._config, self._task
        ratio = config.final_temperature / config.temperature
        temperature = config.temperature * ratio**self.progress
        device = task.images.labels.device
        generator = torch_generator(task.seed, "gumbel", self.steps, device=device)
        return partial(gumbel_choice, temperature=temperature, generator=generator)

    def _cost_weights(self, preferences: Tensor, spent: float) -> Tensor:
        del spent
        return self._multipliers.at(preferences)

    def _adjust(self, preferences: Tensor, relative: Tensor) -> None:
        self._multipliers.update(preferences, relative, rate=self._config.multiplier_lr)
