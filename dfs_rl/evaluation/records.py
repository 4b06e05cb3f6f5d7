"""Records of a gate on every image of a split, with accuracy and cost derived from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.costs import CostTable, Counting
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.metrics import accuracy_percent
from dfs_rl.gating.passes import EarlierPasses


@dataclass(frozen=True, kw_only=True, eq=False)
class GateRecords:
    """Outcome of one method on every image of a split, on the CPU and in the split's order.

    Raises:
        ConfigError: If there is no image or the fields differ in their number of images.
    """

    name: str  # of the method in tables
    predictions: Tensor  # predicted class, int64 [n]
    labels: Tensor  # true class, int64 [n]
    options: Tensor  # actions in the last pass, int64 [n, layers]
    log_likelihood: Tensor  # log-probability of the true class, float64 [n]
    confidence: Tensor  # largest class probability, float64 [n]
    gate_macs: float = 0.0  # MACs per image of the gate in a pass
    computed_pass_macs: float = 0.0  # likewise by the cost model computation
    gate_macs_taken: Tensor | None = None  # those of each image if they differ, all passes, [n]
    excess_macs: Tensor | None = None  # part of all that the model computation leaves out, [n]
    first_exit: int | None = None  # index of the first exit that runs, if exits are all the gate
    earlier: EarlierPasses | None = None  # passes before the last one

    def __post_init__(self) -> None:
        n = len(self)
        if n == 0:
            raise ConfigError(f"the records of {self.name!r} have no image; at least 1 is needed.")
        values = dict(vars(self))
        if self.earlier is not None:
            values |= {f"earlier.{name}": v for name, v in vars(self.earlier).items()}
        shapes = {"options": "[n, layers]", "earlier.options": "[n, passes, layers]"}
        shapes["earlier.ran"] = shapes["earlier.mirrored"] = "[n, passes]"
        for field, value in values.items():
            shape = shapes.get(field, "[n]")
            axes = len(shape.split(","))
            if isinstance(value, Tensor) and (value.dim() != axes or len(value) != n):
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
        """Number of distinct rows of ``options``, of all passes together."""
        options = self.options
        if self.earlier is not None:
            earlier = self.earlier.options.masked_fill(~self.earlier.ran[:, :, None], -1)
            options = torch.cat([options, earlier.flatten(1)], dim=1)
        return len(torch.unique(options, dim=0))

    @property
    def mean_passes(self) -> float:
        """Mean number of passes of an image."""
        return 1.0 if self.earlier is None else self.earlier.n_passes.double().mean().item()

    def histogram(self, n_options: int) -> Tensor:
        """Return the share of passes per layer and option, float64 ``[layers, options]``."""
        options = self.options
        if self.earlier is not None:
            options = torch.cat([options, self.earlier.options[self.earlier.ran]])
        return functional.one_hot(options, n_options).double().mean(dim=0)

    def pass_histograms(self, n_options: int) -> Tensor:
        """Return the share of images per pass, layer and option, ``[passes, layers, options]``.

        It is float64. The shares of a layer sum to that of the images that run the pass.
        """
        options = self.options[:, None]  # [n, passes, layers]
        if self.earlier is not None:
            options = self.earlier.with_last(self.options)
        shares = functional.one_hot(options + 1, n_options + 1).double().mean(dim=0)
        return shares[..., 1:]  # without passes that have not run

    def exit_shares(self, costs: CostTable) -> tuple[float, ...]:
        """Return the share of images that take each exit, in [0, 1]."""
        n_layers_run = costs.n_layers_run(self.options)
        return tuple((n_layers_run == after).double().mean().item() for after in costs.exits_after)

    def computation(self, costs: CostTable, counting: Counting = "full") -> Tensor:
        """Return the computation of each image in percent, float64 ``[n]``."""
        cost_of = partial(costs.computation, counting=counting)
        return self.total(cost_of, gate_macs=self._gate_macs)

    def bitops(self, costs: CostTable) -> Tensor:
        """Return the BitOPs of each image, fixed parts and gate included, float64 ``[n]``."""
        return self.total(costs.bitops, gate_macs=self.computed_gate_macs)

    def milliseconds(self, costs: CostTable) -> Tensor:
        """Return the measured time of each image, gate and all passes included, float64 ``[n]``.

        ``costs`` are those of the cost model ``latency``, whatever the records were made under.
        """
        macs = self.computed_gate_macs
        if self.first_exit is not None:  # each exit has a time of its own
            macs = passed_exits_macs(costs, self.options, first=self.first_exit)
        elif self.gate_macs_taken is not None and self.excess_macs is not None:
            # So has each decision of a learned gate, in every pass.
            whole = self.computed_pass_macs
            macs = self.total(
                lambda options: costs.decided_macs(whole, costs.n_layers_run(options))
            )
        return self.total(costs.computation, gate_macs=macs) * (costs.total_cost / 100.0)

    @property
    def _gate_macs(self) -> float | Tensor:
        return self.gate_macs if self.gate_macs_taken is None else self.gate_macs_taken

    @property
    def computed_gate_macs(self) -> float | Tensor:
        """MACs of the gate by the cost model ``computation``; a number, or ``[n]``."""
        return self._gate_macs - (0.0 if self.excess_macs is None else self.excess_macs)

    def total(self, of_pass: Callable[..., Tensor], **of_last: float | Tensor) -> Tensor:
        """Return the sum over all passes of a function of their options, ``[n]``.

        ``of_last`` are its further arguments in the last pass.
        """
        last = of_pass(self.options, **of_last)
        return last if self.earlier is None else last + self.earlier.total(of_pass)


def passed_exits_macs(costs: CostTable, options: Tensor, *, first: int = 0) -> Tensor:
    """Return the cost of the exits that images pass, in MACs of a gate, float64 ``[n]``.

    The exit that an image takes is none of them. Exits before the one of index ``first`` do not
    run; ``options`` are the actions of each image, int64 ``[n, layers]``.
    """
    each = [costs.exit_macs(exit_) * (i >= first) for i, exit_ in enumerate(costs.exits)]
    passed = costs.n_layers_run(options)[:, None] > torch.tensor(costs.exits_after)  # [n, exits]
    return torch.tensor([0.0, *each], dtype=torch.float64).cumsum(0)[passed.sum(dim=1)]


def choose_records(candidates: Sequence[GateRecords], index: Tensor, name: str) -> GateRecords:
    """Return for each image the outcome of the candidate at its ``index``, int64 ``[n]``."""
    images = torch.arange(len(index))
    taken: dict[str, Any] = {
        field: torch.stack([getattr(records, field) for records in candidates])[index, images]
        for field in ("predictions", "options", "log_likelihood", "confidence")
    }
    return GateRecords(name=name, labels=candidates[0].labels, **taken)


def concatenate(parts: Sequence[GateRecords]) -> GateRecords:
    """Concatenate the records of consecutive batches of one method."""

    def join(values: list[Any]) -> Any:  # noqa: ANN401 - of any field
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(values)
        if isinstance(first, GateRecords | EarlierPasses):
            names = [field.name for field in fields(first)]
            return type(first)(**{n: join([getattr(value, n) for value in values]) for n in names})
        return first

    joined: GateRecords = join(list(parts))
    return joined
