"""Training of a gate by reinforcement learning: environment, algorithm and callbacks."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

from dfs_rl.agents.algorithms import build_algorithm
from dfs_rl.agents.callbacks import Schedules, SyncEpisodes, UpdateCallback, divergence_as_error
from dfs_rl.agents.checkpoint import capture, restore
from dfs_rl.agents.cotraining import CoTrainer
from dfs_rl.agents.gate_export import (
    check_initial_gate,
    deploy,
    load_gate_into_policy,
    untrained_gate,
)
from dfs_rl.agents.hyperparameters import QLearningConfig, QRDQNConfig
from dfs_rl.agents.logging import MetricsFile, ProgressBar
from dfs_rl.agents.pretraining import (
    EPISODES,
    UniformOptionRewards,
    behavior_cloning,
    clone_rules,
    pretraining_images,
)
from dfs_rl.agents.validation import ValidationState, Validator, rewards_of
from dfs_rl.backbones import Backbone, InferenceBackbone, StoredBackbone
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import Dataset
from dfs_rl.envs.sb3_vec_env import EnvState, SB3GatingVecEnv
from dfs_rl.envs.spaces import observation_bytes, observation_space
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.backbone_resolver import check_same_backbone, load_learned_gate
from dfs_rl.experiments.budgets import check_highest_budget
from dfs_rl.experiments.memory import replay_needs, training_needs
from dfs_rl.experiments.rule_gates import TunedRules, keep_better
from dfs_rl.experiments.session import RunSession, TrainingRecord
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import BudgetConditioning, CostWeightRange
from dfs_rl.gating.loading import GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils import precision
from dfs_rl.utils.config import NonNegativeInt
from dfs_rl.utils.device import check_memory, resolve_device
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.seeding import stream_seed

_INITIAL = "initial"
"""Sub-folder of a run with the gate used for initialization."""


@dataclass(frozen=True, kw_only=True)
class LearningState:
    """State of a training in its checkpoint."""

    timesteps: NonNegativeInt
    updates: NonNegativeInt
    env: EnvState
    metrics: NonNegativeInt  # number of records logged
    validation: ValidationState | None  # None to select the best gate anew
    backbone_steps: NonNegativeInt  # of a co-trained backbone
    replay: NonNegativeInt | None = None  # position in the replay buffer


def validate(config: TrainAgentConfig, dataset: Dataset, backbone: Backbone) -> str:
    """Validate the configuration against the data and the backbone, and return the run's name."""
    initial = None if config.init_gate is None else load_learned_gate(config.init_gate)
    if backbone.costs.exits and config.cotrains:
        raise ConfigError(
            "backbone_mode is 'co-train', which changes the network that the exits were fitted to; "
            "give --no-exits."
        )
    if backbone.costs.exits and isinstance(config.algorithm, QLearningConfig):
        raise ConfigError(
            f"algo is {config.algo!r}, which would also store the steps after an exit, in which "
            "nothing is decided; give --no-exits, or take an algorithm with an actor."
        )
    passes = _pass_settings(config, dataset)
    space = observation_space(backbone, budget_conditioning=config.all_budgets, passes=passes)
    size = config.num_envs, backbone.costs.n_layers + (passes.limit > 1), observation_bytes(space)
    config.algorithm.resolve(*size, timesteps=config.timesteps, start=config.resolved_start)
    _check_memory(config, backbone, dataset, initial)
    gate = make_gate(config, backbone, passes, initial=initial)
    if config.init_gate is not None and initial is not None:
        check_initial_gate(initial, gate, str(config.init_gate))
        check_same_backbone(config.init_gate, config, dataset, backbone)
    # A single image may use the whole gate; images that exit early lower the mean.
    costs = backbone.costs
    # Rules cost nothing, and ship where the gate costs too much.
    least_macs = 0.0 if config.resolved_start == "rule" else gate.least_macs
    for name, macs in (("budget", least_macs), ("per_input_budget", gate.macs)):
        budget = getattr(config, name)
        if budget is not None:
            gated_budget(costs, budget, gate_macs=macs, name=name)
        check_highest_budget(budget, costs, gate_macs=gate.macs, passes=passes.limit, name=name)
    return f"{config.algo}-{dataset.name}"


