"""Dynamic Fractional Skipping (DFS): the straight-through gate of Shen et al., AAAI 2020.

"Fractional Skipping: Towards Finer-Grained Dynamic CNN Inference", Section 3. The gate takes its
most likely option, without noise, and gradients flow through the softmax. The loss adds the batch's
cost with a weight of constant size whose sign changes at the budget: cost is penalized above the
budget and rewarded below it. In the first phase cost is rewarded until the gate executes
everything; only then does a co-trained backbone learn with the gate, by one loss.

The paper's public code rounds activations randomly even at test time; the quantizers here do not.
"""

from collections.abc import Mapping

from torch import Tensor

from dfs_rl.agents.cotraining import CoTrainer
from dfs_rl.agents.supervised.config import SupervisedConfig
from dfs_rl.agents.supervised.relaxed import RelaxedTrainer
from dfs_rl.agents.supervised.straight_through import Estimator, argmax_choice
from dfs_rl.agents.supervised.trainer import GateTask

_EXECUTES_EVERYTHING = 0.95
"""Share of the cost of the largest options at which the first phase ends."""


class DFSTrainer(RelaxedTrainer):
    """Trains the gate of DFS.

    Args:
        config: Hyperparameters.
        task: Task of the gate.
        cotrainer: Trainer of the task's backbone; ``None`` for a fixed backbone.
    """

    def __init__(
        self, config: SupervisedConfig, task: GateTask, cotrainer: CoTrainer | None = None
    ) -> None:
        super().__init__(config, task, cotrainer)
        self._dearest = float(task.backbone.costs.option_costs().amax(dim=1).sum())
        self._executed_everything = False

    @property
    def executed_everything(self) -> bool:
        """True once the first phase is over."""
        return self._executed_everything

    def _estimator(self) -> Estimator:
        return argmax_choice

    def _cost_weights(self, preferences: Tensor, spent: float) -> Tensor:
        weights = self._multipliers.at(preferences)
        rewarded = not self._executed_everything or spent < 1.0
        return -weights if rewarded else weights

    def _adjust(self, preferences: Tensor, relative: Tensor) -> None:
        spent = float((relative * self._task.target(preferences.double())).mean())
        if spent >= _EXECUTES_EVERYTHING * self._dearest:
            self._executed_everything = True

    def _restore_state(self, state: Mapping[str, object]) -> None:
        super()._restore_state(state)
        self._executed_everything = bool(state["executed_everything"])
