"""Deployable network: a frozen backbone with a gate; depends on torch only."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedBackbone, confidence_sizes
from dfs_rl.costs import SKIP, BudgetUnit, CostTable
from dfs_rl.data.pixels import check_pixels, fit_images
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import LearnedGate, macs_taken, observed_macs
from dfs_rl.gating.passes import NOT_RUN, passes_of
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.single_image import SingleImageForm

_MOST_DROP = 100  # points of accuracy


class Trace(NamedTuple):
    """Execution record of a gated network for a batch.

    Attributes:
        options: Option indices, int64 ``[batch, layers]``; for layers after an image's exit, the
            index after the last option.
        bits: Bit widths of the options, int64 ``[batch, layers]``; 0 for a layer that did not run.
        computation: Percent of running every gated layer at 32 bit, the never-gated parts, the gate
            and all passes included, float64 ``[batch]``.
        n_layers_run: Number of gated layers each image passed before its exit, int64 ``[batch]``.
        n_passes: Number of passes of each image, int64 ``[batch]``; ``options``, ``bits`` and
            ``n_layers_run`` are those of the last one.
        pass_options: Option indices of every pass, int64 ``[batch, passes, layers]``, where
            ``passes`` is the largest number that the gate may run; -1 for those that did not run.
    """

    options: Tensor
    bits: Tensor
    computation: Tensor
    n_layers_run: Tensor
    n_passes: Tensor
    pass_options: Tensor


class GatedModel(nn.Module):
    """Backbone with a gate that chooses the bit option of every layer for every image.

    Args:
        backbone: The network, usually in its inference form.
        gate: The gate.
        budget: Upper bound on each image's computation in percent; ``None`` for no bound.
        classes: Names of the classes, in the order of the logits.
        image_size: Height and width that images of any size are resized and cropped to, see
            ``load_dataset``; ``None`` accepts only images of the backbone's size.

    Raises:
        CheckpointError: If the gate belongs to another network, or ``classes`` has another length.
    """

    def __init__(
        self,
        backbone: GatedBackbone,
        gate: Gate,
        *,
        budget: float | None = None,
        classes: Sequence[str] = (),
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_compatible(backbone, gate)
        if classes and len(classes) != backbone.n_classes:
            raise CheckpointError(
                f"classes has {len(classes)} names, but the backbone has {backbone.n_classes} "
                "classes."
            )
        self.backbone = backbone
        self.gate = gate
        self.budget = budget
        self.classes = tuple(classes)
        self.image_size = image_size
        self._form: SingleImageForm | None = None

    @property
    def budget(self) -> float | None:
        """Upper bound on each image's computation in percent; ``None`` for no bound.

        Raises:
            ConfigError: If it is set for a gate of several passes that does not observe its own
                cost, and so does not keep a bound.
        """
        return self._budget

    @budget.setter
    def budget(self, budget: float | None) -> None:
        gate, passes = self.gate, passes_of(self.gate).limit
        if budget is not None and passes > 1 and observed_macs(gate) != gate.macs:
            raise ConfigError(
                f"budget is {budget:g} and passes is {passes}; a policy that was trained without "
                "the cost of its own network keeps a budget in a single pass alone."
            )
        self._budget = budget

    def set_budget(self, budget: float, unit: BudgetUnit = "percent") -> None:
        """Bound the mean computation per image of a budget-conditioned gate.

        The bound holds for images like those of the validation split, where the cost of each
        preference was measured. It includes stem, head and gate.

        Args:
            budget: The bound.
            unit: ``"percent"`` of all gated layers in full precision, or ``"ms"`` per image for a
                network with the cost model ``latency``.

        Raises:
            ConfigError: If the gate is not budget-conditioned, the budget is out of its range, or
                the unit does not fit.
        """
        if not isinstance(budget, SupportsFloat) or not 0 < budget < math.inf:
            raise ConfigError(f"budget is {budget!r}; allowed are positive, finite numbers.")
        costs = self.backbone.costs
        percent = costs.percent_of_budget(float(budget), unit)
        gate, measured = self._conditioned_gate(f"budget is {costs.cost_text(percent)}")
        measured.check_not_above(percent, costs.cost_text)
        gate.preference = measured.preference_for_budget(percent, costs.cost_text)

    def set_max_accuracy_drop(self, drop: float) -> None:
        """Set a budget-conditioned gate to the cheapest point of little loss in accuracy.

        Args:
            drop: Points of accuracy that it may lose on the validation split, against all layers
                at the largest bits.

        Raises:
            ConfigError: If the gate is not budget-conditioned, or always loses more.
        """
        if not isinstance(drop, SupportsFloat) or not 0 <= drop <= _MOST_DROP:
            raise ConfigError(
                f"max_accuracy_drop is {drop!r}; allowed are numbers from 0 to {_MOST_DROP}."
            )
        gate, measured = self._conditioned_gate(f"max_accuracy_drop is {drop:g}")
        gate.preference = measured.preference_for_accuracy_drop(drop)

    def _conditioned_gate(self, given: str) -> tuple[LearnedGate | RuleGate, BudgetConditioning]:
        """Return a gate for all budgets with its measurements; ``given`` begins the error."""
        gate = self.gate
        if not isinstance(gate, LearnedGate | RuleGate) or gate.budget_conditioning is None:
            raise ConfigError(
                f"{given}, but gate {gate.name!r} is not budget-conditioned: it was made for one "
                "budget and supports no other; leave it out."
            )
        return gate, gate.budget_conditioning

    # The layers that run differ per image, and a loop compiled piecewise is slower.
    @torch.compiler.disable(reason="each image runs its own layers")  # type: ignore[no-untyped-call,untyped-decorator]
    def forward(self, images: Tensor) -> tuple[Tensor, Trace]:
        """Return the logits of images, float32 ``[batch, classes]``, and the execution record.

        Args:
            images: uint8 ``[batch, c, h, w]``, or float in [0, 1]; normalised inside. If the
                backbone was trained with ``image_size``, images of another size are resized and
                cropped like its training images.

        Raises:
            DataError: If the shape, type, range or device of the images does not match the network.
        """
        images = self._preprocess(images)
        if torch.is_autocast_enabled(images.device.type):  # gates decide in float32
            with torch.autocast(images.device.type, enabled=False):
                answer: tuple[Tensor, Trace] = self.forward(images)
            return answer
        if len(images) == 1:
            form = self._single_image_form()
            if form.usable:
                return _run_single(form, images)
        result = rollout(self.backbone, self.gate, images, budget=self.budget)
        costs = self.backbone.costs
        n_layers_run = costs.n_layers_run(result.options)
        computation = self._computation(result.options)
        n_passes, pass_options = torch.ones_like(n_layers_run), result.options[:, None]
        if result.earlier is not None:
            n_passes = result.earlier.n_passes
            pass_options = result.earlier.with_last(result.options)
            computation = computation + result.earlier.total(self._computation)
        return result.logits, Trace(
            options=result.options,
            bits=bits_of(costs, result.options),
            computation=computation,
            n_layers_run=n_layers_run,
            n_passes=n_passes,
            pass_options=pass_options,
        )

    def _computation(self, options: Tensor) -> Tensor:
        """Return the computation of one pass of each image in percent, gate included."""
        costs = self.backbone.costs
        gate_macs = macs_taken(self.gate, costs.n_layers_run(options), costs)
        return costs.computation(options, gate_macs=gate_macs)

    def _apply(self, *args: Any, **keywords: Any) -> Self:  # noqa: ANN401 - as in ``nn.Module``
        """Forget the form of single images where tensors move or are converted."""
        self._form = None
        super()._apply(*args, **keywords)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the form of single images, which copies make anew."""
        return self.__dict__ | {"_form": None}

    def _single_image_form(self) -> SingleImageForm:
        """Return the form of single images that fits the present weights."""
        form, parts = self._form, (self.backbone, self.gate, self.budget)
        if form is None or not form.fits(*parts):
            form = self._form = SingleImageForm(*parts)
        return form

    def _preprocess(self, images: Tensor) -> Tensor:
        """Validate images, and resize them if ``image_size`` is set."""
        check_pixels(images)
        dtype = self.backbone.feature_mean.dtype
        if dtype != torch.float32:
            raise DataError(
                f"this model was converted to {dtype}, but stem, head and gate compute in float32; "
                "give dtype to dfs_rl.load instead."
            )
        shape = channels, _, _ = self.backbone.image_shape
        four = images.dim() == len(shape) + 1 and images.numel() > 0
        if four and images.shape[1] == channels and self.image_size is not None:
            images = fit_images(images, self.image_size)
        if not four or tuple(images.shape[1:]) != shape:
            sizes = "height, width" if self.image_size is not None else f"{shape[1]}, {shape[2]}"
            raise DataError(
                f"images are {list(images.shape)}; this model takes [batch, {channels}, {sizes}] "
                "with at least one image."
            )
        place = self.backbone.feature_mean.device
        if images.device != place:
            raise DataError(
                f"images are on {images.device}, but the model is on {place}; move them with "
                f"images.to({str(place)!r})."
            )
        return images