def _check_memory(
    config: TrainAgentConfig, backbone: Backbone, dataset: Dataset, initial: LearnedGate | None
) -> None:
    """Raise ConfigError for settings that do not fit into memory, before anything is made."""
    algorithm = config.algorithm
    decisions = config.num_envs * backbone.costs.n_layers
    needs = training_needs(
        config,
        backbone,
        kind=algorithm.gate,
        hidden=_hidden(config, initial),
        passes=_pass_settings(config, dataset),
        decisions=algorithm.batch_size if isinstance(algorithm, QLearningConfig) else decisions,
        val_images=len(dataset.val),
        num_envs=config.num_envs,
        outputs=algorithm.n_quantiles if isinstance(algorithm, QRDQNConfig) else 1,
    )
    needs |= replay_needs(algorithm, backbone, budget_conditioning=config.all_budgets)
    check_memory(needs, resolve_device(config.device))


def train(
    config: TrainAgentConfig,
    dataset: Dataset,
    run: RunFolder,
    stored: StoredBackbone,
    *,
    extra_callbacks: tuple[BaseCallback, ...] = (),
) -> TrainingRecord:
    """Train a gate to the end, or resume from the run's last checkpoint.

    The gate learns on the agent split and is validated on the val split. Ctrl-C finishes the
    current update, saves and ends with KeyboardInterrupt; a second one ends at once.
    """
    device = resolve_device(config.device)
    backbone = stored.backbone.to(device)
    gate_steps, total = _length(config, backbone.costs)
    bar = ProgressBar(total, cost=config.cost)
    session = RunSession(run, LearningState, report=bar.report)
    resumed_at = session.state.timesteps if session.state else None
    initial = _initial_gate(config, run)
    dtype = precision.resolve(config.precision, device, frozen=True)

    def freeze() -> InferenceBackbone:
        return backbone.to_inference(dtype).to(device)

    cotrainer = _make_cotrainer(config, backbone, dataset, session)
    frozen, passes = freeze(), _pass_settings(config, dataset)
    rules = _tune_rules(config, dataset, frozen, passes)
    passes = passes if rules is None else rules.settings
    gate = make_gate(config, backbone, passes, initial=initial)
    task = Task(
        backbone=frozen,
        images=dataset.agent.to(device),
        reward=config.reward_weights,
        budget=config.per_input_budget,
        class_names=dataset.class_names,
        cost_weight_range=cost_weight_range_of(config),
        gate_macs=gate.macs,
        passes=passes,
    )
    group_size, seed = config.resolved_group_size, config.seed
    sync_episodes = passes.limit == 1  # several passes take their own number of steps
    env = SB3GatingVecEnv(
        task, config.num_envs, group_size=group_size, sync_episodes=sync_episodes, seed=seed
    )
    waits = sync_episodes and gate.exits is not None
    model = build_algorithm(
        config.algorithm,
        env,
        feature_sizes=gate.input_sizes,
        hidden=gate.hidden,
        timesteps=config.timesteps,
        start=config.resolved_start,
        group_size=group_size,
        sync_episodes=waits,
        seed=config.seed,
        device=str(device),
    )
    # Environments have consecutive seeds: runs with neighbouring ones would share their images.
    env.seed(stream_seed(config.seed, "environments") % 2**31)
    export = partial(deploy, template=gate)
    if session.checkpoint is not None:
        restore(model, session.checkpoint)
    elif start := initial or _start_gate(config, export(model), task, rules):
        load_gate_into_policy(model, start)
    session.keep_best(stored, gate, cotrained=config.cotrains)
    board = session.open_board(purge_step=resumed_at)
    model.set_logger(Logger(None, [MetricsFile(session.log), board]))
    validator = session.validate_on(
        Validator(
            dataset.val.to(device),
            reward=partial(
                rewards_of,
                weights=task.reward,
                budget=task.budget,
                cost_weight_range=task.cost_weight_range,
            ),
            every=config.validation_interval,
            total=total,
            repeats=config.val_repeats,
            backbone=lambda: env.task.backbone,
        ),
        dataset.class_names,
        config,
    )

    def validate(timesteps: int) -> None:
        if validator.is_due(timesteps):
            session.validate(export(model), timesteps)

    def train_backbone(timesteps: int) -> None:
        if cotrainer is not None and timesteps > 0:
            for name, value in cotrainer.step(export(model)).items():
                model.logger.record(f"backbone/{name}", value)
            model._last_obs = cast("dict[str, Any]", env.set_backbone(freeze()))

    with session.running() as stop:
        callbacks: list[BaseCallback] = [SyncEpisodes()] if waits else []
        callbacks += [
            UpdateCallback(
                before_log=train_backbone,
                after_log=validate,
                save=partial(_save, session, model, cotrainer),
                every=config.checkpoint_every or config.validation_interval,
                stop=stop,
                resumed_at=resumed_at,
                bar=bar,
            ),
            # Last: the other one draws random numbers, which a resumed run skips once.
            Schedules(seed=config.seed, config=config.algorithm),
            *extra_callbacks,
        ]
        remaining = max(0, gate_steps - model.num_timesteps)
        fresh = session.checkpoint is None
        with divergence_as_error(model):
            # UpdateCallback logs after each update; the algorithm itself would log before it.
            model.learn(remaining, callbacks, log_interval=sys.maxsize, reset_num_timesteps=fresh)
    if stop.requested:
        raise KeyboardInterrupt
    record = session.result(
        gate_images=env.episodes + _images_before(config, backbone.costs, rules),
        backbone_images=cotrainer.images_seen if cotrainer else 0,
    )
    label, budget = config.algorithm.label, config.budget
    return (
        record
        if rules is None
        else keep_better(record, rules, task, run, name=label, budget=budget)
    )


