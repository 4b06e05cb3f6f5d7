"""Gate that is linear in its features."""

from torch import nn

import dfs_rl
from dfs_rl.gating.networks import LearnedGate


@dfs_rl.register_gate("linear")
class LinearGate(LearnedGate):
    def _build(self, sizes):
        self.networks = nn.ModuleList(nn.Linear(size, len(self.choices)) for size in sizes)

    def _score(self, features, layer, context):
        return self.networks[layer](self._inputs(features, layer, context))
