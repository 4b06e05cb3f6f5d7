"""Supervised training of a gate by ``train_gumbel``."""

import time
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from dfs_rl.agents.cotraining import CoTrainer
from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.logging import ProgressBar
from dfs_rl.agents.pretraining import behavior_cloning, pretraining_images
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, SupervisedState
from dfs_rl.agents.validation import Validator, rewards_of
from dfs_rl.backbones import Backbone, StoredBackbone
from dfs_rl.backbones.footprint import backward_bytes
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import SKIP, CostTable
from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.experiments.budgets import check_highest_budget
from dfs_rl.experiments.config import DEFAULT_BUDGET
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.memory import training_needs
from dfs_rl.experiments.session import RunSession, TrainingRecord
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import (
    BudgetConditioning,
    BudgetRange,
    low_discrepancy_preferences,
)
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.device import check_memory, resolve_device
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.seeding import seed_everything, stream_seed

_SPAN = 8.0
"""Ratio of the highest to the lowest default budget of the gated layers."""
_MARGIN = 1.5
"""Ratio of the highest default budget to the most expensive bits, at most."""
_N_BINS = 8
"""Number of bins of the budget range; the mean computation is bounded within each bin."""


def steps_and_size(config: TrainGumbelConfig, n_layers: int, n_images: int) -> tuple[int, int]:
    """Return the gate's number of batches, and the timesteps of one batch.

    Images that a co-trained backbone learns from count as timesteps too, even in the first phase of
    DFS, which has none.
    """
    images = min(config.training.batch_size, n_images)
    own = config.timesteps
    if config.cotrains:
        own = config.cotrain.gate_timesteps(own, images)
    size = images * n_layers
    return -(-own // size), size


def build_gate(config: TrainGumbelConfig, backbone: GatedBackbone) -> LearnedGate:
    """Build the untrained gate; the same seed gives the same weights."""
    seed_everything(stream_seed(config.seed, "gate") % 2**32)
    method = config.training
    return untrained_gate(
        backbone,
        kind=config.kind,
        features=config.resolved_features,
        hidden=config.hidden,
        budget_conditioning=BudgetConditioning() if config.all_budgets else None,
        choices=method.choices(backbone.options),
        name=method.label if method.gate else f"{method.label} {config.gate.upper()}",
    )


def build_trainer(
    config: TrainGumbelConfig, task: GateTask, cotrainer: CoTrainer | None
) -> GateTrainer:
    """Build the method's trainer, which also trains the backbone where there is a ``cotrainer``."""
    method = config.training
    further: dict[str, Any] = {} if cotrainer is None else {"cotrainer": cotrainer}
    if method.block is not None:
        further[method.block] = getattr(config, method.block)
    trainer: GateTrainer = resolve_name(method.trainer)(method, task, **further)
    return trainer


def budgeted_rewards(
    records: GateRecords,
    costs: CostTable,
    *,
    budget: float | None,
    budgets: BudgetRange | None = None,
) -> Tensor:
    """Return each image's reward under a gate with bounded mean computation, float64 ``[n]``.

    Accuracy and likelihood count as for an agent; the excess of the mean over the budget, in
    percent, is subtracted from all images alike. With ``budgets``, image ``i`` runs at the ``i``-th
    of ``low_discrepancy_preferences``, and each bin of the range bounds the mean over its images.
    """
    rewards = rewards_of(records, costs, RewardWeights(cost=0.0), budget=None)
    computation = records.computation(costs)
    overshoot = RewardWeights.overshoot
    if budgets is None:
        assert budget is not None, "a gate without a range of budgets has one"
        return rewards - overshoot * max(0.0, float(computation.mean()) - budget) / 100.0
    preferences = low_discrepancy_preferences(len(computation)).double()
    over = computation - budgets.at(preferences)
    bins = (preferences * _N_BINS).long()  # [n]
    total = torch.zeros(_N_BINS, dtype=torch.float64).index_add(0, bins, over)
    mean = total / torch.bincount(bins, minlength=_N_BINS).clamp(min=1)
    return rewards - overshoot * mean.clamp(min=0.0)[bins] / 100.0


def budgets_of(
    config: TrainGumbelConfig, costs: CostTable, *, gate_macs: float
) -> BudgetRange | None:
    """Return the range of budgets that a gate learns, ``None`` for a single budget.

    By default it ranges from the cost of all layers at the lowest bits, about the minimum without
    skipping, to eight times that, where more bits gain no accuracy. Where low bits save little, as
    in measured time, it ranges from an eighth of full precision, or from what is possible, to above
    the most expensive bits. It always includes the configuration's own budget.
    """
    if not config.all_budgets:
        return None
    if config.budgets is not None:
        return BudgetRange(lowest=config.budgets[0], highest=config.budgets[1])
    fixed = 100.0 * costs.fixed_cost(gate_macs=gate_macs)
    first = 1 if costs.options[0] == SKIP else 0
    uniform = 100.0 * costs.option_costs().sum(dim=0)
    lowest = max(min(float(uniform[first]), 100.0 / _SPAN), 100.0 * float(costs.least_costs()[0]))
    # A gate starts at the best uniform option within each budget, which must have room for all.
    highest = min(_SPAN * float(uniform[first]), _MARGIN * float(uniform.max()))
    own = [] if config.budget is None else [config.budget]
    return BudgetRange(lowest=min([fixed + lowest, *own]), highest=max([fixed + highest, *own]))


def targets(
    config: TrainGumbelConfig, costs: CostTable, *, gate_macs: float
) -> Callable[[Tensor], Tensor]:
    """Return the gated layers' budget, a fraction ``[n]``, as a function of preferences."""
    budgets = budgets_of(config, costs, gate_macs=gate_macs)
    lowest = config.budget if budgets is None else budgets.lowest
    assert lowest is not None, "a gate without a range of budgets has one"
    name = "budget" if config.budgets is None else "lowest budget"
    left = gated_budget(costs, lowest, gate_macs=gate_macs, name=name)
    if budgets is None:
        return lambda preferences: torch.full_like(preferences, left)
    fixed = 100.0 * costs.fixed_cost(gate_macs=gate_macs)
    return lambda preferences: (budgets.at(preferences) - fixed) / 100.0


def validate(config: TrainGumbelConfig, dataset: Dataset, backbone: Backbone) -> str:
    """Validate the configuration against the data and the backbone, and return the run's name."""
    batch = min(config.training.batch_size, len(dataset.agent))
    needs = training_needs(
        config,
        backbone,
        kind=config.kind,
        hidden=config.hidden,
        decisions=batch * backbone.costs.n_layers,
        val_images=len(dataset.val),
    )
    each = backward_bytes(backbone)  # at one option; training mixes all options
    needs[f"training.batch_size is {batch}"] = batch * each * backbone.costs.n_actions
    check_memory(needs, resolve_device(config.device))
    gate_macs = build_gate(config, backbone).macs
    check_highest_budget(config.budget, backbone.costs, gate_macs=gate_macs)
    try:
        targets(config, backbone.costs, gate_macs=gate_macs)
    except ConfigError as error:
        if config.budget != DEFAULT_BUDGET or config.budgets is not None:
            raise
        default = f"{DEFAULT_BUDGET:g} % is the default of --budget."
        raise ConfigError(f"{error} {default}") from error
    kind = "" if config.training.gate else f"-{config.gate}"
    return f"{config.method}{kind}-{dataset.name}"


def train(
    config: TrainGumbelConfig,
    dataset: Dataset,
    run: RunFolder,
    stored: StoredBackbone,
    *,
    bar: ProgressBar | None = None,
) -> TrainingRecord:
    """Train a gate to the end, or resume from the run's last checkpoint.

    The gate learns on the agent split and is validated on the val split; a co-trained backbone
    learns on the train split. Ctrl-C finishes the current batch, saves and ends with
    KeyboardInterrupt; a second one ends at once.
    """
    device = resolve_device(config.device)
    total, size = steps_and_size(config, stored.backbone.costs.n_layers, len(dataset.agent))
    bar = bar or ProgressBar(total * size, cost=config.cost)
    session = RunSession(run, SupervisedState, report=bar.report)
    backbone: Backbone = stored.backbone.to(device).eval()
    costs, agent = backbone.costs, dataset.agent.to(device)
    cotrainer, seed, greedy = None, config.seed, config.training.is_greedy
    if config.cotrains:
        cotrainer = CoTrainer(
            config.cotrain, backbone, dataset, seed=seed, budget=None, greedy=greedy
        )
    else:
        backbone.requires_grad_(requires_grad=False)
    frozen = backbone.to_inference().to(device)  # float32, to match the training form
    gate = build_gate(config, backbone).to(device)
    target = targets(config, costs, gate_macs=gate.macs)
    task = GateTask(
        backbone=backbone,
        frozen=frozen,
        gate=gate,
        images=agent,
        target=target,
        steps=total,
        seed=seed,
    )
    trainer = build_trainer(config, task, cotrainer)
    if session.checkpoint is not None and session.state is not None:
        trainer.restore(session.checkpoint.tensors, session.state.trainer)
    session.keep_best(stored, gate, cotrained=config.cotrains)
    board = session.open_board(purge_step=trainer.steps * size if session.checkpoint else None)
    every = config.validation_interval
    budgets = budgets_of(config, costs, gate_macs=gate.macs)
    validator = session.validate_on(
        Validator(
            dataset.val.to(device),
            reward=partial(budgeted_rewards, budget=config.budget, budgets=budgets),
            every=every,
            total=total * size,
            repeats=config.val_repeats,
            backbone=lambda: trainer.frozen,
        ),
        dataset.class_names,
        config,
    )

    def save() -> None:
        session.save(trainer.tensors(), {"trainer": trainer.state})

    starts_uniform = config.resolved_start == "uniform"
    if session.checkpoint is None:
        if starts_uniform:
            likelihood = RewardWeights(accuracy=0.0, log_likelihood=1.0)
            behavior_cloning(
                gate,
                frozen,
                agent,
                likelihood,
                lambda uniform, preferences: uniform.best_within(target(preferences)),
                seed=seed,
            )
        session.validate(gate.eval(), 0)
        save()
    save_every = config.checkpoint_every or every
    began, first = time.perf_counter(), trainer.steps
    bar.start(trainer.steps * size)
    try:
        with session.running() as stop:
            while trainer.steps < total:
                metrics = trainer.step()
                timesteps = trainer.steps * size
                session.log({"kind": "update", "timesteps": timesteps, **metrics})
                rate = (trainer.steps - first) * size / (time.perf_counter() - began)
                shown = {f"train/{k}": v for k, v in metrics.items() if v is not None}
                board.scalars(shown | {"train/steps_per_second": rate}, timesteps)
                bar.update(timesteps, loss=f"{metrics['labels']:.3f}")
                if validator.is_due(timesteps):
                    session.validate(gate.eval(), timesteps)
                ended = trainer.steps == total
                requested = stop.requested  # read once: it may change at any moment
                due = timesteps // save_every > (timesteps - size) // save_every
                if due or ended or requested:
                    save()
                if requested:
                    raise KeyboardInterrupt
    finally:
        bar.close()
    pretrained = pretraining_images(costs) if starts_uniform else 0
    return session.result(
        gate_images=trainer.steps * size // costs.n_layers + pretrained,
        backbone_images=cotrainer.images_seen if cotrainer else 0,
    )
