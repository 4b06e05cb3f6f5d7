"""Run a gate, or options fixed beforehand, over a split and record what happened."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.records import GateRecords, concatenate
from dfs_rl.gating.cascade import FirstPass, confidence
from dfs_rl.gating.exits import Walkers
from dfs_rl.gating.gates import Gate
from dfs_rl.gating.model import macs_taken
from dfs_rl.gating.rollout import rollout

BATCH_SIZE = 256


def evaluate_gate(
    backbone: WalkableBackbone,
    gate: Gate,
    image_set: ImageSet,
    *,
    batch_size: int = BATCH_SIZE,
    budget: float | None = None,
    positions: Tensor | None = None,
) -> GateRecords:
    """Let ``gate`` choose the options of every image; nothing is trained and no noise is added.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        gate: What chooses the options.
        image_set: The images, in the order of the returned records.
        batch_size: Images that walk together.
        budget: Upper bound on each image's computation in percent, None for none.
        positions: Of the gate's dial for each image, float32 ``[n]``; None for the gate's own.
    """
    parts, seen = [], 0
    with torch.inference_mode():
        for batch in batches(image_set, batch_size):
            turned = None if positions is None else positions[seen : seen + len(batch.images)]
            seen += len(batch.images)
            result = rollout(backbone, gate, batch.images, budget=budget, positions=turned)
            record = _record(gate.name, result.logits, batch.labels, result.options, gate.macs)
            if result.first_pass is not None:
                first = result.first_pass
                kept = FirstPass(options=first.options.cpu(), escalated=first.escalated.cpu())
                record = replace(record, first_pass=kept)
            if backbone.costs.exits:
                taken = macs_taken(gate, backbone.costs.walked(record.options))
                record = replace(record, gate_macs_taken=taken)
            parts.append(record)
    return concatenate(parts)


def evaluate_options(
    backbone: WalkableBackbone,
    image_set: ImageSet,
    options: Tensor,
    *,
    name: str,
    batch_size: int = BATCH_SIZE,
) -> GateRecords:
    """Run every image at options that were fixed beforehand.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        image_set: The images.
        options: Option index of each image at each gated layer, int64 ``[n, layers]``; ``CostTable.exit_action`` leaves.
        name: What the records are called.
        batch_size: Images that walk together.

    Raises:
        ConfigError: If ``options`` has another number of rows than there are images.
    """
    if options.shape[0] != len(image_set):
        raise ConfigError(
            f"options of {name!r} have {options.shape[0]} rows; allowed is one per image, "
            f"{len(image_set)}."
        )
    parts = []
    with torch.inference_mode():
        chosen = torch.split(options.to(image_set.images.device), batch_size)
        for batch, rows in zip(batches(image_set, batch_size), chosen, strict=True):
            walkers = Walkers(backbone, batch.images)
            while walkers.walking:
                walkers.advance(walkers.pick(rows[:, walkers.state.layer]))
            result = walkers.answers()
            parts.append(_record(name, result.logits, batch.labels, result.options, 0.0))
    return concatenate(parts)


def evaluate_table(
    backbone: WalkableBackbone,
    image_set: ImageSet,
    table: Sequence[int],
    *,
    name: str,
    batch_size: int = BATCH_SIZE,
) -> GateRecords:
    """Run every image at the same option index per layer."""
    options = torch.tensor(table).expand(len(image_set), -1)
    return evaluate_options(backbone, image_set, options, name=name, batch_size=batch_size)


def _record(
    name: str, logits: Tensor, labels: Tensor, options: Tensor, gate_macs: float
) -> GateRecords:
    log_probabilities = logits.double().log_softmax(dim=-1).cpu()  # [batch, classes]
    labels = labels.cpu()
    return GateRecords(
        name=name,
        predictions=log_probabilities.argmax(dim=-1),
        labels=labels,
        options=options.cpu(),
        log_likelihood=log_probabilities.gather(1, labels[:, None]).squeeze(1),
        confidence=confidence(logits).cpu(),
        gate_macs=gate_macs,
    )
