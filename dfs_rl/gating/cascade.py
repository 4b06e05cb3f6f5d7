"""A cascade as a gate: a cheap table for every image, a dearer one where the answer is unsure."""

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
    """A complete earlier pass over the backbone whose answer was kept only where it was confident.

    Attributes:
        options: Options of that pass, int64 ``[n, layers]``.
        escalated: Images that were run again, which pay for both passes; bool ``[n]``.
    """

    options: Tensor
    escalated: Tensor

    def total_cost(self, last: Tensor, cost_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what each image costs, ``[n]``: ``last`` for the pass that gave the answer, and this one where there were two.

        Args:
            last: Cost of the last pass.
            cost_of: Turns options into costs.
        """
        return last + cost_of(self.options) * self.escalated

    def cpu(self) -> "FirstPass":
        """Return the same on the CPU."""
        return FirstPass(options=self.options.cpu(), escalated=self.escalated.cpu())


def confidence(logits: Tensor) -> Tensor:
    """Return the largest class probability, float64 ``[batch]``, of logits ``[batch, classes]``."""
    return logits.double().log_softmax(dim=-1).amax(dim=-1).exp()


class CascadeGate:
    """Runs every image by one table, and by another one as well where the first answer is not confident.

    It decides for a pass as a table does; whether there is a second one is asked of it in between,
    see ``should_escalate``.

    Args:
        first: Option index for each layer, for all images.
        second: The same for those that run again.
        threshold: Images whose first answer has a confidence below it run again. From above 1 on,
            all do.
        options: The menu that the indices belong to.
        name: What tables and plots call it.

    Raises:
        ConfigError: If an index is not on the menu, the tables differ in length, or the threshold
            is no number from 0 on.
    """

    macs = 0.0
    """To compare two numbers takes none; what both passes take is the backbone's."""
    budget: float | None = None
    """What it costs on average was known when it was made; a single image may cost both passes."""
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
        self._running = self.first

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        tables = [[self.options[option] for option in t.table] for t in (self.first, self.second)]
        first, second = (
            str(bits[0]) if len(set(bits)) == 1 else "-".join(map(str, bits)) for bits in tables
        )
        if self.threshold == 0:
            return f"{first} bit for all"
        return f"{first} bit, then {second} bit below a confidence of {self.threshold:.3g}"

    def reset(self, batch_size: int) -> None:
        """Begin the first pass."""
        self._running = self.first
        self._running.reset(batch_size)

    def start_second_pass(self, batch_size: int) -> None:
        """Begin the second pass, of as many images."""
        self._running = self.second
        self._running.reset(batch_size)

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the layer's option in this pass for every image."""
        return self._running.decide(features, layer, context)

    def should_escalate(self, logits: Tensor) -> Tensor:
        """Return which images run again, bool ``[batch]``, by the logits of the first pass."""
        return torch.lt(confidence(logits), self.threshold)
