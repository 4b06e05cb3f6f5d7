"""Score static per-layer tables: many at once, every shared beginning of theirs run once, and none twice."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.costs import BitOptions
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.evaluator import BATCH_SIZE

StaticTable = tuple[int, ...]


def static_table_text(table: StaticTable, options: BitOptions) -> str:
    """Return the bits of a static table, layer by layer, as one word; it ends where the table leaves."""
    return "-".join(
        [*map(str, static_table_bits(table, options)), *["exit"] * (len(options) in table)]
    )


def static_table_bits(table: StaticTable, options: BitOptions) -> tuple[int, ...]:
    """Return the bits of the layers that a static table comes to."""
    return tuple(options[option] for option in table if option < len(options))


class StaticTableScore(NamedTuple):
    """How a static table does on a split; compares by accuracy, then by log-likelihood."""

    correct: int
    log_likelihood: float


def evenly_spaced_subset(image_set: ImageSet, n: int) -> ImageSet:
    """Return ``n`` images, or all where there are no more.

    They are evenly spaced, so that a split sorted by class still gives every class its share.
    """
    total = len(image_set)
    return image_set if n >= total else image_set.subset(torch.arange(n) * total // n)


def score_static_tables(
    backbone: WalkableBackbone,
    image_set: ImageSet,
    tables: Sequence[StaticTable],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[StaticTableScore]:
    """Score static tables, in one pass over the images.

    The tables are walked as a tree: two tables that agree on their first layers share them. Memory
    holds one activation per layer for one batch, however many tables and images there are.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        image_set: The images.
        tables: Option index per gated layer of each table; ``CostTable.exit_action`` leaves.
        batch_size: Images that run together.

    Returns:
        Number of right predictions and mean log-likelihood of each table, in the order given.
    """
    correct = [0] * len(tables)
    log_likelihood = [0.0] * len(tables)
    bits = backbone.options.values
    layers = backbone.layers

    costs = backbone.costs
    canonical = costs.canonicalize(torch.tensor(tables)).tolist()

    def arrive(logits: Tensor, labels: Tensor, members: Sequence[int]) -> None:
        right = int((logits.argmax(dim=-1) == labels).sum())
        scores = logits.double().log_softmax(dim=-1).gather(1, labels[:, None])
        for member in members:
            correct[member] += right
            log_likelihood[member] += scores.sum().item()

    def descend(layer: int, hidden: Tensor, labels: Tensor, members: Sequence[int]) -> None:
        if layer == len(layers):
            arrive(backbone.head(hidden), labels, members)
            return
        branches: dict[int, list[int]] = {}
        for member in members:
            branches.setdefault(canonical[member][layer], []).append(member)
        for option, branch in branches.items():
            if option == costs.exit_action:
                assert isinstance(backbone, WithExits), "a network whose costs know exits has them"
                arrive(backbone.answer(hidden, layer), labels, branch)
            else:
                descend(layer + 1, layers[layer](hidden, bits[option]), labels, branch)

    with torch.inference_mode():
        for batch in batches(image_set, batch_size):
            descend(0, backbone.stem(batch.images), batch.labels, range(len(tables)))
    n = len(image_set)
    return [
        StaticTableScore(right, total / n)
        for right, total in zip(correct, log_likelihood, strict=True)
    ]


class StaticTableScorer:
    """Scores static tables on the same images, each once.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        image_set: The images.
        cached_scores: Scores on these very images from before, which are taken and not measured
            again when they are asked for; new ones are added to them.
        batch_size: Images that run together.

    Attributes:
        scores: Every table that was asked for, in the order in which it first was.
    """

    def __init__(
        self,
        backbone: WalkableBackbone,
        image_set: ImageSet,
        *,
        cached_scores: dict[StaticTable, StaticTableScore] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.scores: dict[StaticTable, StaticTableScore] = {}
        self.image_set = image_set
        self._backbone = backbone
        self._cached_scores = {} if cached_scores is None else cached_scores
        self._batch_size = batch_size

    def score(self, tables: Iterable[StaticTable]) -> list[StaticTableScore]:
        """Return how each table does; those that are new run together, see ``score_static_tables``."""
        wanted = list(tables)
        new = [table for table in dict.fromkeys(wanted) if table not in self.scores]
        unknown = [table for table in new if table not in self._cached_scores]
        if unknown:
            measured = score_static_tables(
                self._backbone, self.image_set, unknown, batch_size=self._batch_size
            )
            self._cached_scores.update(zip(unknown, measured, strict=True))
        self.scores.update((table, self._cached_scores[table]) for table in new)
        return [self.scores[table] for table in wanted]

    def accuracy(self, table: StaticTable) -> float:
        """Return a table's accuracy in percent."""
        (score,) = self.score([table])
        return 100.0 * score.correct / len(self.image_set)

    def add_cached_scores(self, cached_scores: Mapping[StaticTable, StaticTableScore]) -> None:
        """Take scores on these very images from before, which are not measured again when they are asked for."""
        self._cached_scores.update(cached_scores)

    def cached_scores(self) -> dict[StaticTable, StaticTableScore]:
        """Return every score there is, for another scorer of the same images to start from."""
        return dict(self._cached_scores)
