"""Cascade of two static bit tables: a cheap one first, an expensive one for unsure answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.base import TableGate


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstPass:
    """First pass of a cascade, whose answer is kept only for confident images.

    Attributes:
        options: Options of that pass, int64 ``[n, layers]``.
        escalated: True for images with a second pass, whose cost is that of both; bool ``[n]``.
    """

    options: Tensor
    escalated: Tensor

    def total_cost(self, last: Tensor, cost_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the total cost of each image, ``[n]``: the last pass, plus this one if escalated.

        ``cost_of`` maps options to costs, and ``last`` is the cost of the last pass.
        """
        return last + cost_of(self.options) * self.escalated

    def cpu(self) -> "FirstPass":
        """Return a copy on the CPU."""
        return FirstPass(options=self.options.cpu(), escalated=self.escalated.cpu())


def confidence(logits: Tensor) -> Tensor:
    """Return the largest class probability, float64 ``[batch]``, of logits ``[batch, classes]``."""
    return logits.double().log_softmax(dim=-1).amax(dim=-1).exp()


class CascadeGate:
    """Cascade: a static bit table, and a second one for images with low confidence.

    Args:
        first: Option index for each layer in the first pass.
        second: Option index for each layer in the second pass.
        threshold: Confidence below which an image gets a second pass; above 1 all images do.
        options: Bit options that the indices refer to.
        name: Name in tables and plots.

    Raises:
        ConfigError: If an index is out of range, the tables differ in length, or the threshold is
            negative or not finite.
    """

    macs = 0.0  # it compares two numbers; both passes count as backbone computation
    budget: float | None = None  # the mean cost is known, and an image may need both passes
    budget_conditioning = None

    def __init__(
        self,
        first: Sequence[int],
        second: Sequence[int],
        *,
        threshold: float,
        options: BitOptions,
        name: str = "cascade",
    ) -> None:
        if len(first) != len(second):
            raise ConfigError(
                f"the tables of a cascade have {len(first)} and {len(second)} layers; they must be "
                "of one network."
            )
        if not 0 <= threshold < math.inf:
            raise ConfigError(
                f"threshold is {threshold}; allowed are numbers from 0 on, where a confidence is "
                "at most 1."
            )
        self.first, self.second = (TableGate(t, options=options) for t in (first, second))
        self.threshold = threshold
        self.options = options
        self.name = name

    @property
    def description(self) -> str:
        """Short description for tables."""
        tables = [[self.options[option] for option in t.table] for t in (self.first, self.second)]
        first, second = (
            str(bits[0]) if len(set(bits)) == 1 else "-".join(map(str, bits)) for bits in tables
        )
        if self.threshold == 0:
            return f"{first} bit for all"
        return f"{first} bit, then {second} bit below a confidence of {self.threshold:.3g}"

    def reset(self, batch_size: int) -> None:
        """Do nothing: the gate has no state."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the layer's option in the first pass for every image."""
        return self.first.decide(features, layer, context)

    def should_escalate(self, logits: Tensor) -> Tensor:
        """Return a mask of the images that need a second pass, by the logits of the first one."""
        return torch.lt(confidence(logits), self.threshold)
