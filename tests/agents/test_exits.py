"""Learning when to leave: proved on a planted task, with baselines of walks of unequal length."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

import dfs_rl
from dfs_rl import train_gumbel, train_static
from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.buffers import (
    GroupRolloutBuffer,
    MaskableGroupRolloutBuffer,
    RecurrentGroupRolloutBuffer,
)
from dfs_rl.agents.callbacks import Schedules, SyncEpisodes
from dfs_rl.agents.evaluation_callback import rewards_of
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    MaskablePPOConfig,
    PPOConfig,
    RecurrentPPOConfig,
    TRPOConfig,
)
from dfs_rl.agents.pretraining import pretraining_images
from dfs_rl.backbones import load_backbone
from dfs_rl.backbones.interfaces import GatedLayer
from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.data import ImageSet, load_dataset
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.experiments.backbone_resolver import backbone_of_run, preview_backbone
from dfs_rl.experiments.gate_run import backbone_spec
from dfs_rl.experiments.supervised_training import TrainGumbelConfig
from dfs_rl.gating.networks import exit_info
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.train_agent import main
from dfs_rl.train_exits import main as train_exits
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from tests.agents.test_buffers import SPACE

ACTIONS = spaces.Discrete(2)
LAYERS = 3
MENU = (16, 32)
LEAVE = len(MENU)
WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=0.5)
# 16 bit everywhere, which is what an untrained gate does: wrong for every image, at a quarter of the cost.
UNTRAINED_REWARD = -0.5 * 0.25
# Leaving after 1, 2 or all 3 layers, as each image needs.
BEST_REWARD = 1.0 - 0.5 * (1 + 2 + 3) / 9
# No exit is right for all images: the best table runs everything.
BEST_TABLE_REWARD = 0.5
SOLVED = 0.6


class DiggingLayer:
    """At 32 bit it takes one off an image's depth, at 16 bit it spoils the image."""

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        hidden = hidden.clone()
        hidden[:, 1] += -1.0 if bits == MENU[1] else 10.0
        return hidden


class DeepBackbone:
    """Classifies an image rightly, at any exit or at the end, once as many layers ran as its depth.

    Channel 0 is the label, channel 1 the depth, 1 to 3. There is nothing to skip with, so to stop
    is to leave.
    """

    options = BitOptions(MENU)
    costs = CostTable(
        options=BitOptions(MENU),
        layer_macs=(100,) * LAYERS,
        exits=tuple(ExitCost(after=after, macs=0, bits=32) for after in (1, 2)),
    )
    feature_sizes = (2,) * LAYERS
    feature_macs = 0.0
    layer_feature_macs = (0.0,) * LAYERS
    image_shape = (2, 4, 4)
    n_classes = 2
    feature_mean = torch.tensor([[0.5, 1.0]] * LAYERS)
    feature_std = torch.tensor([[0.5, 1.0]] * LAYERS)

    @property
    def layers(self) -> Sequence[GatedLayer]:
        return [DiggingLayer() for _ in range(LAYERS)]

    def stem(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3), keepdim=True)

    def head(self, hidden: Tensor) -> Tensor:
        label, depth = hidden[:, 0, 0, 0], hidden[:, 1, 0, 0]
        side = torch.where(depth > 0, -1.0, 1.0) * (2.0 * label - 1.0)  # [batch]
        return 3.0 * torch.stack([-side, side], dim=1)

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        return self.head(hidden)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3))


@pytest.fixture
def images() -> ImageSet:
    """Every label with every depth, 6 images."""
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(1, 4))
    pixels = grid.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    return ImageSet(pixels, grid[:, 0].clone())


def make_model(config: AlgorithmConfig, images: ImageSet, *, group: int) -> BaseAlgorithm:
    backbone = DeepBackbone()
    task = Task(
        backbone=backbone, images=images, reward=WEIGHTS, budget=None, class_names=("no", "yes")
    )
    env = SB3GatingVecEnv(task, 64, group_size=group, sync_episodes=True, seed=0)
    learning = PolicySettings(
        timesteps=600_000,
        feature_sizes=backbone.feature_sizes,
        hidden=16,
        group_size=group,
        seed=0,
        device="cpu",
        sync_episodes=True,
    )
    model = build_algorithm(config, env, learning)
    model.set_logger(Logger(None, []))
    return model


