"""Learning proved on a planted task that no untrained policy and no fixed table solves."""

import itertools

import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from dfs_rl.agents.algorithms import ALGORITHMS, PolicySettings, build_algorithm
from dfs_rl.agents.buffers import GroupRolloutBuffer
from dfs_rl.agents.callbacks import Schedules
from dfs_rl.agents.evaluation_callback import rewards_of
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import (
    A2CConfig,
    AlgorithmConfig,
    DQNConfig,
    MaskablePPOConfig,
    PPOConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
    TRPOConfig,
    ent_coef_at,
    learning_rate_range,
    resolved_group_size,
    with_start_defaults,
)
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data import ImageSet
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.gating.reward import RewardWeights

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=0.5)

# Skipping everything is right for 1 image in 9, and that is what an untrained gate does.
UNTRAINED_REWARD = 1.0 / 9.0
# Both layers at their need: always right, at a mean cost of (0 + 1/8 + 1/2) / 3 per layer.
BEST_REWARD = 1.0 - 0.5 * 2.0 * (0.0 + 0.125 + 0.5) / 3.0
# Everything in full precision: always right, at cost 1. No other table is better.
BEST_TABLE_REWARD = 0.5


def make_model(
    config: AlgorithmConfig,
    backbone: WalkableBackbone,
    images: ImageSet,
    *,
    group: int,
    seed: int = 0,
) -> BaseAlgorithm:
    task = Task(
        backbone=backbone, images=images, reward=WEIGHTS, budget=None, class_names=("no", "yes")
    )
    env = SB3GatingVecEnv(task, 64, group_size=group, seed=seed)
    learning = PolicySettings(
        timesteps=600_000,
        feature_sizes=backbone.feature_sizes,
        hidden=16,
        group_size=group,
        seed=seed,
        device="cpu",
    )
    model = build_algorithm(config, env, learning)
    model.set_logger(Logger(None, []))
    return model


def train(model: BaseAlgorithm, config: AlgorithmConfig, steps: int, seed: int = 0) -> None:
    model.learn(steps, [Schedules(seed=seed, config=config)], log_interval=10**9)


def reward_of(model: BaseAlgorithm, backbone: WalkableBackbone, images: ImageSet) -> float:
    records = evaluate_gate(
        backbone, deploy(model, backbone.options, feature_macs=0.0, name="gate"), images
    )
    return float(rewards_of(records, backbone.costs, WEIGHTS, budget=None).mean())


@pytest.mark.parametrize(
    ("config", "group", "steps", "solved"),
    [
        (PPOConfig(batch_size=10**6), 8, 8_000, 0.75),
        (PPOConfig(batch_size=10**6), 1, 8_000, 0.75),
        (A2CConfig(), 8, 20_000, 0.70),
        (A2CConfig(), 1, 20_000, 0.70),
        (TRPOConfig(), 8, 8_000, 0.75),
        (TRPOConfig(), 1, 8_000, 0.75),
        (RecurrentPPOConfig(batch_size=10**6), 8, 8_000, 0.75),
        (RecurrentPPOConfig(batch_size=10**6), 1, 8_000, 0.75),
        (DQNConfig(learning_rate=0.01, gradient_steps=8), 1, 8_000, 0.75),
        (QRDQNConfig(learning_rate=0.01, gradient_steps=8), 1, 8_000, 0.75),
    ],
    ids=[
        "ppo-groups",
        "ppo-critic",
        "a2c-groups",
        "a2c-critic",
        "trpo-groups",
        "trpo-critic",
        "recurrent-ppo-groups",
        "recurrent-ppo-critic",
        "dqn",
        "qrdqn",
    ],
)
def test_algorithms_solve_what_an_untrained_policy_and_every_table_fail(
    planted_backbone: WalkableBackbone,
    planted_images: ImageSet,
    config: AlgorithmConfig,
    group: int,
    steps: int,
    solved: float,
) -> None:
    model = make_model(config, planted_backbone, planted_images, group=group)
    assert reward_of(model, planted_backbone, planted_images) == pytest.approx(UNTRAINED_REWARD)
    train(model, config, steps)
    learned = reward_of(model, planted_backbone, planted_images)
    assert solved <= learned <= BEST_REWARD + 1e-9
    assert solved > BEST_TABLE_REWARD + 0.15


