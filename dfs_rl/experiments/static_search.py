"""Search for a static bit table: the agent split scores tables, the val split selects one."""

import time
from pkgutil import resolve_name

import torch
from torch import Tensor

from dfs_rl.agents.logging import ProgressBar
from dfs_rl.agents.static.methods import STATIC_METHODS, EvaluatedTable
from dfs_rl.agents.validation import Validator, rewards_of
from dfs_rl.backbones import Backbone, StoredBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import Dataset
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScore,
    StaticTableScorer,
    is_within_budget,
)
from dfs_rl.experiments.budgets import check_highest_budget
from dfs_rl.experiments.config import N_VALIDATIONS
from dfs_rl.experiments.search_config import TrainStaticConfig
from dfs_rl.experiments.session import RunSession, TrainingRecord
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.signals import StopRequest

CHECKPOINT = "scores"
FINALISTS = 8
"""Number of best tables on the agent split that val selects from; avoids selection by luck."""
_SPLITS = ("agent", "val")
_COLUMNS = ("tables", "correct", "log_likelihood")
"""Tensors of a split's scores in the checkpoint, one row per table."""


def search_timesteps(config: TrainStaticConfig, costs: CostTable) -> int:
    """Return the number of steps of a whole search, or an upper bound on it."""
    method = STATIC_METHODS[config.method]
    return method.max_timesteps(config.episodes, costs.n_layers, len(costs.options))