def _run_single(form: SingleImageForm, image: Tensor) -> tuple[Tensor, Trace]:
    """Return the logits and the record of one image."""
    logits, passes, computation = form.run(image)
    actions = passes[-1]
    n_layers_run = form.n_layers_run(actions)
    missing = [[NOT_RUN] * len(actions)] * (passes_of(form.gate).limit - len(passes))
    values = (
        *([actions], [form.bits(actions)], [computation], [n_layers_run], [len(passes)]),
        [passes + missing],
    )
    # Through NumPy, which reads lists several times as fast.
    tensors = [torch.from_numpy(np.array(value)).to(logits.device) for value in values]
    return logits, Trace(*tensors)


def bits_of(costs: CostTable, options: Tensor) -> Tensor:
    """Return the bit widths that ran, in the shape of ``options``; 0 for layers after an exit."""
    return torch.tensor([*costs.options, SKIP], device=options.device)[options]


def check_compatible(backbone: GatedBackbone, gate: Gate) -> None:
    """Raise a ``CheckpointError`` if a gate does not fit a backbone."""
    costs, name = backbone.costs, gate.name
    options = getattr(gate, "options", None)
    if options is not None and options != backbone.options:
        raise CheckpointError(
            f"gate {name!r} chooses from {list(options)} bit, but the backbone offers "
            f"{list(backbone.options)}."
        )
    exits = _exits_of(gate)
    if exits is not None and exits != costs.exits_after:
        raise CheckpointError(
            f"gate {name!r} has exits after {list(exits)} gated layers, but the backbone has exits "
            f"after {list(costs.exits_after)}."
        )
    if isinstance(gate, LearnedGate):
        offered = tuple(backbone.feature_sizes)
        if gate.feature_sizes not in {offered, confidence_sizes(offered), (0,) * len(offered)}:
            raise CheckpointError(
                f"gate {name!r} reads {list(gate.feature_sizes)} features before the layers, but "
                f"the backbone has {list(offered)}, of which a gate reads all, the first "
                f"{CONFIDENCE_SIZE} or none."
            )
    if isinstance(gate, RuleGate):
        tables = [each.options for rule in gate.rules for each in rule.passes]
        if gate.n_classes not in (None, backbone.n_classes):
            raise CheckpointError(
                f"gate {name!r} predicts gains for {gate.n_classes} classes, but the backbone has "
                f"{backbone.n_classes}."
            )
    else:
        tables = [gate.table] if isinstance(gate, TableGate) else []
    for table in tables:
        in_range = all(0 <= option < costs.n_actions for option in table)
        if len(table) != costs.n_layers or not in_range:
            raise CheckpointError(
                f"gate {name!r} is the table {list(table)}, but the backbone needs "
                f"{costs.n_layers} options from 0 to {costs.n_actions - 1}."
            )


def _exits_of(gate: Gate) -> tuple[int, ...] | None:
    """Return the exits that the backbone of a gate must have, ``None`` for any."""
    if isinstance(gate, LearnedGate):
        if gate.exits is not None:
            return gate.exits.after
        # Of few options an action for the end of a pass would exit.
        return () if gate.passes.limit > 1 else None
    return (gate.exits or None) if isinstance(gate, TableGate | RuleGate) else None
