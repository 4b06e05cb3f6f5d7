"""Search for a static bit table: the best one within a budget, and greedy descent.

``search_static_table`` scores every table of a small space. In a larger space it climbs from the
best uniform table and from given tables: it changes one layer, then raises one layer and lowers
another, by accuracy and by the smoother log-likelihood. The rest of the allowed tables goes into
kicks: random changes of the best table, and another climb. At the end the whole split ranks the
best tables and the initial ones again, which removes some of the luck. All draws are fixed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScore,
    StaticTableScorer,
    canonicalize,
    cheapest_static_table,
    check_table_budget,
    evenly_spaced_subset,
    fit_to_budget,
    is_within_budget,
    losses_per_saving,
    static_table_computation,
)
from dfs_rl.utils.seeding import numpy_generator

_KICKED_SHARE = 4  # a kick changes one layer in four, at least two
_FRUITLESS_KICKS = 20

CachedScores = dict[int, dict[StaticTable, StaticTableScore]]
"""Scores of tables by the number of evenly spaced images of a split that they are of."""
_Moves = Callable[[StaticTable, int, CostTable], Iterator[StaticTable]]
_Key = Callable[[StaticTableScore], tuple[float, float]]
_BY_ACCURACY: _Key = attrgetter("correct", "log_likelihood")
_BY_LIKELIHOOD: _Key = attrgetter("log_likelihood", "correct")


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """Result and effort of a search for the best static bit table."""

    accuracy: float  # of the table on the selection split in percent; selected for being high
    computation: float  # of the table in percent, fixed parts included
    budget: float  # upper bound on it
    tables: int  # number of scored tables
    images: int  # number of images that score each table
    finalists: int  # number of tables that the whole split ranks again
    exhaustive: bool  # True if the whole split scored every table within the budget


def search_static_table(
    backbone: GatedBackbone,
    image_set: ImageSet,
    budget: float,
    *,
    initial_tables: Sequence[StaticTable] = (),
    search: SearchConfig | None = None,
    batch_size: int = BATCH_SIZE,
    cached_scores: CachedScores | None = None,
) -> tuple[StaticTable, SearchSummary]:
    """Search for the most accurate static bit table within a budget.

    The budget is in percent, fixed parts included. ``initial_tables`` are further tables to start
    from, which are fitted to it. ``cached_scores`` are those of earlier searches with the same
    backbone, images and batch size; new ones are added to them.

    Raises:
        ConfigError: If no table is within the budget.
    """
    search = search or SearchConfig()
    costs, n = backbone.costs, len(image_set)
    check_table_budget(costs, budget)
    part = evenly_spaced_subset(image_set, search.images)
    images = len(part)
    known = {} if cached_scores is None else cached_scores
    scorer = StaticTableScorer(
        backbone, part, cached_scores=known.setdefault(images, {}), batch_size=batch_size
    )
    start_tables, exhaustive = climb_tables(
        scorer, costs, budget, initial_tables=initial_tables, limit=search.tables
    )
    # Start tables are always finalists: the best of many tables on few images is partly luck.
    best_tables = ranking(scorer)[: search.finalists]
    ranked = list(dict.fromkeys([*best_tables, *(t for t in start_tables if t in scorer.scores)]))
    best, best_score = ranked[0], scorer.scores[ranked[0]]
    if images < n:
        whole = StaticTableScorer(
            backbone, image_set, cached_scores=known.setdefault(n, {}), batch_size=batch_size
        )
        pairs = zip(whole.score(ranked), ranked, strict=True)
        best_score, best = max(pairs, key=lambda pair: pair[0])
    return best, SearchSummary(
        accuracy=100.0 * best_score.correct / n,
        computation=static_table_computation(costs, best),
        budget=budget,
        tables=len(scorer.scores),
        images=images,
        finalists=len(ranked) if images < n else 0,
        exhaustive=exhaustive and images == n,
    )


def climb_tables(
    scorer: StaticTableScorer,
    costs: CostTable,
    budget: float,
    *,
    initial_tables: Sequence[StaticTable] = (),
    limit: int,
    on_scored: Callable[[int, StaticTable], None] | None = None,
) -> tuple[list[StaticTable], bool]:
    """Score every table within a budget, or if there are more than ``limit``, climb to the best.

    The scorer keeps the scores; budget and ``initial_tables`` are as in ``search_static_table``.
    ``on_scored`` is called with each newly scored table and their number so far.
    Return the tables that the search started from, and whether it scored all within the budget.
    """
    n_layers, n_options = costs.n_layers, costs.n_actions
    climber = _Climber(scorer, costs, budget, limit, on_scored)
    uniform = climber.best([(option,) * n_layers for option in range(n_options)], _BY_ACCURACY)
    start_tables = [] if uniform is None else [uniform]
    start_tables += [fit_to_budget(start, costs, budget) for start in initial_tables]
    if n_options**n_layers <= limit:
        climber.score(itertools.product(range(n_options), repeat=n_layers))
        return start_tables, True
    for key in (_BY_ACCURACY, _BY_LIKELIHOOD):
        for table in dict.fromkeys(start_tables):
            climber.climb(table, key)
    climber.kick()
    return start_tables, False


def ranking(scorer: StaticTableScorer) -> list[StaticTable]:
    """Return all scored tables, best first."""
    return sorted(scorer.scores, key=scorer.scores.__getitem__, reverse=True)


def greedy_path(
    scorer: StaticTableScorer, costs: CostTable, budget: float
) -> Iterator[StaticTable]:
    """Yield the tables of a greedy descent, from the most expensive to the first within a budget.

    Each step lowers the layer with the smallest loss of log-likelihood, which is smoother than the
    accuracy, per percent of computation saved. Losses are measured again after each step because
    the errors of layers add up; HAWQ (Dong et al., ICCV 2019) measures once, around full precision.
    Tables use no exits.

    Raises:
        ConfigError: If no table without an exit is within the budget.
    """
    check_table_budget(costs, budget, exits=False)
    table = (costs.options.full,) * costs.n_layers
    scorer.score([table])
    yield table
    while not is_within_budget(costs, table, budget):
        neighbors = [
            (*table[:layer], lower, *table[layer + 1 :])
            for layer, option in enumerate(table)
            if (lower := costs.lower_option(layer, option)) is not None
        ] or [cheapest_static_table(costs, exits=False)]
        losses = losses_per_saving(scorer, costs, table, neighbors)
        table = min(losses, key=losses.__getitem__)
        yield table


class _Climber:
    """Local search among the tables within a budget, up to a number of scored tables."""

    def __init__(
        self,
        scorer: StaticTableScorer,
        costs: CostTable,
        budget: float,
        max_tables: int,
        on_scored: Callable[[int, StaticTable], None] | None,
    ) -> None:
        self.scorer, self.costs, self.budget, self.max_tables = scorer, costs, budget, max_tables
        self.on_scored = on_scored

    @property
    def _exhausted(self) -> bool:
        return len(self.scorer.scores) >= self.max_tables

    def score(self, tables: Iterable[StaticTable]) -> list[StaticTable]:
        """Score tables within the budget as far as allowed, and return the scored ones."""
        scores = self.scorer.scores
        canonical = dict.fromkeys(canonicalize(self.costs, table) for table in tables)
        wanted = [t for t in canonical if is_within_budget(self.costs, t, self.budget)]
        known = len(scores)
        fresh = [table for table in wanted if table not in scores][: self.max_tables - known]
        self.scorer.score(fresh)
        if self.on_scored is not None:
            for number, table in enumerate(fresh, start=known + 1):
                self.on_scored(number, table)
        return [table for table in wanted if table in scores]

    def best(self, tables: Iterable[StaticTable], key: _Key) -> StaticTable | None:
        """Return the first best table within the budget, None if there is none."""
        return max(
            self.score(tables), key=lambda table: key(self.scorer.scores[table]), default=None
        )

    def climb(self, table: StaticTable, key: _Key) -> None:
        """Improve a table by ``key`` until no neighbor is better."""
        if not self.score([table]):
            return
        while not self._exhausted:
            before = table
            table = self._sweep(table, _single_changes, key)
            if table == before:
                table = self._sweep(table, _exchanges, key)
            if table == before:
                return

    def kick(self) -> None:
        """Climb from random changes of the best table until too many in a row improve nothing."""
        draw = numpy_generator("static table search")
        n_layers, n_options = self.costs.n_layers, self.costs.n_actions
        changes = min(n_layers, max(2, n_layers // _KICKED_SHARE))
        best, fruitless = ranking(self.scorer)[0], 0
        while fruitless < _FRUITLESS_KICKS and not self._exhausted:
            kicked = list(best)
            for layer in draw.choice(n_layers, size=changes, replace=False):
                kicked[layer] = int(draw.integers(n_options))
            self.climb(fit_to_budget(tuple(kicked), self.costs, self.budget), _BY_ACCURACY)
            leader = ranking(self.scorer)[0]
            fruitless = fruitless + 1 if leader == best else 0
            best = leader

    def _sweep(self, table: StaticTable, moves: _Moves, key: _Key) -> StaticTable:
        """Take the best improving move of each layer in turn."""
        for layer in range(len(table)):
            best = self.best(moves(table, layer, self.costs), key)
            if best is not None and key(self.scorer.scores[best]) > key(self.scorer.scores[table]):
                table = best
        return table


def _single_changes(table: StaticTable, layer: int, costs: CostTable) -> Iterator[StaticTable]:
    """Yield every table with another action at ``layer``."""
    for option in range(costs.n_actions):
        if option != table[layer]:
            yield (*table[:layer], option, *table[layer + 1 :])


def _exchanges(table: StaticTable, layer: int, costs: CostTable) -> Iterator[StaticTable]:
    """Yield every table with ``layer`` one option higher and another layer one step lower."""
    full = costs.options.full
    if table[layer] >= full:
        return
    for other in range(len(table)):
        if other == layer or table[other] > full:
            continue
        lower = costs.lower_option(other, table[other])
        if lower is not None:
            moved = list(table)
            moved[layer] += 1
            moved[other] = lower
            yield tuple(moved)
