"""Run a gate, or given options, on a split and record the results."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone, WithExits
from dfs_rl.costs import CostTable
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.evaluation.records import GateRecords, concatenate
from dfs_rl.gating.base import Gate
from dfs_rl.gating.batch_indexing import gather_rows
from dfs_rl.gating.execution import gather_state, run_head, run_layer, run_stem
from dfs_rl.gating.networks import LearnedGate, computed_macs, macs_taken
from dfs_rl.gating.passes import confidence
from dfs_rl.gating.rollout import rollout

BATCH_SIZE = 256


def evaluate_gate(
    backbone: GatedBackbone,
    gate: Gate,
    image_set: ImageSet,
    *,
    batch_size: int = BATCH_SIZE,
    budget: float | None = None,
    preferences: Tensor | None = None,
) -> GateRecords:
    """Run every image at the options that a gate chooses, without exploration noise.

    Backbone and images are on one device. ``budget`` bounds each image's computation in percent;
    ``preferences`` are those of the images, float32 ``[n]``, None for the gate's own.

    Raises:
        DataError: If the logits of an image are not finite, here and in the functions below.
    """
    parts, seen = [], 0
    with torch.inference_mode():
        for batch in batches(image_set, batch_size):
            own = None if preferences is None else preferences[seen : seen + len(batch.images)]
            seen += len(batch.images)
            result = rollout(backbone, gate, batch.images, budget=budget, preferences=own)
            check_logits(result.logits)
            record = _record(gate.name, result.logits, batch.labels, result.options)
            earlier = None if result.earlier is None else result.earlier.cpu()
            parts.append(_with_gate_macs(replace(record, earlier=earlier), gate, backbone.costs))
    return concatenate(parts)


def _with_gate_macs(records: GateRecords, gate: Gate, costs: CostTable) -> GateRecords:
    """Return records with the MACs that their gate takes over all passes of each image."""

    def taken(options: Tensor) -> Tensor:
        return macs_taken(gate, costs.n_layers_run(options), costs)

    def excess(options: Tensor) -> Tensor:
        assert isinstance(gate, LearnedGate)
        n_layers_run = costs.n_layers_run(options)
        macs = costs.excess_macs(gate.feature_macs_taken(n_layers_run))
        return macs + (taken(options) - gate.macs_taken(n_layers_run))

    differ = costs.exits or (records.earlier is not None and gate.macs > 0)
    return replace(
        records,
        gate_macs=gate.macs,
        computed_pass_macs=computed_macs(gate, costs),
        gate_macs_taken=records.total(taken) if differ else None,
        excess_macs=records.total(excess) if isinstance(gate, LearnedGate) else None,
    )


def evaluate_draws(
    backbone: GatedBackbone,
    image_set: ImageSet,
    draws: Sequence[Tensor],
    *,
    name: str,
    batch_size: int = BATCH_SIZE,
) -> tuple[GateRecords, ...]:
    """Run every image at the options of each draw; common prefixes of an image run once.

    A draw has the actions of each image, int64 ``[n, layers]``; ``batch_size`` counts the images of
    all draws.

    Raises:
        ConfigError: If a draw has another shape or contains an invalid index.
    """
    n_layers, n_actions = backbone.costs.n_layers, backbone.costs.n_actions
    for options in draws:
        if tuple(options.shape) != (len(image_set), n_layers):
            raise ConfigError(
                f"options of {name!r} have shape {list(options.shape)}; allowed is "
                f"[{len(image_set)}, {n_layers}], a row per image and a column per gated layer."
            )
        if bool(((options < 0) | (options >= n_actions)).any()):
            raise ConfigError(
                f"options of {name!r} are between {int(options.min())} and {int(options.max())}; "
                f"allowed are indices from 0 to {n_actions - 1}."
            )
    n_draws = len(draws)
    n_together = max(1, batch_size // n_draws)
    chosen = backbone.costs.canonicalize(torch.stack(tuple(draws))).to(image_set.images.device)
    parts: list[list[GateRecords]] = [[] for _ in draws]
    with torch.inference_mode():
        splits = torch.split(chosen, n_together, dim=1)  # [draws, batch, layers] each
        for batch, options in zip(batches(image_set, n_together), splits, strict=True):
            logits = run_options(backbone, batch.images, options.flatten(0, 1))
            for part, answers, taken in zip(parts, logits.chunk(n_draws), options, strict=True):
                part.append(_record(name, answers, batch.labels, taken))
    return tuple(concatenate(part) for part in parts)


def run_options(backbone: GatedBackbone, images: Tensor, options: Tensor) -> Tensor:
    """Return the logits of each pass, ``[passes, classes]``; common prefixes of an image run once.

    Pass ``i`` runs image ``i`` modulo the batch size at row ``i`` of the canonical ``options``.
    """
    costs, n = backbone.costs, len(options)
    state = run_stem(backbone, images)
    active = torch.arange(n, device=options.device)  # passes that took no exit yet
    at = active % len(images)  # row of the state for each active pass
    arrived, logits = [], []
    while state.layer < costs.n_layers:
        layer = state.layer
        leaving = options[active, layer] == costs.exit_action
        if costs.exits and bool(leaving.any()):
            assert isinstance(backbone, WithExits), "a backbone whose costs have exits"
            rows, answer_of = torch.unique(at[leaving], return_inverse=True)
            answers = backbone.answer(gather_rows(state.hidden, rows), layer)
            arrived.append(active[leaving])
            logits.append(answers[answer_of])
            active, at = active[~leaving], at[~leaving]
            if len(active) == 0:
                break
        # One row for every distinct pair of state row and next option.
        next_of = at * costs.n_actions + options[active, layer]
        pairs, at = torch.unique(next_of, return_inverse=True)
        rows = pairs // costs.n_actions
        if not torch.equal(rows, torch.arange(len(state.spent), device=rows.device)):
            state = gather_state(state, rows)
        state = run_layer(backbone, state, pairs % costs.n_actions, reuse=True)
    if len(active):
        arrived.append(active)
        logits.append(run_head(backbone, state)[at])
    found = torch.cat(logits)[torch.cat(arrived).argsort()]
    check_logits(found)
    return found


def check_logits(logits: Tensor) -> None:
    """Raise DataError for an image without probabilities, which would count as the first class."""
    missing = int((~logits.logsumexp(dim=-1).isfinite()).sum())
    if missing:
        raise DataError(
            f"the network has logits that are NaN or infinite for {missing} of a batch of "
            f"{len(logits)} images; allowed are finite numbers."
        )


def evaluate_static_table(
    backbone: GatedBackbone,
    image_set: ImageSet,
    table: Sequence[int],
    *,
    name: str,
    batch_size: int = BATCH_SIZE,
) -> GateRecords:
    """Run every image at a static bit table, see ``evaluate_draws``."""
    options = torch.tensor(table).expand(len(image_set), -1)
    return evaluate_draws(backbone, image_set, [options], name=name, batch_size=batch_size)[0]


def _record(name: str, logits: Tensor, labels: Tensor, options: Tensor) -> GateRecords:
    log_probabilities = logits.double().log_softmax(dim=-1).cpu()  # [batch, classes]
    labels = labels.cpu()
    return GateRecords(
        name=name,
        predictions=log_probabilities.argmax(dim=-1),
        labels=labels,
        options=options.cpu(),
        log_likelihood=log_probabilities.gather(1, labels[:, None]).squeeze(1),
        confidence=confidence(logits).cpu(),
    )
