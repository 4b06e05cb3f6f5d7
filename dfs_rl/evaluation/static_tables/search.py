"""Search for the best static per-layer table under a budget on computation.

Small spaces are enumerated. Larger ones are climbed, from the best uniform table and from the
gate's mode table, by changing one layer, then by raising one layer and lowering another; first by
accuracy, then by the smoother log-likelihood. What is left of the allowance goes into kicks: the
best table so far with some layers changed at random, climbed again. The best tables met on the way
are ranked again by accuracy on the whole split, the starts among them, which takes back some of the
luck of a search on part of it. Order and draws are fixed, so the same inputs find the same table.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.static_tables.budget import (
    canonicalize,
    cheapest_static_table,
    fit_to_budget,
    is_within_budget,
    static_table_computation,
)
from dfs_rl.evaluation.static_tables.config import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScore,
    StaticTableScorer,
    evenly_spaced_subset,
)
from dfs_rl.utils.seeding import numpy_generator

_KICKED_SHARE = 4  # a kick changes one layer in four, at least two
_FRUITLESS_KICKS = 20

CachedScores = Callable[[int], dict[StaticTable, StaticTableScore]]
"""Returns scores of tables by how many of a split's images they are on, to be read and added to."""

_Moves = Callable[[StaticTable, int, CostTable], Iterator[StaticTable]]
_Key = Callable[[StaticTableScore], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the search found and how hard it looked.

    Attributes:
        table: Option index of each gated layer.
        accuracy: Its accuracy on the selection split, in percent; it was picked for being high.
        computation: Its computation in percent, fixed parts included.
        budget: The computation it had to stay under, in percent.
        tables: Tables scored.
        images: Images that each of them was scored on.
        finalists: Tables scored again on the whole split.
        exhaustive: Whether every table under the budget was scored on the whole split.
    """

    table: StaticTable
    accuracy: float
    computation: float
    budget: float
    tables: int
    images: int
    finalists: int
    exhaustive: bool


def search_static_table(
    backbone: WalkableBackbone,
    image_set: ImageSet,
    budget: float,
    *,
    initial_tables: Sequence[StaticTable] = (),
    search: SearchConfig | None = None,
    batch_size: int = BATCH_SIZE,
    cached_scores: CachedScores | None = None,
) -> SearchResult:
    """Find the static table of the highest accuracy whose computation is at most ``budget``.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        image_set: The selection split.
        budget: Upper bound on computation in percent, fixed parts included.
        initial_tables: Tables to start from beside the uniform ones; lowered until they fit.
        search: How long to search; None for the defaults.
        batch_size: Images that run together.
        cached_scores: Scores of earlier searches with the same backbone, images and batch size,
            which are taken over and added to. They save time and change nothing else.

    Raises:
        ConfigError: If even the cheapest table is above ``budget``.
    """
    search = search or SearchConfig()
    costs = backbone.costs
    n_layers, n_options = costs.n_layers, costs.n_actions
    cheapest = cheapest_static_table(costs)
    if not is_within_budget(costs, cheapest, budget):
        raise ConfigError(
            f"no static table costs at most {budget:.4g} %; the cheapest costs "
            f"{static_table_computation(costs, cheapest):.4g} %."
        )
    n = len(image_set)
    part = evenly_spaced_subset(image_set, search.images)
    images = len(part)
    cached_scores = cached_scores or (lambda _: {})
    scorer = _Scorer(backbone, part, budget, search.tables, batch_size, cached_scores(images))
    enumerable = n_options**n_layers <= search.tables
    uniform = [(option,) * n_layers for option in range(n_options)]
    start_tables = [best for best in [scorer.best(uniform, _by_accuracy)] if best is not None]
    start_tables += [fit_to_budget(start, costs, budget) for start in initial_tables]
    if enumerable:
        scorer.score(itertools.product(range(n_options), repeat=n_layers))
    else:
        for key, table in itertools.product(
            (_by_accuracy, _by_likelihood), dict.fromkeys(start_tables)
        ):
            _climb(table, scorer, costs, key)
        _kick(scorer, costs, budget)
    # The starts are always finalists: the best of hundreds of tables on part of the images owes much of its lead to luck.
    finalists = [
        *scorer.ranking()[: search.finalists],
        *(t for t in start_tables if t in scorer.scores),
    ]
    ranked = list(dict.fromkeys(finalists))
    if images < n:
        whole = StaticTableScorer(
            backbone, image_set, cached_scores=cached_scores(n), batch_size=batch_size
        )
        scores = whole.score(ranked)
        again = sorted(zip(scores, ranked, strict=True), key=lambda pair: pair[0], reverse=True)
        best_score, best = again[0]
    else:
        best, best_score = ranked[0], scorer.scores[ranked[0]]
    return SearchResult(
        table=best,
        accuracy=100.0 * best_score.correct / n,
        computation=static_table_computation(costs, best),
        budget=budget,
        tables=len(scorer.scores),
        images=images,
        finalists=len(ranked) if images < n else 0,
        exhaustive=enumerable and images == n,
    )


class _Scorer:
    """Scores tables under the budget, each once, until the allowance is used up; a table stands for what images do by it."""

    def __init__(
        self,
        backbone: WalkableBackbone,
        image_set: ImageSet,
        budget: float,
        max_tables: int,
        batch_size: int,
        cached_scores: dict[StaticTable, StaticTableScore],
    ) -> None:
        self._scorer = StaticTableScorer(
            backbone, image_set, cached_scores=cached_scores, batch_size=batch_size
        )
        self._costs = backbone.costs
        self._budget = budget
        self._max_tables = max_tables

    @property
    def scores(self) -> Mapping[StaticTable, StaticTableScore]:
        """Every table scored so far."""
        return self._scorer.scores

    @property
    def exhausted(self) -> bool:
        return len(self.scores) >= self._max_tables

    def score(self, tables: Iterable[StaticTable]) -> list[StaticTable]:
        """Score those tables that fit, as far as the allowance goes; return the ones scored."""
        asked = (canonicalize(self._costs, table) for table in tables)
        wanted = [
            table
            for table in dict.fromkeys(asked)
            if is_within_budget(self._costs, table, self._budget)
        ]
        fresh = [table for table in wanted if table not in self.scores]
        self._scorer.score(fresh[: self._max_tables - len(self.scores)])
        return [table for table in wanted if table in self.scores]

    def best(self, tables: Iterable[StaticTable], key: _Key) -> StaticTable | None:
        """Return the best of those tables that fit, the first of equals; None if none does."""
        return max(self.score(tables), key=lambda table: key(self.scores[table]), default=None)

    def ranking(self) -> list[StaticTable]:
        """Return every table scored, the best first."""
        return sorted(self.scores, key=lambda table: self.scores[table], reverse=True)


def _by_accuracy(score: StaticTableScore) -> tuple[float, float]:
    return score.correct, score.log_likelihood


def _by_likelihood(score: StaticTableScore) -> tuple[float, float]:
    return score.log_likelihood, score.correct


def _climb(table: StaticTable, scorer: _Scorer, costs: CostTable, key: _Key) -> None:
    """Improve ``table`` by ``key`` until no neighbour is better or the allowance is used up."""
    if not scorer.score([table]):
        return
    while not scorer.exhausted:
        before = table
        table = _sweep(table, scorer, _single_changes, costs, key)
        if table == before:
            table = _sweep(table, scorer, _exchanges, costs, key)
        if table == before:
            return


def _kick(scorer: _Scorer, costs: CostTable, budget: float) -> None:
    """Climb from random changes of the best table until too many in a row bring nothing."""
    draw = numpy_generator("static table search")
    n_layers, n_options = costs.n_layers, costs.n_actions
    changes = min(n_layers, max(2, n_layers // _KICKED_SHARE))
    best, fruitless = scorer.ranking()[0], 0
    while fruitless < _FRUITLESS_KICKS and not scorer.exhausted:
        kicked = list(best)
        for layer in draw.choice(n_layers, size=changes, replace=False):
            kicked[layer] = int(draw.integers(n_options))
        _climb(fit_to_budget(tuple(kicked), costs, budget), scorer, costs, _by_accuracy)
        leader = scorer.ranking()[0]
        fruitless = fruitless + 1 if leader == best else 0
        best = leader


def _sweep(
    table: StaticTable, scorer: _Scorer, moves: _Moves, costs: CostTable, key: _Key
) -> StaticTable:
    """Take each layer's best move that improves, layer after layer."""
    for layer in range(len(table)):
        best = scorer.best(moves(table, layer, costs), key)
        if best is not None and key(scorer.scores[best]) > key(scorer.scores[table]):
            table = best
    return table


def _single_changes(table: StaticTable, layer: int, costs: CostTable) -> Iterator[StaticTable]:
    """Every other action at ``layer``."""
    for option in range(costs.n_actions):
        if option != table[layer]:
            yield (*table[:layer], option, *table[layer + 1 :])


def _exchanges(table: StaticTable, layer: int, costs: CostTable) -> Iterator[StaticTable]:
    """``layer`` one option dearer and one other layer one option cheaper."""
    dearest = costs.options.full
    if table[layer] >= dearest:
        return
    for other in range(len(table)):
        if other != layer and 0 < table[other] <= dearest:
            moved = list(table)
            moved[layer] += 1
            moved[other] -= 1
            yield tuple(moved)