class StaticSearch:
    """Scores of the static bit tables that a method evaluates, and the best table so far.

    The state of a learner is not stored. A resumed run starts over from its seed and reads the
    scores of the tables that it evaluated before. Scores take most of the time and are exact, so
    the run ends with the same result.
    """

    def __init__(
        self,
        config: TrainStaticConfig,
        stored: StoredBackbone,
        dataset: Dataset,
        run: RunFolder,
        bar: ProgressBar,
    ) -> None:
        device = resolve_device(config.device)
        self.config = config
        self.stop = StopRequest()
        self._run = run
        self._bar = bar
        cached_scores = _load_scores(run)
        self.session: RunSession[None] = RunSession(run, None, report=bar.report)
        self.backbone = stored.backbone.to_inference().to(device)
        val = dataset.val.to(device)
        self._val = StaticTableScorer(self.backbone, val, cached_scores=cached_scores["val"])
        self.env = NetworkWideEnv(
            backbone=self.backbone,
            dataset=dataset,
            images=config.images,
            budget=config.budget,
            continuous=STATIC_METHODS[config.method].continuous,
            device=str(device),
        )
        self.env.scorer.cached_scores.update(cached_scores["agent"])
        self._board = self.session.open_board(purge_step=0 if any(cached_scores.values()) else None)
        # All validated tables are within the budget, so cost does not count.
        free = RewardWeights(cost=0.0)
        self.validator = self.session.validate_on(
            Validator(
                val,
                reward=lambda records, costs: rewards_of(records, costs, free, budget=None),
                every=self.backbone.costs.n_layers * max(1, config.episodes // N_VALIDATIONS),
                total=search_timesteps(config, self.backbone.costs),
                backbone=lambda: self.backbone,
            ),
            dataset.class_names,
        )
        self._timesteps = 0
        self._validated_at: int | None = None
        self._began = time.perf_counter()

    def on_table(self, evaluated: EvaluatedTable) -> bool:
        """Log a table, validate and save if due; return False to stop the search."""
        self._timesteps = steps = evaluated.timesteps
        figures = {"accuracy": evaluated.accuracy, "computation": evaluated.computation}
        if evaluated.reward is not None:
            figures["reward"] = evaluated.reward
        options = list(evaluated.table)
        self.session.log({"kind": "episode", "timesteps": steps, "options": options, **figures})
        rate = steps / (time.perf_counter() - self._began)
        rollout = {f"rollout/{name}": value for name, value in figures.items()}
        self._board.scalars(rollout | {"time/steps_per_second": rate}, steps)
        self._bar.update(steps, table=f"{evaluated.accuracy:.1f} %")
        requested = self.stop.requested  # read once: it may change at any moment
        due = self.validator.is_due(steps)
        if due:
            self.validate()
        if due or requested:
            self.save()
        return not requested

    def validate(self) -> None:
        """Select the best table so far on val among those within the budget, and keep it."""
        costs, scores = self.backbone.costs, self.env.scorer.scores
        affordable = [
            table for table in scores if is_within_budget(costs, table, self.config.budget)
        ]
        finalists = sorted(affordable, key=lambda table: scores[table], reverse=True)[:FINALISTS]
        if not finalists or self._timesteps == self._validated_at:
            return
        self._validated_at = self._timesteps
        ranked = zip(self._val.score(finalists), finalists, strict=True)
        _, best = max(ranked, key=lambda pair: pair[0])
        gate = TableGate(
            best,
            options=costs.options,
            exits=costs.exits_after,
            name=STATIC_METHODS[self.config.method].label,
        )
        self.session.validate(gate, self._timesteps)

    def save(self) -> None:
        """Store all scores."""
        tensors: dict[str, Tensor] = {}
        for split, scorer in zip(_SPLITS, (self.env.scorer, self._val), strict=True):
            tables, scores = list(scorer.cached_scores), scorer.cached_scores.values()
            tensors |= {
                f"{split}.tables": torch.tensor(tables, dtype=torch.int64),
                f"{split}.correct": torch.tensor([score.correct for score in scores]),
                f"{split}.log_likelihood": torch.tensor(
                    [score.log_likelihood for score in scores], dtype=torch.float64
                ),
            }
        self._run.save_checkpoint(CHECKPOINT, tensors, {"images": self.config.images})


def validate(config: TrainStaticConfig, dataset: Dataset, backbone: Backbone) -> str:
    """Validate the configuration against the backbone, and return the run's name."""
    gated_budget(backbone.costs, config.budget)
    check_highest_budget(config.budget, backbone.costs)
    return f"static-{config.method}-{dataset.name}"


def train(
    config: TrainStaticConfig,
    dataset: Dataset,
    run: RunFolder,
    stored: StoredBackbone,
    *,
    bar: ProgressBar | None = None,
) -> TrainingRecord:
    """Search a static bit table and keep it as the run's gate, see ``StaticSearch``.

    Ctrl-C finishes the current table, saves and ends with KeyboardInterrupt; a second one ends at
    once.
    """
    bar = bar or ProgressBar(search_timesteps(config, stored.backbone.costs), cost=config.cost)
    search = StaticSearch(config, stored, dataset, run, bar)
    find = resolve_name(STATIC_METHODS[config.method].find)
    bar.start(0)
    try:
        with search.session.running() as search.stop:
            find(search.env, config.episodes, config.seed, search.on_table)
            if search.stop.requested:
                raise KeyboardInterrupt
            search.validate()
            search.save()
    finally:
        bar.close()
    scorer = search.env.scorer
    return search.session.result(gate_images=len(scorer.scores) * len(scorer.image_set))


def _load_scores(run: RunFolder) -> dict[str, dict[StaticTable, StaticTableScore]]:
    """Return the scores that an earlier start of the run stored, by split."""
    if not run.has_checkpoint(CHECKPOINT):
        return {split: {} for split in _SPLITS}
    tensors, scores = run.load_checkpoint(CHECKPOINT).tensors, {}
    try:
        for split in _SPLITS:
            columns = (tensors[f"{split}.{name}"].tolist() for name in _COLUMNS)
            scores[split] = {
                tuple(table): StaticTableScore(correct, likelihood)
                for table, correct, likelihood in zip(*columns, strict=True)
            }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint in {run.checkpoint_dir} has no scores of static bit tables: {error}."
        ) from error
    return scores