def _tune_rules(
    config: TrainAgentConfig, dataset: Dataset, backbone: GatedBackbone, passes: PassSettings
) -> TunedRules | None:
    """Return the tuned rules that the gate starts from; ``None`` for another start."""
    if config.resolved_start != "rule":
        return None
    print_status(f"Tuning rules over {passes.limit} passes on the agent and val splits ...")
    limit, mirrored = passes.limit, passes.mirrored
    return TunedRules(
        backbone, dataset, limit=limit, mirrored=mirrored, answer=config.answer, stopping=None
    )


def _start_gate(
    config: TrainAgentConfig, gate: LearnedGate, task: Task, rules: TunedRules | None
) -> LearnedGate | None:
    """Return ``gate``, pretrained as the start of the training; ``None`` for an indifferent one."""

    def choose(uniform: UniformOptionRewards, preferences: Tensor) -> Tensor:
        weights = torch.tensor([task.reward.cost], dtype=torch.float64)
        if task.cost_weight_range is not None:
            weights = task.cost_weight_range.at(preferences)
        return uniform.best_at(weights)

    if rules is not None:
        rules.check_budget(config.budget, gate)
        clone_rules(gate, rules.for_task(task), task, seed=config.seed)
    elif config.resolved_start == "uniform":
        frozen, images, reward, budget = task.backbone, task.images, task.reward, task.budget
        behavior_cloning(gate, frozen, images, reward, choose, budget=budget, seed=config.seed)
    else:
        return None
    return gate


def _images_before(config: TrainAgentConfig, costs: CostTable, rules: TunedRules | None) -> int:
    """Return the number of images that the start of the training runs."""
    if rules is not None:
        return rules.images_seen + EPISODES
    uniform = config.init_gate is None and config.resolved_start == "uniform"
    return pretraining_images(costs) if uniform else 0


