"""One training of a gate, put together: environment, algorithm, callbacks, checkpoints, and going on from one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.algorithms import GateLearning, build_algorithm
from dfs_rl.agents.best_gate import BestGate
from dfs_rl.agents.callbacks import (
    Checkpointing,
    FiniteGuard,
    Lifecycle,
    Schedules,
    UpdateLog,
    WholeWalks,
    learn,
)
from dfs_rl.agents.checkpoint import capture, last_checkpoint, restore
from dfs_rl.agents.cotraining import CoTrainer, CoTraining
from dfs_rl.agents.cotraining_config import CoTrainConfig
from dfs_rl.agents.evaluation_callback import (
    Validation,
    ValidationSetup,
    ValidationState,
    Validator,
    rewards_of,
)
from dfs_rl.agents.gate_export import deploy, untrained_gate
from dfs_rl.agents.hyperparameters import AlgorithmConfig, FeatureChoice, Start
from dfs_rl.agents.metrics_logger import TensorBoard, make_logger
from dfs_rl.agents.pretraining import begin_uniform, walks_to_begin, worth_most_at_prices
from dfs_rl.agents.warm_start import start_from
from dfs_rl.backbones import PreparedBackbone, StoredBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import Dataset
from dfs_rl.envs.sb3_vec_env import EnvState, SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.gating.budget_conditioning import Dial, PriceRange
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.config import CountOrZero
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from dfs_rl.utils.signals import stop_on_interrupt


@dataclass(frozen=True, kw_only=True)
class LearningState:
    """What the checkpoint of a training by reinforcement holds beside tensors.

    Attributes:
        timesteps: Decisions made.
        updates: Of the algorithm.
        env: Where the environments stand.
        metrics: Records logged so far.
        validation: Where the validator stands; ``None`` to choose the best gate anew.
        backbone_steps: Steps of a co-trained backbone.
        replay: Position in the replay buffer, of an algorithm that has one.
    """

    timesteps: CountOrZero
    updates: CountOrZero
    env: EnvState
    metrics: CountOrZero
    validation: ValidationState | None
    backbone_steps: CountOrZero
    replay: CountOrZero | None = None


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """What to train and how.

    Attributes:
        algorithm: Hyperparameters; their type says which algorithm.
        timesteps: Decisions to make in all. One image walked once is as many as there are gated layers, or fewer if it leaves;
            images that a co-trained backbone learns from count too.
        weights: What a walk is rewarded for.
        budget: Upper bound on computation in percent, or ``None``.
        prices: Of computation, drawn anew for each image, for one gate for all budgets; ``None`` for ``weights.cost`` alone.
        position: Where the gate is turned to when it ships.
        images_per_group: Rollouts of one image that share a baseline.
        num_envs: Walks side by side.
        features: What the gate looks at.
        hidden: Width of the gate's hidden layers; ``None`` for as wide as it may be, see ``gate_shape``.
        cotrain: How the backbone learns beside the gate; ``None`` leaves it frozen.
        eval_every: Steps between two validations.
        val_walks: How often each val image is walked in a validation, if the gate has a dial.
        checkpoint_every: Steps between two checkpoints.
        seed: Seed of everything.
        device: Where to compute.
        dtype: What the frozen backbone computes in.
        name: What tables and plots call the gate.
        initial: Gate to go on from; ``None`` begins as ``start`` says.
        start: Where to begin without one, see ``uniform_start``; only an algorithm with an actor can begin anywhere but indifferent.
    """

    algorithm: AlgorithmConfig
    timesteps: int
    weights: RewardWeights
    budget: float | None
    prices: PriceRange | None
    position: float
    images_per_group: int
    num_envs: int
    features: FeatureChoice
    hidden: int | None
    cotrain: CoTrainConfig | None
    eval_every: int
    val_walks: int = 1
    checkpoint_every: int
    seed: int
    device: str
    dtype: torch.dtype
    name: str
    initial: LearnedGate | None = None
    start: Start = "indifferent"

    @property
    def begins_uniform(self) -> bool:
        """Whether the gate begins at uniform options."""
        return self.initial is None and self.start == "uniform"

    @property
    def gate_timesteps(self) -> int:
        """How many of ``timesteps`` are the gate's: each update walks ``num_envs`` images, and co-training takes a batch more."""
        if self.cotrain is None:
            return self.timesteps
        return self.cotrain.gate_timesteps(self.timesteps, self.num_envs)

    def steps_made(self, costs: CostTable) -> int:
        """Return the gate's steps rounded up to whole walks of all environments, which is where a training ends.

        Where images may leave, nobody knows beforehand how many decisions the last walks take, and they are not rounded.
        """
        if costs.exits:
            return self.gate_timesteps
        rollout = self.num_envs * costs.n_layers
        return -(-self.gate_timesteps // rollout) * rollout


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What came of a training.

    Attributes:
        best: Figures of the gate that was kept, on the validation split.
        images_seen: Images walked for the gate and used for the backbone, repeats counted.
    """

    best: Mapping[str, Any]
    images_seen: Mapping[str, int]


def train_gate(
    plan: GateTraining,
    stored: StoredBackbone,
    dataset: Dataset,
    run: RunFolder,
    *,
    report: Callable[[int, Mapping[str, Any]], None],
    watchers: tuple[BaseCallback, ...] = (),
) -> TrainingResult:
    """Train a gate to the end, or go on where the run's last checkpoint was made.

    Ctrl-C finishes the update at hand, saves and ends; a second one ends at once.

    Args:
        plan: What and how.
        stored: The backbone; changed in place with ``plan.cotrain``.
        dataset: The gate learns on its agent split and is validated on its val split.
        run: Where everything goes. A checkpoint in it is continued.
        report: Told about each validation: steps, and the record that was logged.
        watchers: Further callbacks, for a progress bar.

    Returns:
        What came of it.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once everything is saved.
        TrainingError: If a figure is no longer finite.
        CheckpointError: If the checkpoint does not fit.
    """
    checkpoint = last_checkpoint(run, LearningState)
    state: Mapping[str, Any] = checkpoint.state if checkpoint else {"timesteps": None, "metrics": 0}
    run.truncate_metrics(state["metrics"])
    lifecycle = Lifecycle(resumed_at=state["timesteps"])

    device = torch.device(plan.device)
    backbone = stored.backbone.to(device)
    trainer = _make_trainer(plan, stored, dataset)
    if trainer is not None and checkpoint is not None:
        trainer.restore(checkpoint.tensors, state["backbone_steps"])
    dial = None if plan.prices is None else Dial()
    gate = untrained_gate(
        backbone,
        kind=plan.algorithm.gate,
        features=plan.features,
        hidden=plan.hidden,
        name=plan.name,
        budget=plan.budget,
        dial=dial,
    )
    env = SB3GatingVecEnv(
        Task(
            backbone=_freeze(stored, plan),
            images=dataset.agent.to(device),
            weights=plan.weights,
            budget=plan.budget,
            class_names=dataset.class_names,
            prices=plan.prices,
            gate_macs=gate.macs,
        ),
        plan.num_envs,
        images_per_group=plan.images_per_group,
        whole_walks=True,
        seed=plan.seed,
    )
    model = build_algorithm(
        plan.algorithm,
        env,
        GateLearning(
            feature_sizes=gate.feature_sizes,
            hidden=gate.hidden,
            images_per_group=plan.images_per_group,
            seed=plan.seed,
            device=plan.device,
            timesteps=plan.timesteps,
            whole_walks=gate.exits is not None,
        ),
    )
    best = BestGate(run, stored, cotrained=trainer is not None)
    export = partial(
        deploy,
        options=backbone.options,
        feature_macs=backbone.feature_macs,
        name=plan.name,
        budget=plan.budget,
        dial=dial,
        position=plan.position,
        exits=gate.exits,
    )
    if checkpoint is None and plan.initial is not None:
        start_from(model, plan.initial)
    if checkpoint is None and plan.begins_uniform:
        task, begun = env.task, export(model)
        begin_uniform(
            begun,
            task.backbone,
            task.images,
            worth_most_at_prices(task),
            budget=task.budget,
            seed=plan.seed,
        )
        start_from(model, begun)
    if checkpoint is not None:
        restore(model, checkpoint)
        gate.position = plan.position
        best.restore(gate, checkpoint.tensors)

    board = TensorBoard(run, purge_step=lifecycle.resumed_at)
    model.set_logger(make_logger(run, board))
    validator = Validator(
        ValidationSetup(
            images=dataset.val.to(device),
            reward=partial(
                rewards_of, weights=plan.weights, budget=plan.budget, prices=plan.prices
            ),
            every=plan.eval_every,
            total=plan.steps_made(backbone.costs),
            walks=plan.val_walks,
        ),
        backbone=lambda: env.task.backbone,
        keep=best.keep,
        run=run,
        board=board,
        report=report,
        # A training that was copied with other rewards chooses its best gate anew.
        resumed=(state["validation"], checkpoint.tensors)
        if checkpoint and state["validation"]
        else None,
    )

    def renew() -> None:
        model._last_obs = cast("dict[str, Any]", env.set_backbone(_freeze(stored, plan)))

    def save() -> None:
        learned = capture(model)
        tensors = learned.tensors | best.tensors() | validator.tensors()
        tensors |= trainer.tensors() if trainer else {}
        extra = {
            "metrics": len(run.read_metrics()),
            "validation": validator.state,
            "backbone_steps": trainer.steps if trainer else 0,
        }
        run.save_checkpoint(LAST_CHECKPOINT, tensors, learned.state | extra)

    callbacks: list[BaseCallback] = [
        *([WholeWalks()] if gate.exits is not None else []),
        FiniteGuard(lifecycle),
        *([CoTraining(lifecycle, trainer, export=export, renew=renew)] if trainer else []),
        UpdateLog(lifecycle),
        Validation(lifecycle, validator, export=export),
        Checkpointing(lifecycle, save, every=plan.checkpoint_every),
        # After all of these, for some draw random numbers, and a resumed run skips them once.
        Schedules(seed=plan.seed, config=plan.algorithm),
        *watchers,
    ]
    try:
        with stop_on_interrupt() as lifecycle.stop:
            remaining = max(0, plan.gate_timesteps - model.num_timesteps)
            learn(model, remaining, callbacks, fresh=checkpoint is None)
    finally:
        board.close()
    if lifecycle.stop.made:
        raise KeyboardInterrupt
    assert validator.best is not None
    walks = env.episodes
    walks += walks_to_begin(backbone.costs) if plan.begins_uniform else 0
    return TrainingResult(
        best=validator.best,
        images_seen={"gate": walks, "backbone": trainer.images_seen if trainer else 0},
    )


def _make_trainer(plan: GateTraining, stored: StoredBackbone, dataset: Dataset) -> CoTrainer | None:
    if plan.cotrain is None:
        return None
    return CoTrainer(plan.cotrain, stored.backbone, dataset, seed=plan.seed, budget=plan.budget)


def _freeze(stored: StoredBackbone, plan: GateTraining) -> PreparedBackbone:
    return stored.backbone.prepare(plan.dtype).to(plan.device)
