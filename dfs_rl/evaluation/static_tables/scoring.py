"""Static bit tables: cost, fitting to a budget, and scores on many images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone, WithExits
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE, check_logits

StaticTable = tuple[int, ...]
"""Option index of each gated layer; ``CostTable.exit_action`` takes the exit."""

_TOLERANCE = 1e-9  # rounding tolerance in percent for sums of the same costs in another order


def static_table_bits(table: StaticTable, options: BitOptions) -> tuple[int, ...]:
    """Return the bits of the layers that a static bit table runs."""
    return tuple(options[option] for option in table if option < len(options))


def static_table_text(table: StaticTable, options: BitOptions) -> str:
    """Return the bits of a static bit table as one word, with ``exit`` at its end if it exits."""
    exits = ["exit"] * (len(options) in table)
    return "-".join([*map(str, static_table_bits(table, options)), *exits])


def static_table_computation(costs: CostTable, table: StaticTable) -> float:
    """Return the computation of a static bit table in percent, fixed parts included."""
    return float(costs.computation(torch.tensor([table])))


def canonicalize(costs: CostTable, table: StaticTable) -> StaticTable:
    """Return a static bit table in its canonical form, see ``CostTable.canonicalize``."""
    return tuple(costs.canonicalize(torch.tensor(table)).tolist()) if costs.exits else table


def is_within_budget(costs: CostTable, table: StaticTable, budget: float) -> bool:
    """Return True if a static bit table costs at most ``budget`` percent."""
    return static_table_computation(costs, table) <= budget + _TOLERANCE


def exit_tables(costs: CostTable, table: StaticTable) -> list[StaticTable]:
    """Return a static bit table up to each exit, the first one first."""
    return [table[:n] + (costs.exit_action,) * (costs.n_layers - n) for n in costs.exits_after]


def cheapest_static_table(costs: CostTable, *, exits: bool = True) -> StaticTable:
    """Return the cheapest static bit table, with or without the use of exits."""
    whole = tuple(costs.option_costs().argmin(dim=1).tolist())
    candidates = [*(exit_tables(costs, whole) if exits else ()), whole]
    return min(candidates, key=lambda table: static_table_computation(costs, table))


def check_table_budget(costs: CostTable, budget: float, *, exits: bool = True) -> None:
    """Raise ConfigError if even the cheapest static bit table costs more than the budget."""
    cheapest = cheapest_static_table(costs, exits=exits)
    if not is_within_budget(costs, cheapest, budget):
        without = "" if exits or not costs.exits else " without an exit"
        raise ConfigError(
            f"budget is {costs.cost_text(budget, 4)}; no static bit table{without} costs less than "
            f"{costs.cost_text(static_table_computation(costs, cheapest), 4)}."
        )


def fit_to_budget(table: StaticTable, costs: CostTable, budget: float) -> StaticTable:
    """Lower the layer that saves most by one step until a table is within a budget in percent.

    If that does not suffice, the cheapest table is returned.

    Raises:
        ConfigError: If no table is within the budget.
    """
    check_table_budget(costs, budget)
    option_costs = costs.option_costs()
    current = list(canonicalize(costs, table))
    while not is_within_budget(costs, tuple(current), budget):
        savings = {
            (layer, lower): float(option_costs[layer, option] - option_costs[layer, lower])
            for layer, option in enumerate(current)
            if option <= costs.options.full
            and (lower := costs.lower_option(layer, option)) is not None
        }
        if not savings:
            return cheapest_static_table(costs)
        layer, lower = max(savings, key=savings.__getitem__)
        current[layer] = lower
    return tuple(current)


def fit_to_budget_haq(table: StaticTable, costs: CostTable, budget: float) -> StaticTable:
    """Lower layers by one step in turn, last first, until a table is within a budget in percent.

    This is the rule of HAQ (Wang et al., CVPR 2019, section 3.2), which favors early layers.

    Raises:
        ConfigError: If no table without an exit is within the budget.
    """
    check_table_budget(costs, budget, exits=False)
    current = list(table)
    while True:
        before = tuple(current)
        for layer in reversed(range(costs.n_layers)):
            if is_within_budget(costs, tuple(current), budget):
                return tuple(current)
            lower = costs.lower_option(layer, current[layer])
            current[layer] = current[layer] if lower is None else lower
        if tuple(current) == before:
            return cheapest_static_table(costs, exits=False)


class StaticTableScore(NamedTuple):
    """Number of correct images and mean log-likelihood; scores compare in this order."""

    correct: int
    log_likelihood: float


def evenly_spaced_subset(image_set: ImageSet, n: int) -> ImageSet:
    """Return ``n`` evenly spaced images of a set, or all; a sorted set keeps all its classes."""
    total = len(image_set)
    return image_set if n >= total else image_set.subset(torch.arange(n) * total // n)


def score_static_tables(
    backbone: GatedBackbone,
    image_set: ImageSet,
    tables: Sequence[StaticTable],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[StaticTableScore]:
    """Score static bit tables in one pass over the images; tables share their common prefixes.

    Memory is one activation per layer for one batch, however many tables and images there are.

    Raises:
        DataError: If the logits of an image are not finite.
    """
    correct, log_likelihood = [0] * len(tables), [0.0] * len(tables)
    costs, layers = backbone.costs, backbone.layers
    canonical = costs.canonicalize(torch.tensor(tables)).tolist()

    def answer(logits: Tensor, labels: Tensor, members: Sequence[int]) -> None:
        check_logits(logits)
        right = int((logits.argmax(dim=-1) == labels).sum())
        total = logits.double().log_softmax(dim=-1).gather(1, labels[:, None]).sum().item()
        for member in members:
            correct[member] += right
            log_likelihood[member] += total

    def run(layer: int, hidden: Tensor, labels: Tensor, members: Sequence[int]) -> None:
        if layer == len(layers):
            answer(backbone.head(hidden), labels, members)
            return
        branches: dict[int, list[int]] = {}
        for member in members:
            branches.setdefault(canonical[member][layer], []).append(member)
        for option, branch in branches.items():
            if option == costs.exit_action:
                assert isinstance(backbone, WithExits), "a backbone whose costs have exits"
                answer(backbone.answer(hidden, layer), labels, branch)
            else:
                run(layer + 1, layers[layer](hidden, backbone.options[option]), labels, branch)

    with torch.inference_mode():
        for batch in batches(image_set, batch_size):
            run(0, backbone.stem(batch.images), batch.labels, range(len(tables)))
    means = [total / len(image_set) for total in log_likelihood]
    return list(map(StaticTableScore, correct, means))


class StaticTableScorer:
    """Score static bit tables on the same images, each once.

    ``scores`` has the requested tables in the order of the first requests. New scores are added to
    ``cached_scores``, earlier ones on the same images.
    """

    def __init__(
        self,
        backbone: GatedBackbone,
        image_set: ImageSet,
        *,
        cached_scores: dict[StaticTable, StaticTableScore] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.scores: dict[StaticTable, StaticTableScore] = {}
        self.image_set = image_set
        self.cached_scores = {} if cached_scores is None else cached_scores
        self._backbone = backbone
        self._batch_size = batch_size

    def score(self, tables: Iterable[StaticTable]) -> list[StaticTableScore]:
        """Return the score of each table."""
        wanted = list(tables)
        new = [table for table in dict.fromkeys(wanted) if table not in self.scores]
        unknown = [table for table in new if table not in self.cached_scores]
        if unknown:
            measured = score_static_tables(
                self._backbone, self.image_set, unknown, batch_size=self._batch_size
            )
            self.cached_scores.update(zip(unknown, measured, strict=True))
        self.scores.update((table, self.cached_scores[table]) for table in new)
        return [self.scores[table] for table in wanted]

    def accuracy(self, table: StaticTable) -> float:
        """Return the accuracy of a table in percent."""
        (score,) = self.score([table])
        return 100.0 * score.correct / len(self.image_set)


def losses_per_saving(
    scorer: StaticTableScorer, costs: CostTable, table: StaticTable, cheaper: Sequence[StaticTable]
) -> dict[StaticTable, float]:
    """Return the log-likelihood that each cheaper table loses per percent of cost that it saves."""
    now, *scores = scorer.score([table, *cheaper])
    spent = static_table_computation(costs, table)
    saved = [spent - static_table_computation(costs, one) for one in cheaper]
    return {
        one: (now.log_likelihood - score.log_likelihood) / less
        for one, score, less in zip(cheaper, scores, saved, strict=True)
        if less > 0  # measured times may not fall
    }