def gate_of(model: BaseAlgorithm):
    backbone = DeepBackbone()
    return deploy(model, backbone.options, feature_macs=0.0, name="gate", exits=exit_info(backbone))


def reward_of(records) -> float:
    return float(rewards_of(records, DeepBackbone.costs, WEIGHTS, budget=None).mean())


@pytest.mark.parametrize(
    ("config", "group", "steps"),
    [
        (PPOConfig(batch_size=10**6), 8, 24_000),
        (PPOConfig(batch_size=10**6), 1, 24_000),
        (TRPOConfig(), 8, 12_000),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_images_learn_to_leave_where_they_should(
    config: AlgorithmConfig, group: int, steps: int, images: ImageSet
) -> None:
    model = make_model(config, images, group=group)
    untrained = evaluate_gate(DeepBackbone(), gate_of(model), images)
    assert reward_of(untrained) == pytest.approx(UNTRAINED_REWARD)
    model.learn(steps, [Schedules(seed=0, config=config)], log_interval=10**9)
    records = evaluate_gate(DeepBackbone(), gate_of(model), images)
    assert SOLVED < reward_of(records) <= BEST_REWARD + 1e-9
    assert len(DeepBackbone.costs.n_layers_run(records.options).unique()) > 1


class Counting(BaseCallback):
    """Counts the decisions of episodes that have ended, and their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions = self.ends = self.dones = 0

    def _on_step(self) -> bool:
        episodes = [info["episode"]["l"] for info in self.locals["infos"] if "episode" in info]
        self.decisions += sum(episodes)
        self.ends += len(episodes)
        self.dones += int(self.locals["dones"].sum())
        return True


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(batch_size=10**6),
        RecurrentPPOConfig(batch_size=10**6),
        TRPOConfig(),
        MaskablePPOConfig(batch_size=10**6),
    ],
    ids=lambda config: type(config).__name__,
)
def test_only_decisions_that_were_made_are_counted(
    config: AlgorithmConfig, images: ImageSet
) -> None:
    model, counting = make_model(config, images, group=8), Counting()
    callbacks = [SyncEpisodes(), Schedules(seed=0, config=config), counting]
    model.learn(1_500, callbacks, log_interval=10**9)
    assert model.num_timesteps == counting.decisions >= 1_500
    assert counting.decisions < 1_500 + 64 * LAYERS  # it ends with the update that makes them
    assert counting.dones == counting.ends == model.get_env().episodes
    # Some left early, so that more walks were begun than the count alone would tell.
    assert counting.ends > counting.decisions / LAYERS


def test_a_recurrent_policy_begins_every_walk_without_memory(images: ImageSet) -> None:
    class Starts(BaseCallback):
        def _on_step(self) -> bool:
            if self.locals["n_steps"] == 0:
                assert self.locals["episode_starts"].all()
            return True

    config = RecurrentPPOConfig(batch_size=10**6)
    model = make_model(config, images, group=8)
    model.learn(600, [SyncEpisodes(), Starts()], log_interval=10**9)


def test_no_table_solves_the_task(images: ImageSet) -> None:
    costs = DeepBackbone.costs
    every = costs.canonicalize(torch.cartesian_prod(*[torch.arange(LEAVE + 1)] * LAYERS)).unique(
        dim=0
    )
    rewards = [
        reward_of(evaluate_static_table(DeepBackbone(), images, table, name="table"))
        for table in every.tolist()
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)


def test_the_deployed_gate_says_what_the_policy_says(images: ImageSet) -> None:
    model = make_model(PPOConfig(batch_size=10**6), images, group=8)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_()
    gate = gate_of(model)
    assert gate.n_actions == LEAVE + 1
    env = model.get_env()
    seen = env.reset()
    chosen, _ = model.predict(seen, deterministic=True)
    features, context = (torch.from_numpy(seen[key]) for key in ("features", "context"))
    assert gate.decide(features, 0, context).tolist() == chosen.tolist()


def made_up(seed: int, layers: int, group: int, n_images: int):
    """Rewards and starts of whole walks, some of which end early and rest."""
    rng = np.random.default_rng(seed)
    n_layers_run = rng.integers(1, layers + 1, size=group * n_images)
    rewards = rng.normal(size=(layers, group * n_images)).astype(np.float32)
    starts = np.zeros_like(rewards)
    starts[0] = 1.0
    for env, steps in enumerate(n_layers_run):
        rewards[steps:, env] = 0.0
        starts[steps : steps + 1, env] = 1.0  # a walk ends once
    return rewards, starts, n_layers_run


def fill(buffer, rewards, starts, **extra):
    envs = rewards.shape[1]
    for step in range(len(rewards)):
        place = np.arange(envs, dtype=np.float32)[:, None] + 100.0 * step
        given = ({"features": place}, np.zeros(envs), rewards[step], starts[step])
        buffer.add(*given, torch.zeros(envs), torch.zeros(envs), **extra)
    buffer.compute_returns_and_advantage(torch.zeros(envs, 1), np.full(envs, True))
    return buffer


@given(
    seed=st.integers(0, 2**31 - 1),
    layers=st.integers(1, 5),
    group=st.integers(2, 4),
    n_images=st.integers(1, 3),
)
def test_baselines_equal_a_loop_over_walks(seed, layers, group, n_images) -> None:
    rewards, starts, n_layers_run = made_up(seed, layers, group, n_images)
    envs = rewards.shape[1]
    space = (SPACE, ACTIONS, "cpu")
    buffer = GroupRolloutBuffer(
        layers, *space, gamma=1.0, n_envs=envs, group_size=group, sync_episodes=True
    )
    fill(buffer, rewards, starts)
    for env in range(envs):
        first = env // group * group
        others = [e for e in range(first, first + group) if e != env]
        for step in range(n_layers_run[env]):
            own = rewards[step:, env].sum()
            there = [e for e in others if n_layers_run[e] > step]
            if there:
                baseline = np.mean([rewards[step:, e].sum() for e in there])
            else:
                whole = np.mean([rewards[:, e].sum() for e in others])
                baseline = whole - rewards[:step, env].sum()
            assert buffer.returns[step, env] == pytest.approx(own, abs=1e-5)
            assert buffer.advantages[step, env] == pytest.approx(own - baseline, abs=1e-4)


@pytest.mark.parametrize("kind", ["plain", "masked", "recurrent"])
@pytest.mark.parametrize("batch", [None, 1, 4, 7])
def test_minibatches_hold_every_step_but_those_of_walks_at_rest(
    kind: str, batch: int | None
) -> None:
    rewards, starts, n_layers_run = made_up(3, 4, 2, 3)
    settings = {"gamma": 1.0, "n_envs": 6, "group_size": 2, "sync_episodes": True}
    space = (4, SPACE, ACTIONS)
    if kind == "plain":
        buffer = fill(GroupRolloutBuffer(*space, "cpu", **settings), rewards, starts)
    elif kind == "masked":
        made = MaskableGroupRolloutBuffer(*space, "cpu", **settings)
        buffer = fill(made, rewards, starts, action_masks=np.ones((6, 2)))
    else:
        made = RecurrentGroupRolloutBuffer(*space, (4, 1, 6, 3), "cpu", **settings)
        memory = torch.zeros(1, 6, 3)
        states = RNNStates((memory, memory), (memory, memory))
        buffer = fill(made, rewards, starts, lstm_states=states)
    seen = []
    for samples in buffer.get(batch):
        places = samples.observations["features"].flatten()
        if kind == "recurrent":
            places = places[samples.mask > 0]
        seen += places.tolist()
    expected = [100 * step + env for env, steps in enumerate(n_layers_run) for step in range(steps)]
    assert sorted(seen) == sorted(expected)


def test_single_walks_have_the_advantages_of_upstream() -> None:
    rewards, starts, n_layers_run = made_up(5, 4, 1, 6)
    settings = {"gamma": 1.0, "gae_lambda": 1.0, "n_envs": 6, "group_size": 1}
    made = GroupRolloutBuffer(4, SPACE, ACTIONS, "cpu", sync_episodes=True, **settings)
    buffer = fill(made, rewards, starts)
    for env, steps in enumerate(n_layers_run):
        to_go = rewards[:, env][::-1].cumsum()[::-1]
        np.testing.assert_allclose(buffer.advantages[:steps, env], to_go[:steps], atol=1e-5)


TINY = ["--timesteps", "800", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exits") / "backbone"
    assert train_exits(["--after", "1", "3", "--run-dir", str(path)]) == 0
    return path


def test_a_run_learns_to_leave_and_its_gate_ships(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = [
        *TINY,
        "--algo",
        "recurrent_ppo",
        "--backbone",
        str(backbone),
        "--run-dir",
        str(run),
    ]
    assert main(arguments) == 0
    assert "confidence exits" in capsys.readouterr().out
    model = dfs_rl.load(run)
    # An update is 32 walks of at most 6 decisions.
    seen = read_json(run / "training.json")["images_seen"]["gate"]
    walks = seen - pretraining_images(model.backbone.costs)
    last = RunFolder.open(run).read_metrics()[-1]
    assert walks % 32 == 0
    assert 800 <= last["timesteps"] < 800 + 32 * 6
    assert last["timesteps"] < 6 * walks
    assert last["progress"] == 1.0
    assert model.gate.exits is not None
    assert model.gate.exits.after == (1, 3)
    summary = read_json(run / "summary.json")
    assert summary["exits_after"] == [1, 3]
    assert len(summary["histogram"][0]) == 7
    assert {m["key"] for m in summary["methods"]} >= {"gate", "exits", "static_table"}


@pytest.mark.parametrize(
    "config", [TrainAgentConfig(exits=False), TrainGumbelConfig(), TrainAgentConfig()]
)
def test_gates_that_do_not_leave_get_the_network_without_exits(
    config: TrainAgentConfig | TrainGumbelConfig,
    backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = load_dataset("digits")
    run = RunFolder.create(
        tmp_path / "run", kind="train", name="run", config=config, command=(), fingerprint="0"
    )
    choice = backbone_spec(replace(config, backbone=backbone), "cpu")
    preview = preview_backbone(choice, dataset)
    costs = backbone_of_run(run, choice, dataset).backbone.costs
    leaves = config == TrainAgentConfig()
    assert costs.exits_after == ((1, 3) if leaves else ())
    assert capsys.readouterr().err.count("exits are left out") == (0 if leaves else 1)
    assert preview.costs == load_backbone(run.path).costs == costs


@pytest.mark.parametrize("command", [train_gumbel, train_static])
def test_exits_that_are_left_out_are_told_of_before_a_budget_is_refused_for_want_of_them(
    command: ModuleType,
    backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    flags = ["--backbone", str(backbone), "--budget", "0.05", "--run-dir", str(run)]
    assert command.main(flags) == 2
    notice, error = capsys.readouterr().err.splitlines()
    assert notice.startswith("The backbone's exits are left out")
    assert "is not enough for the cheapest choice of every layer" in error
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--algo", "dqn"], "give --no-exits"),
        (["--backbone-mode", "co-train"], "give --no-exits"),
    ],
)
def test_what_cannot_learn_to_leave_is_refused(
    arguments: list[str],
    complaint: str,
    backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert main([*TINY, *arguments, "--backbone", str(backbone), "--run-dir", str(run)]) == 2
    assert complaint in capsys.readouterr().err
    assert not run.exists()
