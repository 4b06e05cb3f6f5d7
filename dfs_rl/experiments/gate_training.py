"""Training of a gate by reinforcement learning: environment, algorithm and callbacks."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.callbacks import (
    Checkpointing,
    FiniteGuard,
    Lifecycle,
    Schedules,
    SyncEpisodes,
    UpdateLog,
    learn,
)
from dfs_rl.agents.checkpoint import capture, restore
from dfs_rl.agents.cotraining import CoTrainer, CoTraining
from dfs_rl.agents.evaluation_callback import Validation, ValidationState, rewards_of
from dfs_rl.agents.gate_export import (
    check_initial_gate,
    deploy,
    load_gate_into_policy,
    untrained_gate,
)
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    QLearningConfig,
    QRDQNConfig,
    RolloutSize,
    with_start_defaults,
)
from dfs_rl.agents.logging import Progress, ProgressBar, make_logger
from dfs_rl.agents.memory import gate_needs, replay_needs, rollout_needs
from dfs_rl.agents.pretraining import (
    behavior_cloning,
    best_uniform_at_cost_weight,
    pretraining_images,
)
from dfs_rl.backbones import Backbone, InferenceBackbone, StoredBackbone
from dfs_rl.backbones.footprint import backward_bytes
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import Dataset
from dfs_rl.envs.sb3_vec_env import EnvState, SB3GatingVecEnv
from dfs_rl.envs.spaces import observation_bytes, observation_space
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.agent_training import (
    TrainAgentConfig,
    cost_weight_range_of,
    reward_weights_of,
)
from dfs_rl.experiments.backbone_resolver import (
    BackboneSpec,
    backbone_of_run,
    check_same_backbone,
    load_learned_gate,
    preview_backbone,
)
from dfs_rl.experiments.gate_run import backbone_spec, validation_interval
from dfs_rl.experiments.session import RunSession, TrainingResult
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils import precision
from dfs_rl.utils.config import NonNegativeInt
from dfs_rl.utils.device import check_memory
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder

_INITIAL = "initial"
"""Sub-folder of a run with the gate used for initialization."""


@dataclass(frozen=True, kw_only=True)
class LearningState:
    """State of a training in its checkpoint, next to the tensors.

    Attributes:
        timesteps: Number of decisions made.
        updates: Number of updates of the algorithm.
        env: State of the environments.
        metrics: Number of records logged.
        validation: State of the validator; ``None`` to select the best gate anew.
        backbone_steps: Steps of a co-trained backbone.
        replay: Position in the replay buffer, for algorithms with one.
    """

    timesteps: NonNegativeInt
    updates: NonNegativeInt
    env: EnvState
    metrics: NonNegativeInt
    validation: ValidationState | None
    backbone_steps: NonNegativeInt
    replay: NonNegativeInt | None = None


def _backbone_spec(config: TrainAgentConfig, device: str) -> BackboneSpec:
    """Return the backbone specification; by default the backbone of the initial gate."""
    spec = backbone_spec(config, device)
    if spec.folder is None and config.init_gate is not None:
        return replace(spec, folder=config.init_gate)
    return spec


def validate(config: TrainAgentConfig, dataset: Dataset, device: str) -> str:
    """Validate the configuration against the data and the backbone, and return the run's name."""
    initial = None if config.init_gate is None else load_learned_gate(config.init_gate)
    spec = _backbone_spec(config, device)
    backbone = preview_backbone(spec, dataset)
    if backbone.costs.exits:
        _check_exits(config)
    space = observation_space(backbone, budget_conditioning=config.all_budgets)
    update = RolloutSize(
        n_envs=config.num_envs,
        n_layers=backbone.costs.n_layers,
        observation_bytes=observation_bytes(space),
    )
    config.algorithm.check_update(update)
    hidden = config.hidden if initial is None else config.hidden or initial.hidden
    _check_memory(config, backbone, dataset, hidden=hidden, device=device)
    gate = make_gate(config, backbone, initial=initial)
    if config.init_gate is not None and initial is not None:
        check_initial_gate(initial, gate, str(config.init_gate))
        check_same_backbone(config.init_gate, dataset, spec)
    # A single image may use the whole gate; images that exit early lower the mean.
    for name, macs in (("budget", gate.least_macs), ("per_input_budget", gate.macs)):
        budget = getattr(config, name)
        if budget is not None:
            gated_budget(backbone.costs, budget, gate_macs=macs, name=name)
    return f"{config.algo}-{dataset.name}"


