"""Records of a gate on every image of a split, with accuracy and cost derived from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dfs_rl.costs import CostTable, Counting
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.metrics import accuracy_percent, distinct_patterns, option_histogram
from dfs_rl.gating.cascade import FirstPass


@dataclass(frozen=True, kw_only=True, eq=False)
class GateRecords:
    """Outcome of one method on every image of a split, on the CPU and in the split's order.

    Attributes:
        name: Name of the method in tables.
        predictions: Predicted class, int64 ``[n]``.
        labels: True class, int64 ``[n]``.
        options: Actions of each image in the pass that made the prediction, int64 ``[n, layers]``.
        log_likelihood: Log-probability of the true class, float64 ``[n]``.
        confidence: Largest class probability, float64 ``[n]``.
        gate_macs: MACs per image of the gate, 0 for methods that decide without a network.
        gate_macs_taken: MACs of the gate for each image if some exit early, float64 ``[n]``; None
            if every image takes ``gate_macs``.
        feature_macs: Those among them that compute features at the precision of the stem, float64
            ``[n]``; None for methods without features.
        first_pass: First pass of a cascade, None for methods with a single pass.

    Raises:
        ConfigError: If there is no image or the fields differ in their number of images.
    """

    name: str
    predictions: Tensor
    labels: Tensor
    options: Tensor
    log_likelihood: Tensor
    confidence: Tensor
    gate_macs: float = 0.0
    gate_macs_taken: Tensor | None = None
    feature_macs: Tensor | None = None
    first_pass: FirstPass | None = None

    def __post_init__(self) -> None:
        n = self.labels.shape[0]
        if n == 0:
            raise ConfigError(f"the records of {self.name!r} have no image; at least 1 is needed.")
        names = ("predictions", "labels", "options", "log_likelihood", "confidence")
        fields: dict[str, Tensor] = {name: getattr(self, name) for name in names}
        if self.gate_macs_taken is not None:
            fields["gate_macs_taken"] = self.gate_macs_taken
        if self.feature_macs is not None:
            fields["feature_macs"] = self.feature_macs
        if self.first_pass is not None:
            fields["first_pass.options"] = self.first_pass.options
            fields["first_pass.escalated"] = self.first_pass.escalated
        for field, value in fields.items():
            shape = "[n, layers]" if field.endswith("options") else "[n]"
            if value.dim() != len(shape.split(",")) or value.shape[0] != n:
                raise ConfigError(
                    f"{field} of the records of {self.name!r} has shape {tuple(value.shape)}; "
                    f"allowed is {shape} with n = {n}."
                )

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def correct(self) -> Tensor:
        """Correctness of each prediction, bool ``[n]``."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        return accuracy_percent(self.correct)

    @property
    def patterns(self) -> int:
        """Number of distinct rows of ``options``."""
        return distinct_patterns(self.options)

    def histogram(self, n_options: int) -> Tensor:
        """Return the share of images per layer and option, float64 ``[layers, options]``."""
        return option_histogram(self.options, n_options)

    @property
    def _gate(self) -> float | Tensor:
        return self.gate_macs if self.gate_macs_taken is None else self.gate_macs_taken

    def exit_shares(self, costs: CostTable) -> tuple[float, ...]:
        """Return the share of images that take each exit, in [0, 1]."""
        n_layers_run = costs.n_layers_run(self.options)
        return tuple((n_layers_run == after).double().mean().item() for after in costs.exits_after)

    def computation(self, costs: CostTable, counting: Counting = "full") -> Tensor:
        """Return the computation of each image in percent, float64 ``[n]``."""
        spent = costs.computation(self.options, gate_macs=self._gate, counting=counting)
        if self.first_pass is None:
            return spent
        return self.first_pass.total_cost(spent, partial(costs.computation, counting=counting))

    def bitops(self, costs: CostTable) -> Tensor:
        """Return the BitOPs of each image, fixed parts and gate included, float64 ``[n]``."""
        features = 0.0 if self.feature_macs is None else self.feature_macs
        spent = costs.bitops(self.options, gate_macs=self._gate, feature_macs=features)
        if self.first_pass is None:
            return spent
        return self.first_pass.total_cost(spent, costs.bitops)


def concatenate(parts: Sequence[GateRecords]) -> GateRecords:
    """Concatenate the records of consecutive batches of one method."""

    def join(field: str) -> Tensor:
        return torch.cat([getattr(part, field) for part in parts])

    firsts = [part.first_pass for part in parts if part.first_pass is not None]
    return GateRecords(
        name=parts[0].name,
        predictions=join("predictions"),
        labels=join("labels"),
        options=join("options"),
        log_likelihood=join("log_likelihood"),
        confidence=join("confidence"),
        gate_macs=parts[0].gate_macs,
        gate_macs_taken=None if parts[0].gate_macs_taken is None else join("gate_macs_taken"),
        feature_macs=None if parts[0].feature_macs is None else join("feature_macs"),
        first_pass=FirstPass(
            options=torch.cat([first.options for first in firsts]),
            escalated=torch.cat([first.escalated for first in firsts]),
        )
        if firsts
        else None,
    )