def test_the_best_table_is_as_stated(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    rewards = [
        float(
            rewards_of(
                evaluate_static_table(planted_backbone, planted_images, table, name="table"),
                planted_backbone.costs,
                WEIGHTS,
                budget=None,
            ).mean()
        )
        for table in itertools.product(range(3), repeat=2)
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)
    assert rewards[0] == pytest.approx(UNTRAINED_REWARD)


def test_same_seed_same_weights_other_seed_other_weights(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    config = PPOConfig()
    policies = []
    for seed in (3, 3, 4):
        model = make_model(config, planted_backbone, planted_images, group=8, seed=seed)
        train(model, config, 512, seed)
        policies.append(model.policy.state_dict())
    same = [torch.equal(policies[0][name], policies[1][name]) for name in policies[0]]
    other = [torch.equal(policies[0][name], policies[2][name]) for name in policies[0]]
    assert all(same)
    assert not all(other)


def test_layers_share_no_action_head(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    model = make_model(PPOConfig(), planted_backbone, planted_images, group=8)
    assert not list(model.policy.action_net.parameters())
    learned = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in model.policy.parameters()}


def test_actor_and_critic_share_nothing(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    policy = make_model(PPOConfig(), planted_backbone, planted_images, group=8).policy
    actor = {p.data_ptr() for p in policy.pi_features_extractor.parameters()}
    critic = {p.data_ptr() for p in policy.vf_features_extractor.parameters()}
    assert not actor & critic


def test_groups_are_used_only_where_asked_for(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    for config in (
        PPOConfig(),
        A2CConfig(),
        MaskablePPOConfig(),
        TRPOConfig(),
        RecurrentPPOConfig(),
    ):
        grouped = make_model(config, planted_backbone, planted_images, group=8)
        alone = make_model(config, planted_backbone, planted_images, group=1)
        assert isinstance(grouped.rollout_buffer, GroupRolloutBuffer)
        assert not isinstance(alone.rollout_buffer, GroupRolloutBuffer)


def test_schedules_run_from_start_to_end() -> None:
    config = PPOConfig(ent_coef=0.02)
    assert [ent_coef_at(config, p) for p in (0.0, 0.5, 1.0, 1.1)] == [0.02, 0.01, 0.0, 0.0]


@pytest.mark.parametrize("config", [PPOConfig(), A2CConfig()])
def test_a_gate_that_begins_uniform_takes_smaller_steps_and_is_not_mixed(config) -> None:
    suited = with_start_defaults(config, "uniform", timesteps=300_000)
    assert learning_rate_range(suited, 300_000) == pytest.approx((0.005, 0.00025))
    assert ent_coef_at(suited, 0.0) == 0.0
    assert with_start_defaults(config, "uniform", timesteps=100).learning_rate == 0.03
    resolved = with_start_defaults(config, "indifferent", timesteps=300_000)
    assert (resolved.learning_rate, resolved.final_learning_rate) == (0.03, 0.0015)
    assert ent_coef_at(config, 0.0) == 0.03


def test_what_is_asked_for_holds_wherever_a_gate_begins() -> None:
    asked = PPOConfig(learning_rate=0.1, final_learning_rate=0.01, ent_coef=0.01)
    assert with_start_defaults(asked, "uniform", timesteps=100) == asked
    critic = TRPOConfig()  # its step sizes are the critic's, which begins from nothing in any case
    assert learning_rate_range(with_start_defaults(critic, "uniform", timesteps=300_000), 7) == (
        0.03,
        0.0015,
    )


@pytest.mark.parametrize(
    ("algo", "asked", "start", "expected"),
    [
        ("ppo", None, "uniform", 1),
        ("ppo", None, "indifferent", 8),
        ("ppo", 4, "uniform", 4),
        ("ppo", 1, "indifferent", 1),
        ("recurrent_ppo", None, "uniform", 1),
        ("dqn", None, "indifferent", 1),
        ("qrdqn", 1, "indifferent", 1),
    ],
)
def test_images_are_walked_several_times_where_a_gate_begins_indifferent(
    algo: str, asked: int | None, start, expected: int
) -> None:
    config = ALGORITHMS[algo].config_type()
    assert resolved_group_size(config, asked, start=start) == expected


def test_learning_rate_falls_linearly(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    config = PPOConfig(learning_rate=1e-2, final_learning_rate=1e-3)
    model = make_model(config, planted_backbone, planted_images, group=8)
    rates = [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0, -0.1)]
    assert rates == pytest.approx([1e-2, 5.5e-3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("config", "timesteps", "expected"),
    [
        (PPOConfig(), 600_000, (0.02, 0.001)),
        (PPOConfig(), 3_000_000, (0.004, 0.0002)),
        (A2CConfig(), 1_000, (0.03, 0.0015)),
        (PPOConfig(learning_rate=0.1), 3_000_000, (0.1, 0.005)),
        (PPOConfig(learning_rate=0.1, final_learning_rate=0.0), 5, (0.1, 0.0)),
    ],
)
def test_default_step_sizes_shrink_with_the_length_of_the_training(
    config, timesteps: int, expected: tuple[float, float]
) -> None:
    assert learning_rate_range(config, timesteps) == pytest.approx(expected)


@pytest.mark.parametrize("start", ["uniform", "indifferent"])
def test_every_algorithm_has_a_name_and_builds(
    planted_backbone: WalkableBackbone, planted_images: ImageSet, start
) -> None:
    for entry in ALGORITHMS.values():
        config = entry.config_type()
        group = resolved_group_size(config, None, start=start)
        model = make_model(config, planted_backbone, planted_images, group=group)
        assert isinstance(model, entry.algorithm)


def test_minibatches_must_divide_an_update(
    planted_backbone: WalkableBackbone, planted_images: ImageSet
) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 3; it must divide the 128 decisions"):
        make_model(PPOConfig(batch_size=3), planted_backbone, planted_images, group=8)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PPOConfig(learning_rate=0.0), "learning_rate is 0.0; it must be above 0"),
        (
            lambda: PPOConfig(learning_rate=1e9),
            "learning_rate is 1000000000.0; it must be at most 1",
        ),
        (lambda: PPOConfig(n_epochs=0), "n_epochs is 0; it must be at least 1"),
        (lambda: PPOConfig(gae_lambda=1.5), "gae_lambda is 1.5; it must be at most 1"),
        (lambda: A2CConfig(ent_coef=-1.0), "ent_coef is -1.0; it must be at least 0"),
        (lambda: A2CConfig(learning_rate=float("nan")), "learning_rate is nan"),
    ],
)
def test_impossible_hyperparameters_are_refused(make, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()