def _check_memory(
    config: TrainAgentConfig,
    backbone: Backbone,
    dataset: Dataset,
    *,
    hidden: int | None,
    device: str,
) -> None:
    """Raise ConfigError for settings that do not fit into memory, before anything is made."""
    algorithm = config.algorithm
    needs = rollout_needs(
        backbone,
        num_envs=config.num_envs,
        val_images=len(dataset.val),
        val_repeats=config.val_repeats,
        budget_conditioning=config.all_budgets,
    )
    decisions = config.num_envs * backbone.costs.n_layers
    needs |= gate_needs(
        backbone,
        kind=algorithm.gate,
        features=config.features,
        hidden=hidden,
        budget_conditioning=config.all_budgets,
        decisions=algorithm.batch_size if isinstance(algorithm, QLearningConfig) else decisions,
        outputs=algorithm.n_quantiles if isinstance(algorithm, QRDQNConfig) else 1,
    )
    needs |= replay_needs(algorithm, backbone, budget_conditioning=config.all_budgets)
    if config.backbone_mode == "co-train":
        size = config.cotrain.batch_size
        needs[f"cotrain.batch_size is {size}"] = 2 * size * backward_bytes(backbone)
    check_memory(needs, torch.device(device))


def _check_exits(config: TrainAgentConfig) -> None:
    """Check that the settings support exits.

    Raises:
        ConfigError: If they do not.
    """
    if config.backbone_mode == "co-train":
        raise ConfigError(
            "backbone_mode is 'co-train', which would change the network under the exits that were "
            "fitted to it; give --no-exits."
        )
    if isinstance(config.algorithm, QLearningConfig):
        raise ConfigError(
            f"algo is {config.algo!r}, which would remember what images do that have left, that is "
            "nothing; give --no-exits, or take an algorithm with an actor."
        )


def train(
    config: TrainAgentConfig,
    dataset: Dataset,
    run: RunFolder,
    device: str,
    *,
    extra_callbacks: tuple[BaseCallback, ...] = (),
) -> TrainingResult:
    """Train a gate to the end, or resume from the run's last checkpoint.

    Ctrl-C finishes the current update, saves and ends; a second one ends at once.

    Args:
        config: Configuration of the run.
        dataset: Data set; the gate learns on its agent split and is validated on its val split.
        run: Run folder.
        device: Device to compute on.
        extra_callbacks: Further callbacks.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once everything is saved.
        TrainingError: If a figure is no longer finite.
        CheckpointError: If the checkpoint does not fit.
    """
    cotrains = config.backbone_mode == "co-train"
    stored = backbone_of_run(run, _backbone_spec(config, device), dataset, keep_original=cotrains)
    bar = ProgressBar(steps_made(config, stored.backbone.costs), print_status=print_status)
    session = RunSession(run, LearningState, report=bar.report)
    lifecycle = Lifecycle(resumed_at=session.state.timesteps if session.state else None)
    initial = _initial_gate(config, run)
    backbone = stored.backbone.to(device)
    cotrainer = _make_cotrainer(config, stored, dataset, session)
    gate = make_gate(config, backbone, initial=initial)
    env = _make_env(config, stored, dataset, gate, device=device)
    model = _make_algorithm(config, env, gate, device=device)
    export = partial(
        deploy,
        options=backbone.options,
        feature_macs=backbone.feature_macs,
        name=gate.name,
        budget=gate.budget,
        budget_conditioning=gate.budget_conditioning,
        preference=gate.preference,
        exits=gate.exits,
    )
    if session.checkpoint is not None:
        restore(model, session.checkpoint)
    elif initial is not None:
        load_gate_into_policy(model, initial)
    elif config.resolved_start == "uniform":
        load_gate_into_policy(model, _uniform_gate(export(model), env.task, seed=config.seed))
    session.keep_best(stored, gate, cotrained=cotrainer is not None)
    board = session.open_board(purge_step=lifecycle.resumed_at)
    model.set_logger(make_logger(session.log, board))
    every = validation_interval(config)
    validator = session.validate_on(
        dataset.val.to(device),
        reward=partial(
            rewards_of,
            weights=reward_weights_of(config),
            budget=config.per_input_budget,
            cost_weight_range=cost_weight_range_of(config),
        ),
        every=every,
        total=steps_made(config, backbone.costs),
        repeats=config.val_repeats,
        backbone=lambda: env.task.backbone,
    )

    def renew_backbone() -> None:
        frozen = _freeze(config, stored, device)
        model._last_obs = cast("dict[str, Any]", env.set_backbone(frozen))

    def save() -> None:
        tensors, state = capture(model)
        tensors |= cotrainer.tensors() if cotrainer else {}
        session.save(tensors, {**state, "backbone_steps": cotrainer.steps if cotrainer else 0})

    callbacks: list[BaseCallback] = [
        *([SyncEpisodes()] if gate.exits is not None else []),
        FiniteGuard(lifecycle),
        *(
            [CoTraining(lifecycle, cotrainer, export=export, renew=renew_backbone)]
            if cotrainer
            else []
        ),
        UpdateLog(lifecycle),
        Validation(lifecycle, validator, export=export),
        Checkpointing(lifecycle, save, every=config.checkpoint_every or every),
        # Last: other callbacks draw random numbers, which a resumed run skips once.
        Schedules(seed=config.seed, config=algorithm_of(config)),
        Progress(bar),
        *extra_callbacks,
    ]
    with session.running() as lifecycle.stop:
        remaining = max(0, gate_timesteps(config) - model.num_timesteps)
        learn(model, remaining, callbacks, fresh=session.checkpoint is None)
    if lifecycle.stop.requested:
        raise KeyboardInterrupt
    pretrained = initial is None and config.resolved_start == "uniform"
    return session.result(
        gate_images=env.episodes + (pretraining_images(backbone.costs) if pretrained else 0),
        backbone_images=cotrainer.images_seen if cotrainer else 0,
    )


