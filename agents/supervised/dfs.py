"""Dynamic Fractional Skipping (DFS): the straight-through gate of Shen et al., AAAI 2020.

The weight of the cost in the loss has a constant size, and its sign changes at the budget. In the
first phase cost is rewarded until the gate executes everything; only then does a co-trained
backbone learn too. ``docs/methods/dfs.md`` has the loss and the differences from the paper.
"""

from collections.abc import Mapping

from torch import Tensor

from dfs_rl.agents.supervised.estimators import Estimator, argmax_choice
from dfs_rl.agents.supervised.gumbel import GumbelTrainer
from dfs_rl.agents.supervised.trainer import TrainerState

_EXECUTES_EVERYTHING = 0.95
"""Share of the cost of the largest options at which the first phase ends."""


class DFSTrainer(GumbelTrainer):
    """Trains the gate of DFS; it differs from a Gumbel gate in choices and cost weights."""

    executed_everything = False

    def _estimator(self) -> Estimator:
        return argmax_choice

    def _cost_weights(self, preferences: Tensor, spent: float) -> Tensor:
        weights = self._multipliers.at(preferences)
        return weights if self.executed_everything and spent >= 1.0 else -weights

    def _adjust(self, preferences: Tensor, relative: Tensor) -> None:
        spent = float((relative * self._task.target(preferences.double())).mean())
        largest = float(self._task.backbone.costs.option_costs().amax(dim=1).sum())
        if spent >= _EXECUTES_EVERYTHING * largest:
            self.executed_everything = True

    def restore(self, tensors: Mapping[str, Tensor], state: TrainerState) -> None:
        """Restore gate, backbone and phase from ``tensors`` and ``state``."""
        super().restore(tensors, state)
        self.executed_everything = bool(state.executed_everything)
