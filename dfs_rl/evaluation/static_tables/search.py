"""Search for the best static per-layer table under a cap on computation.

Small spaces are enumerated. Larger ones are climbed, from the best uniform table and from the gate's
mode table, by changing one layer, then by raising one layer and lowering another; first by accuracy,
then by the smoother log-likelihood. What is left of the allowance goes into kicks: the best table so
far with some layers changed at random, climbed again. The best tables met on the way are ranked
again by accuracy on the whole split, the starts among them, which takes back some of the luck of a
search on part of it.
Order and draws are fixed, so the same inputs find the same table.
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
    cheapest_table,
    closed,
    fits,
    lower_dearest_first,
    table_computation,
)
from dfs_rl.evaluation.static_tables.config import SearchLimits
from dfs_rl.evaluation.static_tables.scoring import Table, TableScore, TableScorer, spread_subset
from dfs_rl.utils.seeding import numpy_generator

_KICKED_SHARE = 4  # a kick changes one layer in four, at least two
_FRUITLESS_KICKS = 20

KnownScores = Callable[[int], dict[Table, TableScore]]
"""Returns scores of tables by how many of a split's images they are on, to be read and added to."""

_Moves = Callable[[Table, int, CostTable], Iterator[Table]]
_Key = Callable[[TableScore], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the search found and how hard it looked.

    Attributes:
        table: Option index of each gated layer.
        accuracy: Its accuracy on the selection split, in percent; it was picked for being high.
        computation: Its computation in percent, fixed parts included.
        cap: The computation it had to stay under, in percent.
        tables: Tables scored.
        images: Images that each of them was scored on.
        finalists: Tables scored again on the whole split.
        exhaustive: Whether every table under the cap was scored on the whole split.
    """

    table: Table
    accuracy: float
    computation: float
    cap: float
    tables: int
    images: int
    finalists: int
    exhaustive: bool


def search_static_table(
    backbone: WalkableBackbone,
    image_set: ImageSet,
    cap: float,
    *,
    starts: Sequence[Table] = (),
    limits: SearchLimits | None = None,
    batch_size: int = BATCH_SIZE,
    known: KnownScores | None = None,
) -> SearchResult:
    """Find the static table of the highest accuracy whose computation is at most ``cap``.

    Args:
        backbone: The backbone, on the device of ``image_set``.
        image_set: The selection split.
        cap: Upper bound on computation in percent, fixed parts included.
        starts: Tables to start from beside the uniform ones; lowered until they fit.
        limits: How long to search; None for the defaults.
        batch_size: Images that run together.
        known: Scores of earlier searches with the same backbone, images and batch size, which are taken over and added to. They save
            time and change nothing else.

    Raises:
        ConfigError: If even the cheapest table is above ``cap``.
    """
    limits = limits or SearchLimits()
    costs = backbone.costs
    n_layers, n_options = costs.n_layers, costs.n_actions
    cheapest = cheapest_table(costs)
    if not fits(costs, cheapest, cap):
        raise ConfigError(
            f"no static table costs at most {cap:.4g} %; the cheapest costs {table_computation(costs, cheapest):.4g} %."
        )
    n = len(image_set)
    part = spread_subset(image_set, limits.images)
    images = len(part)
    known = known or (lambda _: {})
    scorer = _Scorer(backbone, part, cap, limits.tables, batch_size, known(images))
    enumerable = n_options**n_layers <= limits.tables
    uniform = [(option,) * n_layers for option in range(n_options)]
    begin = [best for best in [scorer.best(uniform, _by_accuracy)] if best is not None]
    begin += [lower_dearest_first(start, costs, cap) for start in starts]
    if enumerable:
        scorer.score(itertools.product(range(n_options), repeat=n_layers))
    else:
        for key, table in itertools.product((_by_accuracy, _by_likelihood), dict.fromkeys(begin)):
            _climb(table, scorer, costs, key)
        _kick(scorer, costs, cap)
    # The starts are always finalists: the best of hundreds of tables on part of the images owes much of its lead to luck.
    finalists = [*scorer.ranking()[: limits.finalists], *(t for t in begin if t in scorer.scores)]
    ranked = list(dict.fromkeys(finalists))
    if images < n:
        whole = TableScorer(backbone, image_set, known=known(n), batch_size=batch_size)
        scores = whole.score(ranked)
        again = sorted(zip(scores, ranked, strict=True), key=lambda pair: pair[0], reverse=True)
        best_score, best = again[0]
    else:
        best, best_score = ranked[0], scorer.scores[ranked[0]]
    return SearchResult(
        table=best,
        accuracy=100.0 * best_score.correct / n,
        computation=table_computation(costs, best),
        cap=cap,
        tables=len(scorer.scores),
        images=images,
        finalists=len(ranked) if images < n else 0,
        exhaustive=enumerable and images == n,
    )


class _Scorer:
    """Scores tables under the cap, each once, until the allowance is used up; a table stands for what images do by it."""

    def __init__(
        self,
        backbone: WalkableBackbone,
        image_set: ImageSet,
        cap: float,
        allowance: int,
        batch_size: int,
        known: dict[Table, TableScore],
    ) -> None:
        self._scorer = TableScorer(backbone, image_set, known=known, batch_size=batch_size)
        self._costs = backbone.costs
        self._cap = cap
        self._allowance = allowance

    @property
    def scores(self) -> Mapping[Table, TableScore]:
        """Every table scored so far."""
        return self._scorer.scores

    @property
    def exhausted(self) -> bool:
        return len(self.scores) >= self._allowance

    def score(self, tables: Iterable[Table]) -> list[Table]:
        """Score those tables that fit, as far as the allowance goes; return the ones scored."""
        asked = (closed(self._costs, table) for table in tables)
        wanted = [table for table in dict.fromkeys(asked) if fits(self._costs, table, self._cap)]
        fresh = [table for table in wanted if table not in self.scores]
        self._scorer.score(fresh[: self._allowance - len(self.scores)])
        return [table for table in wanted if table in self.scores]

    def best(self, tables: Iterable[Table], key: _Key) -> Table | None:
        """Return the best of those tables that fit, the first of equals; None if none does."""
        return max(self.score(tables), key=lambda table: key(self.scores[table]), default=None)

    def ranking(self) -> list[Table]:
        """Return every table scored, the best first."""
        return sorted(self.scores, key=lambda table: self.scores[table], reverse=True)


def _by_accuracy(score: TableScore) -> tuple[float, float]:
    return score.correct, score.log_likelihood


def _by_likelihood(score: TableScore) -> tuple[float, float]:
    return score.log_likelihood, score.correct


def _climb(table: Table, scorer: _Scorer, costs: CostTable, key: _Key) -> None:
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


def _kick(scorer: _Scorer, costs: CostTable, cap: float) -> None:
    """Climb from random changes of the best table until too many in a row bring nothing."""
    draw = numpy_generator("static table search")
    n_layers, n_options = costs.n_layers, costs.n_actions
    changes = min(n_layers, max(2, n_layers // _KICKED_SHARE))
    best, fruitless = scorer.ranking()[0], 0
    while fruitless < _FRUITLESS_KICKS and not scorer.exhausted:
        kicked = list(best)
        for layer in draw.choice(n_layers, size=changes, replace=False):
            kicked[layer] = int(draw.integers(n_options))
        _climb(lower_dearest_first(tuple(kicked), costs, cap), scorer, costs, _by_accuracy)
        leader = scorer.ranking()[0]
        fruitless = fruitless + 1 if leader == best else 0
        best = leader


def _sweep(table: Table, scorer: _Scorer, moves: _Moves, costs: CostTable, key: _Key) -> Table:
    """Take each layer's best move that improves, layer after layer."""
    for layer in range(len(table)):
        best = scorer.best(moves(table, layer, costs), key)
        if best is not None and key(scorer.scores[best]) > key(scorer.scores[table]):
            table = best
    return table


def _single_changes(table: Table, layer: int, costs: CostTable) -> Iterator[Table]:
    """Every other action at ``layer``."""
    for option in range(costs.n_actions):
        if option != table[layer]:
            yield (*table[:layer], option, *table[layer + 1 :])


def _exchanges(table: Table, layer: int, costs: CostTable) -> Iterator[Table]:
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
