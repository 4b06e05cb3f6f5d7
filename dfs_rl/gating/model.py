"""The deployable network: a frozen backbone and the gate that steers it, in torch alone."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfs_rl.backbones import load_backbone
from dfs_rl.backbones.contract import CONFIDENCE_SIZE, WalkableBackbone, confidence_sizes
from dfs_rl.backbones.storage import allow_constructor_of
from dfs_rl.cost import SKIP, CostTable
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.gates import Gate, TableGate
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import load_gate

BACKBONE_FOLDER = "backbone"
GATE_FOLDER = "gate"
BEFORE_FOLDER = "backbone-before"
"""Beside a co-trained backbone: what it was before."""


class Trace(NamedTuple):
    """What a gated network did with each image of a batch.

    Attributes:
        options: Option indices, int64 ``[batch, layers]``; of layers that an image did not come to, the one after the menu's last.
        bits: The bit widths they stand for, int64 ``[batch, layers]``; 0 is a layer that did not run.
        computation: Percent of running every gated layer at 32 bit, the never-gated parts and the gate included, float64
            ``[batch]``; of both passes of an image that a cascade ran twice.
        walked: How many gated layers each image came through before it left, all if it did not, int64 ``[batch]``.
        again: Whether a cascade ran the image a second time, which is the pass that ``options`` and ``bits`` are of, bool ``[batch]``.
    """

    options: Tensor
    bits: Tensor
    computation: Tensor
    walked: Tensor
    again: Tensor


class GatedModel(nn.Module):
    """A backbone with a gate that chooses every layer's bits for every image.

    Args:
        backbone: The network, usually its prepared form.
        gate: What chooses.
        budget: Upper bound on each image's computation in percent; ``None`` for none.

    Raises:
        CheckpointError: If the gate was made for another network.
    """

    def __init__(
        self, backbone: WalkableBackbone, gate: Gate, *, budget: float | None = None
    ) -> None:
        super().__init__()
        check_fit(backbone, gate)
        self.backbone = backbone
        self.gate = gate
        self.budget = budget

    def set_budget(self, budget: float) -> None:
        """Turn a gate for all budgets to another one.

        Args:
            budget: What images may cost on average, in percent, everything included. It is kept on images like those of the
                validation split, where the cost of each position was measured.

        Raises:
            ConfigError: If the gate is for one budget alone, or cannot be turned down as far.
        """
        dial = self.gate.dial if isinstance(self.gate, LearnedGate) else None
        if dial is None:
            raise ConfigError(
                f"budget is {budget:g} %, but gate {self.gate.name!r} is for one budget alone and cannot be turned to another."
            )
        assert isinstance(self.gate, LearnedGate)
        self.gate.position = dial.position_within(budget)

    def forward(self, images: Tensor) -> tuple[Tensor, Trace]:
        """Classify a batch.

        Args:
            images: uint8 ``[batch, c, h, w]``, or float in [0, 1]; normalised inside.

        Returns:
            Logits, float32 ``[batch, classes]``, and what was run.

        Raises:
            DataError: If the images have another shape or type than those the network was trained on.
        """
        shape = self.backbone.image_shape
        fits = images.dim() == len(shape) + 1 and tuple(images.shape[1:]) == shape and len(images)
        if not fits or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}; this model takes uint8, or float in [0, 1], "
                f"[batch, {', '.join(map(str, shape))}] with at least one image."
            )
        result = rollout(self.backbone, self.gate, images, budget=self.budget)
        costs = self.backbone.costs
        walked = costs.walked(result.options)
        computation = costs.computation(result.options, gate_macs=macs_taken(self.gate, walked))
        again = torch.zeros(len(images), dtype=torch.bool, device=walked.device)
        if result.first_pass is not None:
            again = result.first_pass.escalated
            computation = result.first_pass.added_to(computation, costs.computation)
        return result.logits, Trace(
            options=result.options,
            bits=bits_of(costs, result.options),
            computation=computation,
            walked=walked,
            again=again,
        )


def bits_of(costs: CostTable, options: Tensor) -> Tensor:
    """Return the bit widths that ran, in the shape of ``options``; 0 where a layer was skipped or an image had left."""
    menu = torch.tensor([*costs.options, SKIP], device=options.device)
    return menu[options]


def macs_taken(gate: Gate, walked: Tensor) -> Tensor:
    """Return the multiply-accumulates that a gate took for images that came through ``walked`` layers, float64 ``[batch]``.

    A gate that does not tell what it takes for each layer counts whole.
    """
    if isinstance(gate, LearnedGate):
        return gate.macs_taken(walked)
    return torch.full(walked.shape, gate.macs, dtype=torch.float64, device=walked.device)


def check_fit(backbone: WalkableBackbone, gate: Gate) -> None:
    """Refuse a gate that was made for another network.

    Raises:
        CheckpointError: If menu, number of layers or their features differ.
    """
    if (
        isinstance(gate, LearnedGate | TableGate | CascadeGate)
        and gate.options is not None
        and gate.options != backbone.options
    ):
        raise CheckpointError(
            f"gate {gate.name!r} chooses from {list(gate.options)} bit, but the backbone offers {list(backbone.options)}."
        )
    if isinstance(gate, LearnedGate):
        offered = tuple(backbone.feature_sizes)
        if gate.exits is not None and gate.exits.after != backbone.costs.exits_after:
            raise CheckpointError(
                f"gate {gate.name!r} leaves after {list(gate.exits.after)} gated layers, but the backbone has exits after "
                f"{list(backbone.costs.exits_after)}."
            )
        if gate.feature_sizes not in {offered, confidence_sizes(offered)}:
            raise CheckpointError(
                f"gate {gate.name!r} reads {list(gate.feature_sizes)} features before the layers, but the backbone has "
                f"{list(offered)}, of which a gate takes all or the first {CONFIDENCE_SIZE}."
            )
    tables = (gate.first, gate.second) if isinstance(gate, CascadeGate) else (gate,)
    for table in (t.table for t in tables if isinstance(t, TableGate)):
        n_layers, n_options = backbone.costs.n_layers, backbone.costs.n_actions
        if len(table) != n_layers or not all(0 <= option < n_options for option in table):
            raise CheckpointError(
                f"gate {gate.name!r} is the table {list(table)}, but the backbone needs {n_layers} options from 0 to "
                f"{n_options - 1}."
            )


def load(
    run_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    prepare: bool = True,
    dtype: torch.dtype = torch.float32,
    budget: float | None = None,
    backbone: str | None = None,
) -> GatedModel:
    """Load what a command that trains a gate left in a run folder; a gate that learned a hard budget keeps to it.

    Args:
        run_dir: The run folder.
        device: Where to put it.
        prepare: Run the frozen form of the backbone; ``False`` keeps the training form, which is slower and takes gradients.
        dtype: What the frozen form computes in: float32, or bfloat16 where the hardware is fast at it.
        budget: What images may cost on average, in percent, see ``GatedModel.set_budget``; ``None`` for what the run was trained
            or turned to.
        backbone: ``module:function`` that made the run's network, if it is one of yours: loading calls it, and without its name here
            does not.

    Returns:
        A model with ``logits, trace = model(images)``, in evaluation mode.

    Raises:
        CheckpointError: If the folder holds no backbone with a gate, or the two do not fit.
        ConfigError: If the gate cannot be turned to ``budget``, the network is someone's own and ``backbone`` does not say so, or
            ``backbone`` is not what made it.
    """
    folder = Path(run_dir)
    for part in (BACKBONE_FOLDER, GATE_FOLDER):
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"{folder} has no folder {part!r}, so it is not the run of a trained gate."
            )
    if backbone is not None:
        allow_constructor_of(folder / BACKBONE_FOLDER, backbone)
    trained = load_backbone(folder / BACKBONE_FOLDER).eval()
    walkable: WalkableBackbone = trained.prepare(dtype) if prepare else trained
    gate = load_gate(folder / GATE_FOLDER)
    model = GatedModel(walkable, gate, budget=gate.budget)
    if budget is not None:
        model.set_budget(budget)
    return model.to(device).eval()