def algorithm_of(config: TrainAgentConfig) -> AlgorithmConfig:
    """Return the chosen algorithm's hyperparameters, with defaults that suit the gate's start."""
    return with_start_defaults(config.algorithm, config.resolved_start, timesteps=config.timesteps)


def gate_timesteps(config: TrainAgentConfig) -> int:
    """Return the gate's share of ``timesteps``; a co-trained backbone's images count too."""
    if config.backbone_mode == "frozen":
        return config.timesteps
    return config.cotrain.gate_timesteps(config.timesteps, config.num_envs)


def steps_made(config: TrainAgentConfig, costs: CostTable) -> int:
    """Return the gate's steps, rounded up to whole episodes of all environments.

    With exits they are not rounded, because the length of the last episodes is unknown in advance.
    """
    if costs.exits:
        return gate_timesteps(config)
    rollout = config.num_envs * costs.n_layers
    return -(-gate_timesteps(config) // rollout) * rollout


def make_gate(
    config: TrainAgentConfig, backbone: WalkableBackbone, *, initial: LearnedGate | None = None
) -> LearnedGate:
    """Return the untrained gate of a configuration, as wide as ``initial`` by default."""
    cost_weight_range = cost_weight_range_of(config)
    hidden = config.hidden
    if hidden is None and initial is not None:
        hidden = initial.hidden
    gate = untrained_gate(
        backbone,
        kind=config.algorithm.gate,
        features=config.features,
        hidden=hidden,
        name=config.algorithm.label,
        budget=config.per_input_budget,
        budget_conditioning=None if cost_weight_range is None else BudgetConditioning(),
    )
    if cost_weight_range is not None and config.budget is None:  # a budget is set after training
        gate.preference = cost_weight_range.preference(reward_weights_of(config).cost)
    return gate


def _make_env(
    config: TrainAgentConfig,
    stored: StoredBackbone,
    dataset: Dataset,
    gate: LearnedGate,
    *,
    device: str,
) -> SB3GatingVecEnv:
    task = Task(
        backbone=_freeze(config, stored, device),
        images=dataset.agent.to(device),
        reward=reward_weights_of(config),
        budget=config.per_input_budget,
        class_names=dataset.class_names,
        cost_weight_range=cost_weight_range_of(config),
        gate_macs=gate.macs,
    )
    return SB3GatingVecEnv(
        task,
        config.num_envs,
        group_size=config.resolved_group_size,
        sync_episodes=True,
        seed=config.seed,
    )


def _make_algorithm(
    config: TrainAgentConfig, env: SB3GatingVecEnv, gate: LearnedGate, *, device: str
) -> BaseAlgorithm:
    learning = PolicySettings(
        feature_sizes=gate.feature_sizes,
        hidden=gate.hidden,
        group_size=config.resolved_group_size,
        seed=config.seed,
        device=device,
        timesteps=config.timesteps,
        sync_episodes=gate.exits is not None,
    )
    return build_algorithm(algorithm_of(config), env, learning)


def _make_cotrainer(
    config: TrainAgentConfig,
    stored: StoredBackbone,
    dataset: Dataset,
    session: RunSession[LearningState],
) -> CoTrainer | None:
    """Return the trainer of the backbone, restored from the checkpoint; ``None`` if frozen."""
    if config.backbone_mode == "frozen":
        return None
    cotrainer = CoTrainer(
        config.cotrain, stored.backbone, dataset, seed=config.seed, budget=config.per_input_budget
    )
    if session.checkpoint is not None and session.state is not None:
        cotrainer.restore(session.checkpoint.tensors, session.state.backbone_steps)
    return cotrainer


def _initial_gate(config: TrainAgentConfig, run: RunFolder) -> LearnedGate | None:
    """Return the gate to initialize from.

    A copy in the run's folder makes the run independent of the other run.
    """
    if config.init_gate is None:
        return None
    kept = run.path / _INITIAL
    if not (kept / GATE_FOLDER).is_dir():
        save_gate(load_learned_gate(config.init_gate), kept / GATE_FOLDER)
    return load_learned_gate(kept)


def _uniform_gate(gate: LearnedGate, task: Task, *, seed: int) -> LearnedGate:
    """Return ``gate``, pretrained to sample around the uniform option with the highest reward."""
    behavior_cloning(
        gate,
        task.backbone,
        task.images,
        best_uniform_at_cost_weight(task),
        budget=task.budget,
        seed=seed,
    )
    return gate


def _freeze(config: TrainAgentConfig, stored: StoredBackbone, device: str) -> InferenceBackbone:
    dtype = precision.resolve_frozen(config.precision, torch.device(device))
    return stored.backbone.to_inference(dtype).to(device)