def _save(
    session: RunSession[LearningState], model: BaseAlgorithm, cotrainer: CoTrainer | None
) -> None:
    tensors, state = capture(model)
    tensors |= cotrainer.tensors() if cotrainer else {}
    session.save(tensors, {**state, "backbone_steps": cotrainer.steps if cotrainer else 0})


def _length(config: TrainAgentConfig, costs: CostTable) -> tuple[int, int]:
    """Return the gate's timesteps, and those rounded up to whole episodes of all environments.

    Images of a co-trained backbone count as timesteps too. With exits or several passes there is no
    rounding, because the length of the last episodes is unknown in advance.
    """
    steps = config.timesteps
    if config.cotrains:
        steps = config.cotrain.gate_timesteps(steps, config.num_envs)
    if costs.exits or config.resolved_passes > 1:
        return steps, steps
    rollout = config.num_envs * costs.n_layers
    return steps, -(-steps // rollout) * rollout


def _make_cotrainer(
    config: TrainAgentConfig,
    backbone: Backbone,
    dataset: Dataset,
    session: RunSession[LearningState],
) -> CoTrainer | None:
    """Return the trainer of the backbone, restored from the checkpoint; ``None`` if frozen."""
    if not config.cotrains:
        return None
    cotrainer = CoTrainer(
        config.cotrain, backbone, dataset, seed=config.seed, budget=config.per_input_budget
    )
    if session.checkpoint is not None and session.state is not None:
        cotrainer.restore(session.checkpoint.tensors, session.state.backbone_steps)
    return cotrainer


def cost_weight_range_of(config: TrainAgentConfig) -> CostWeightRange | None:
    """Return the range of cost weights to learn, ``None`` with a fixed cost weight."""
    lowest, highest = config.cost_weights
    return CostWeightRange(lowest=lowest, highest=highest) if config.all_budgets else None


def _hidden(config: TrainAgentConfig, initial: LearnedGate | None) -> int | None:
    return initial.hidden if config.hidden is None and initial is not None else config.hidden


def _pass_settings(config: TrainAgentConfig, dataset: Dataset) -> PassSettings:
    """Return the passes that the gate may run; the answer is "mean" where rules choose it."""
    if config.resolved_passes == 1:
        return SINGLE_PASS
    mirrored = dataset.flip if config.mirrored is None else config.mirrored
    return PassSettings(
        limit=config.resolved_passes, mirrored=mirrored, answer=config.answer or "mean"
    )


def make_gate(
    config: TrainAgentConfig,
    backbone: GatedBackbone,
    passes: PassSettings = SINGLE_PASS,
    *,
    initial: LearnedGate | None = None,
) -> LearnedGate:
    """Return the untrained gate of a configuration, as wide as ``initial`` by default."""
    cost_weight_range = cost_weight_range_of(config)
    label = config.algorithm.label
    gate = untrained_gate(
        backbone,
        kind=config.algorithm.gate,
        features=config.resolved_features,
        hidden=_hidden(config, initial),
        passes=passes,
        # Where several passes are the default, tables show which gate has only one.
        name=f"{label}, one pass" if config.passes == 1 else label,
        budget=config.per_input_budget,
        budget_conditioning=None if cost_weight_range is None else BudgetConditioning(),
    )
    if cost_weight_range is not None and config.budget is None:  # a budget is set after training
        gate.preference = cost_weight_range.preference(config.reward_weights.cost)
    return gate


def _initial_gate(config: TrainAgentConfig, run: RunFolder) -> LearnedGate | None:
    """Return the gate to initialize from, of which the run keeps a copy."""
    if config.init_gate is None:
        return None
    kept = run.path / _INITIAL
    if not (kept / GATE_FOLDER).is_dir():
        save_gate(load_learned_gate(config.init_gate), kept / GATE_FOLDER)
    return load_learned_gate(kept)
