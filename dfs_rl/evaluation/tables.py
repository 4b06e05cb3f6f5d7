"""Score many static per-layer tables at once, running every shared beginning of theirs once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.run_gate import BATCH_SIZE

Table = tuple[int, ...]


class TableScore(NamedTuple):
    """How a static table does on a split; compares by accuracy, then by log-likelihood."""

    correct: int
    log_likelihood: float


def score_tables(
    backbone: WalkableBackbone,
    image_set: ImageSet,
    tables: Sequence[Table],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[TableScore]:
    """Score static tables, in one pass over the images.

    The tables are walked as a tree: two tables that agree on their first layers share them. Memory
    holds one activation per layer for one batch, however many tables and images there are.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        image_set: The images.
        tables: Option index per gated layer of each table.
        batch_size: Images that run together.

    Returns:
        Number of right predictions and mean log-likelihood of each table, in the order given.
    """
    correct = [0] * len(tables)
    log_likelihood = [0.0] * len(tables)
    bits = backbone.options.values
    layers = backbone.layers

    def descend(layer: int, hidden: Tensor, labels: Tensor, members: Sequence[int]) -> None:
        if layer == len(layers):
            logits = backbone.head(hidden).double()
            right = int((logits.argmax(dim=-1) == labels).sum())
            scores = logits.log_softmax(dim=-1).gather(1, labels[:, None])
            for member in members:
                correct[member] += right
                log_likelihood[member] += scores.sum().item()
            return
        branches: dict[int, list[int]] = {}
        for member in members:
            branches.setdefault(tables[member][layer], []).append(member)
        for option, branch in branches.items():
            descend(layer + 1, layers[layer](hidden, bits[option]), labels, branch)

    with torch.inference_mode():
        for batch in batches(image_set, batch_size):
            descend(0, backbone.stem(batch.images), batch.labels, range(len(tables)))
    n = len(image_set)
    return [
        TableScore(right, total / n) for right, total in zip(correct, log_likelihood, strict=True)
    ]
