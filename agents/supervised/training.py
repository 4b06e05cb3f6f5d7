"""One training of a gate by supervision, put together: checkpoints, validation, interruption, and going on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfs_rl.agents.best_gate import BestGate
from dfs_rl.agents.checkpoint import last_checkpoint
from dfs_rl.agents.cotraining import CoTrainer
from dfs_rl.agents.cotraining_config import CoTrainConfig
from dfs_rl.agents.evaluation_callback import ValidationSetup, Validator, rewards_of
from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.hyperparameters import BuiltKind, FeatureChoice, Start
from dfs_rl.agents.metrics_logger import TensorBoard
from dfs_rl.agents.pretraining import begin_uniform, likeliest_within, walks_to_begin
from dfs_rl.agents.progress import ProgressBar
from dfs_rl.agents.supervised.blockdrop import BlockDropTrainer
from dfs_rl.agents.supervised.config import BlockDropConfig, Method, SkipNetConfig, SupervisedConfig
from dfs_rl.agents.supervised.gumbel import SupervisedTrainer
from dfs_rl.agents.supervised.skipnet import SkipNetTrainer, skip_or_run
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, SupervisedState
from dfs_rl.agents.training import TrainingResult
from dfs_rl.backbones import Backbone, StoredBackbone
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import SKIP, CostTable
from dfs_rl.data import Dataset
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import BudgetRange, Dial, even_positions
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from dfs_rl.utils.seeding import seed_everything, stream_seed
from dfs_rl.utils.signals import stop_on_interrupt

_SPAN = 8.0
_STRETCHES = 8
"""Of the dial, within each of which images together hold its budgets."""


@dataclass(frozen=True, kw_only=True)
class SupervisedTraining:
    """What to train and how.

    Attributes:
        method: How choices are made and the budget is held.
        kind: What the gate is.
        config: Hyperparameters of all methods.
        skipnet: Those of SkipNet alone.
        blockdrop: Those of BlockDrop alone, which takes a gate that decides everything at once.
        cotrain: How the backbone learns together with a gumbel or dfs gate; ``None`` leaves it frozen.
        timesteps: Decisions to learn from; one image walked once is as many as there are gated layers. Images that a co-trained
            backbone learns from count too, also for the first phase of dfs, in which there are none.
        budget: What images may cost on average, in percent, everything included.
        all_budgets: Whether to learn one gate for many budgets, ``budget`` among them, or one for ``budget`` alone.
        budgets: Those many; ``None`` for the usual ones, see ``budgets_of``.
        features: What the gate looks at.
        hidden: Width of the gate; ``None`` for its kind's own.
        start: Where to begin, see ``uniform_start``; only a gumbel gate on a frozen backbone can begin anywhere but indifferent.
        eval_every: Timesteps between two validations.
        val_walks: How often each val image is walked in a validation, if the gate has a dial.
        checkpoint_every: Timesteps between two checkpoints.
        seed: Seed of everything.
        device: Where to compute.
        name: What tables and plots call the gate.
    """

    method: Method
    kind: BuiltKind
    config: SupervisedConfig
    skipnet: SkipNetConfig
    blockdrop: BlockDropConfig
    cotrain: CoTrainConfig | None
    timesteps: int
    budget: float
    all_budgets: bool
    budgets: BudgetRange | None
    features: FeatureChoice
    hidden: int | None
    start: Start = "indifferent"
    eval_every: int
    val_walks: int = 1
    checkpoint_every: int
    seed: int
    device: str
    name: str

    def per_step(self, n_layers: int, n_images: int) -> int:
        """Return the timesteps of one batch."""
        return n_layers * min(self.config.batch_size, n_images)

    def timesteps_made(self, n_layers: int, n_images: int) -> int:
        """Return the gate's part of ``timesteps`` rounded up to whole batches."""
        each = self.per_step(n_layers, n_images)
        own = self.timesteps
        if self.cotrain is not None:
            own = self.cotrain.gate_timesteps(own, each // n_layers)
        return -(-own // each) * each


def build_gate(plan: SupervisedTraining, backbone: WalkableBackbone) -> LearnedGate:
    """Build the untrained gate; the same seed gives the same weights.

    Raises:
        ConfigError: If the method needs options that the backbone lacks.
    """
    seed_everything(stream_seed(plan.seed, "gate") % 2**32)
    return untrained_gate(
        backbone,
        kind=plan.kind,
        features=plan.features,
        hidden=plan.hidden,
        dial=Dial() if plan.all_budgets else None,
        choices=skip_or_run(backbone.options) if plan.method == "skipnet" else None,
        name=plan.name,
    )


def build_trainer(
    plan: SupervisedTraining, task: GateTask, cotrainer: CoTrainer | None
) -> GateTrainer:
    """Build what trains ``plan``'s gate, and its backbone with it where there is a ``cotrainer``."""
    if plan.method == "skipnet":
        return SkipNetTrainer(plan.skipnet, plan.config, task)
    if plan.method == "blockdrop":
        return BlockDropTrainer(plan.blockdrop, plan.config, task)
    return SupervisedTrainer(plan.method, plan.config, task, cotrainer)


def rewards_within(
    records: GateRecords, costs: CostTable, *, budget: float, budgets: BudgetRange | None = None
) -> Tensor:
    """Return what each image is worth to a gate whose mean computation has an upper bound, float64 ``[n]``.

    Accuracy and likelihood count as for an agent; what the mean is above the budget costs all images alike.

    Args:
        records: Of the validation images; with ``budgets``, image ``i`` walked at the ``i``-th of ``even_positions``.
        costs: The backbone's.
        budget: In percent.
        budgets: Where there are many: each stretch of the dial, with all of its images, has its own, and ``budget`` none.
    """
    rewards = rewards_of(records, costs, RewardWeights(cost=0.0), budget=None)
    computation = records.computation(costs)
    if budgets is None:
        return (
            rewards - RewardWeights.overshoot * max(0.0, float(computation.mean()) - budget) / 100.0
        )
    positions = even_positions(len(computation)).double()
    over = computation - budgets.budgets(positions)
    stretch = (positions * _STRETCHES).long()  # [n]
    total = torch.zeros(_STRETCHES, dtype=torch.float64).index_add(0, stretch, over)
    mean = total / torch.bincount(stretch, minlength=_STRETCHES).clamp(min=1)
    return rewards - RewardWeights.overshoot * mean.clamp(min=0.0)[stretch] / 100.0


def budgets_of(
    plan: SupervisedTraining, costs: CostTable, *, gate_macs: float
) -> BudgetRange | None:
    """Return the budgets that a gate learns, ``None`` if it is one alone.

    The usual ones run from what it costs to run every layer at the lowest bits, which is about as little as a gate can do with
    without skipping, to eight times that, where low bits have lost all they can gain; and as far as the plan's own budget.
    """
    if not plan.all_budgets:
        return None
    if plan.budgets is not None:
        return plan.budgets
    fixed = 100.0 * costs.fixed_cost(gate_macs=gate_macs)
    first = 1 if costs.options[0] == SKIP else 0
    lowest = 100.0 * float(costs.option_costs()[:, first].sum())
    return BudgetRange(
        lowest=min(fixed + lowest, plan.budget),
        highest=max(fixed + _SPAN * lowest, plan.budget),
    )


def targets(
    plan: SupervisedTraining, costs: CostTable, *, gate_macs: float
) -> Callable[[Tensor], Tensor]:
    """Return what the gated layers may cost at each position of the dial, as a fraction, float64 in and out.

    Raises:
        ConfigError: If a budget does not suffice for the cheapest choices.
    """
    budgets = budgets_of(plan, costs, gate_macs=gate_macs)
    lowest = plan.budget if budgets is None else budgets.lowest
    left = gated_budget(costs, lowest, gate_macs=gate_macs)
    if budgets is None:
        return lambda positions: torch.full_like(positions, left)
    fixed = 100.0 * costs.fixed_cost(gate_macs=gate_macs)
    return lambda positions: (budgets.budgets(positions) - fixed) / 100.0


def train_supervised(
    plan: SupervisedTraining,
    stored: StoredBackbone,
    dataset: Dataset,
    run: RunFolder,
    *,
    bar: ProgressBar,
) -> TrainingResult:
    """Train a gate to the end, or go on where the run's last checkpoint was made.

    Ctrl-C finishes the batch at hand, saves and ends; a second one ends at once.

    Args:
        plan: What and how.
        stored: The backbone; changed in place with ``plan.cotrain``.
        dataset: The gate learns on its agent split and is validated on its val split; a co-trained backbone learns on the train split.
        run: Where everything goes. A checkpoint in it is continued.
        bar: Shows how far it is.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once everything is saved.
        ConfigError: If the budget does not suffice for the cheapest choices.
        TrainingError: If the loss is no longer finite.
        CheckpointError: If the checkpoint does not fit.
    """
    device = torch.device(plan.device)
    backbone: Backbone = stored.backbone.to(device).eval()
    cotrainer = _make_cotrainer(plan, backbone, dataset)
    if cotrainer is None:
        backbone.requires_grad_(requires_grad=False)
    frozen = backbone.prepare().to(device)  # in float32, as the form that it is mixed with
    agent = dataset.agent.to(device)
    gate = build_gate(plan, backbone).to(device)
    each = plan.per_step(backbone.costs.n_layers, len(agent))
    total = plan.timesteps_made(backbone.costs.n_layers, len(agent)) // each
    target = targets(plan, backbone.costs, gate_macs=gate.macs)
    trainer = build_trainer(
        plan,
        GateTask(
            backbone=backbone,
            frozen=frozen,
            gate=gate,
            images=agent,
            target=target,
            steps=total,
            seed=plan.seed,
        ),
        cotrainer,
    )
    best = BestGate(run, stored, cotrained=cotrainer is not None)
    checkpoint = last_checkpoint(run, SupervisedState)
    state: dict[str, Any] = {} if checkpoint is None else checkpoint.state
    if checkpoint is not None:
        trainer.restore(checkpoint.tensors, state["trainer"])
        best.restore(build_gate(plan, backbone), checkpoint.tensors)
    run.truncate_metrics(state.get("metrics", 0))
    board = TensorBoard(run, purge_step=trainer.steps * each if checkpoint else None)
    validator = Validator(
        ValidationSetup(
            images=dataset.val.to(device),
            reward=partial(
                rewards_within,
                budget=plan.budget,
                budgets=budgets_of(plan, backbone.costs, gate_macs=gate.macs),
            ),
            every=plan.eval_every,
            total=total * each,
            walks=plan.val_walks,
        ),
        backbone=lambda: trainer.frozen,
        keep=best.keep,
        run=run,
        board=board,
        report=bar.report,
        # A training that was copied with other settings chooses its best gate anew.
        resumed=(state["validation"], checkpoint.tensors)
        if checkpoint and state["validation"]
        else None,
    )

    def save() -> None:
        tensors = trainer.tensors() | best.tensors() | validator.tensors()
        extra = {"metrics": len(run.read_metrics()), "validation": validator.state}
        run.save_checkpoint(LAST_CHECKPOINT, tensors, {"trainer": trainer.state} | extra)

    if checkpoint is None:
        if plan.start == "uniform":
            begin_uniform(gate, frozen, agent, likeliest_within(frozen, target), seed=plan.seed)
        validator.validate(gate.eval(), 0)
        save()
    began, first = time.perf_counter(), trainer.steps
    bar.start(trainer.steps * each)
    try:
        with stop_on_interrupt() as stop:
            while trainer.steps < total:
                losses = trainer.step()
                timesteps = trainer.steps * each
                run.log({"kind": "update", "timesteps": timesteps, **losses._asdict()})
                figures = {k: v for k, v in losses._asdict().items() if v is not None}
                rate = (trainer.steps - first) * each / (time.perf_counter() - began)
                figures["steps_per_second"] = rate
                board.scalars({f"train/{k}": v for k, v in figures.items()}, timesteps)
                bar.update(timesteps, loss=f"{losses.labels:.3f}")
                ended = trainer.steps == total
                if validator.is_due(timesteps) or ended:
                    validator.validate(gate.eval(), timesteps)
                requested = stop.made  # once: it may change at any moment
                due = timesteps // plan.checkpoint_every > (
                    (timesteps - each) // plan.checkpoint_every
                )
                if due or ended or requested:
                    save()
                if requested and not ended:
                    raise KeyboardInterrupt
    finally:
        bar.close()
        board.close()
    assert validator.best is not None
    walks = trainer.steps * each // backbone.costs.n_layers
    walks += walks_to_begin(backbone.costs) if plan.start == "uniform" else 0
    return TrainingResult(
        best=validator.best,
        images_seen={"gate": walks, "backbone": cotrainer.images_seen if cotrainer else 0},
    )


def _make_cotrainer(
    plan: SupervisedTraining, backbone: Backbone, dataset: Dataset
) -> CoTrainer | None:
    if plan.cotrain is None:
        return None
    return CoTrainer(
        plan.cotrain,
        backbone,
        dataset,
        seed=plan.seed,
        budget=None,
        greedy=plan.method == "dfs",
    )
