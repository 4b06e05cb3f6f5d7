"""One search for a static table, put together: tables tried, the best chosen on val, interruption, and going on."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_rl.agents.evaluation_callback import ValidationSetup, Validator, rewards_of
from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.agents.metrics_logger import TensorBoard
from dfs_rl.agents.progress import ProgressBar
from dfs_rl.agents.static.methods import STATIC_METHODS, Tried
from dfs_rl.agents.training import TrainingResult
from dfs_rl.backbones import StoredBackbone
from dfs_rl.data import Dataset
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.static_tables.budget import fits
from dfs_rl.evaluation.static_tables.scoring import Table, TableScore, TableScorer
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GATE_FOLDER
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.signals import StopRequest, stop_on_interrupt

CHECKPOINT = "scores"
FINALISTS = 8
"""Best tables by the batch of which the best by val is taken, which takes back some of the luck of having tried hundreds.

A greedy search's neighbours count as tried, so its last steps are among them where they keep to the budget.
"""
_SPLITS = ("agent", "val")


@dataclass(frozen=True, kw_only=True)
class StaticTraining:
    """What to search and how.

    Attributes:
        method: What tries tables.
        budget: Upper bound on computation in percent; a table needs no gate, so it has all of it.
        episodes: Tables that a learner tries; a greedy search ends by itself.
        images: Images of the agent split that each is tried on.
        eval_every: Choices between two validations, one per gated layer and episode.
        seed: Seed of everything.
        device: Where the backbone runs.
    """

    method: StaticMethod
    budget: float
    episodes: int
    images: int
    eval_every: int
    seed: int
    device: str

    def timesteps(self, n_layers: int, n_options: int) -> int:
        """Return the choices of the whole search; of a greedy one the most that there can be."""
        if self.method == "greedy":
            return n_layers * (n_options - 1)
        return self.episodes * n_layers


class StaticSearch:
    """What is known while a method tries tables: their scores, and the best so far.

    Nothing of a learner is stored. A run that goes on begins anew from its seed and takes the scores of the tables that it tried
    before from the disk; they are what takes the time, and they are exact, so it ends where it would have ended.

    Args:
        plan: What and how.
        stored: The backbone.
        dataset: Tables are tried on its agent split, and the best are chosen on its val split.
        run: Where everything goes; scores in it are taken.
        bar: Shows how far it is.
    """

    def __init__(
        self,
        plan: StaticTraining,
        stored: StoredBackbone,
        dataset: Dataset,
        run: RunFolder,
        *,
        bar: ProgressBar,
    ) -> None:
        self.plan = plan
        self.stop = StopRequest()
        self._run = run
        self._bar = bar
        known = _load_scores(run)
        run.truncate_metrics(0)
        self.backbone = stored.backbone.prepare().to(plan.device)
        val = dataset.val.to(plan.device)
        self._val = TableScorer(self.backbone, val, known=known["val"])
        self.env = NetworkWideEnv(
            backbone=self.backbone,
            dataset=dataset,
            images=plan.images,
            budget=plan.budget,
            continuous=STATIC_METHODS[plan.method].continuous,
            device=plan.device,
        )
        self.env.scorer.remember(known["agent"])
        self._board = TensorBoard(run, purge_step=0 if any(known.values()) else None)
        self.validator: Validator[TableGate] = Validator(
            ValidationSetup(
                images=val,
                # All tables that are validated keep to the budget, so that only what they get right counts.
                reward=lambda records, costs: rewards_of(
                    records, costs, RewardWeights(cost=0.0), budget=None
                ),
                every=plan.eval_every,
                total=plan.timesteps(self.backbone.costs.n_layers, len(self.backbone.options)),
            ),
            backbone=lambda: self.backbone,
            keep=lambda gate: save_gate(gate, run.path / GATE_FOLDER),
            run=run,
            board=self._board,
            report=bar.report,
        )
        self._timesteps = 0
        self._validated_at: int | None = None
        self._began = time.perf_counter()

    def watch(self, tried: Tried) -> bool:
        """Log a table that was tried, validate if it is time, and say whether to go on."""
        self._timesteps = tried.timesteps
        figures = {"accuracy": tried.accuracy, "computation": tried.computation}
        if tried.reward is not None:
            figures["reward"] = tried.reward
        self._run.log(
            {
                "kind": "episode",
                "timesteps": tried.timesteps,
                "options": list(tried.table),
                **figures,
            }
        )
        rate = tried.timesteps / (time.perf_counter() - self._began)
        self._board.scalars(
            {f"rollout/{k}": v for k, v in figures.items()} | {"time/steps_per_second": rate},
            tried.timesteps,
        )
        self._bar.update(tried.timesteps, tried=f"{tried.accuracy:.1f} %")
        requested = self.stop.made  # once: it may change at any moment
        due = self.validator.is_due(tried.timesteps)
        if due:
            self.validate()
        if due or requested:
            self.save()
        return not requested

    def validate(self) -> None:
        """Measure the best table so far on val, and keep it if it is good; a greedy search has none until it ends."""
        costs, scores = self.backbone.costs, self.env.scorer.scores
        affordable = [table for table in scores if fits(costs, table, self.plan.budget)]
        finalists = sorted(affordable, key=lambda table: scores[table], reverse=True)[:FINALISTS]
        if not finalists or self._timesteps == self._validated_at:
            return
        self._validated_at = self._timesteps
        ranked = zip(self._val.score(finalists), finalists, strict=True)
        _, best = max(ranked, key=lambda pair: pair[0])
        gate = TableGate(
            best, options=self.backbone.options, name=STATIC_METHODS[self.plan.method].label
        )
        self.validator.validate(gate, self._timesteps)

    def save(self) -> None:
        """Store all scores."""
        tensors: dict[str, Tensor] = {}
        for split, scorer in zip(_SPLITS, (self.env.scorer, self._val), strict=True):
            tensors |= {f"{split}.{k}": v for k, v in _to_tensors(scorer.known()).items()}
        self._run.save_checkpoint(CHECKPOINT, tensors, {"images": self.plan.images})

    def close(self) -> None:
        """Leave bar and board as they stand."""
        self._bar.close()
        self._board.close()


def train_static(
    plan: StaticTraining,
    stored: StoredBackbone,
    dataset: Dataset,
    run: RunFolder,
    *,
    bar: ProgressBar,
) -> TrainingResult:
    """Find a table and keep it as the run's gate, see ``StaticSearch``.

    Ctrl-C finishes the table at hand, saves and ends; a second one ends at once.

    Args:
        plan: What and how.
        stored: The backbone, which stays as it is.
        dataset: Tables are tried on its agent split, and the best are chosen on its val split.
        run: Where everything goes.
        bar: Shows how far it is.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once everything is saved.
        ConfigError: If the budget does not suffice for the cheapest table.
        CheckpointError: If the stored scores do not fit.
    """
    search = StaticSearch(plan, stored, dataset, run, bar=bar)
    bar.start(0)
    try:
        with stop_on_interrupt() as search.stop:
            STATIC_METHODS[plan.method].find(search.env, plan.episodes, plan.seed, search.watch)
            if search.stop.made:
                raise KeyboardInterrupt
            search.validate()
            search.save()
    finally:
        search.close()
    assert search.validator.best is not None, "the cheapest table keeps to the budget"
    tried = len(search.env.scorer.scores) * len(search.env.scorer.image_set)
    return TrainingResult(best=search.validator.best, images_seen={"gate": tried, "backbone": 0})


def _to_tensors(scores: Mapping[Table, TableScore]) -> dict[str, Tensor]:
    """Return scores as tensors, which keep every bit of them."""
    return {
        "tables": torch.tensor(list(scores), dtype=torch.int64),
        "correct": torch.tensor([score.correct for score in scores.values()]),
        "log_likelihood": torch.tensor(
            [score.log_likelihood for score in scores.values()], dtype=torch.float64
        ),
    }


def _load_scores(run: RunFolder) -> dict[str, dict[Table, TableScore]]:
    """Return the scores that an earlier start of the run stored, by split."""
    if not run.has_checkpoint(CHECKPOINT):
        return {split: {} for split in _SPLITS}
    tensors = run.load_checkpoint(CHECKPOINT).tensors
    try:
        return {
            split: {
                tuple(table): TableScore(correct, likelihood)
                for table, correct, likelihood in zip(
                    tensors[f"{split}.tables"].tolist(),
                    tensors[f"{split}.correct"].tolist(),
                    tensors[f"{split}.log_likelihood"].tolist(),
                    strict=True,
                )
            }
            for split in _SPLITS
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the scores in {run.checkpoint_dir} are not those of a search for a table: {error}."
        ) from error
