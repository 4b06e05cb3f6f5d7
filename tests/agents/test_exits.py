"""Learning when to exit: a planted task, and baselines of episodes of different lengths."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

import dfs_rl
from dfs_rl import train_agent, train_gumbel, train_static
from dfs_rl.agents.buffers import (
    GroupRolloutBuffer,
    MaskableGroupRolloutBuffer,
    RecurrentGroupRolloutBuffer,
)
from dfs_rl.agents.callbacks import SyncEpisodes
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
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.experiments.backbone_resolver import backbone_of_run, preview_backbone
from dfs_rl.experiments.gate_run import backbone_spec
from dfs_rl.experiments.supervised_training import TrainGumbelConfig
from dfs_rl.train_exits import main as train_exits
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from tests.agents.test_buffers import SPACE
from tests.helpers.planted_task import gate_of, learn, make_agent, make_task, mean_reward

LAYERS = 3
OPTIONS = (16, 32)
EXIT = len(OPTIONS)
# 16 bit everywhere, as an untrained gate does: always wrong, at a quarter of the cost.
UNTRAINED_REWARD = -0.5 * 0.25
# Exits after 1, 2 or all 3 layers, as each image needs.
BEST_REWARD = 1.0 - 0.5 * (1 + 2 + 3) / 9
# No exit is right for all images: the best table runs everything.
BEST_TABLE_REWARD = 0.5
SOLVED = 0.6
ONE_BATCH = {"batch_size": 10**6}


class DiggingLayer:
    """Lowers an image's depth by one at 32 bit; spoils the image at 16 bit."""

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        hidden = hidden.clone()
        hidden[:, 1] += -1.0 if bits == OPTIONS[1] else 10.0
        return hidden


class DeepBackbone:
    """Backbone that is right, at any exit or at the end, after as many layers as an image's depth.

    Channel 0 is the label, channel 1 the depth, 1 to 3. No layer can be skipped.
    """

    options = BitOptions(OPTIONS)
    costs = CostTable(
        options=BitOptions(OPTIONS),
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


def deep_images() -> ImageSet:
    """Every label with every depth, 6 images."""
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(1, 4))
    pixels = grid.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    return ImageSet(pixels, grid[:, 0].clone())


def make_model(config: AlgorithmConfig, *, group: int = 8) -> BaseAlgorithm:
    return make_agent(
        config, make_task(DeepBackbone(), deep_images()), group=group, sync_episodes=True
    )


# --- learning on the planted task


@pytest.mark.parametrize(
    ("config", "group", "steps"),
    [
        (PPOConfig(**ONE_BATCH), 8, 24_000),
        (PPOConfig(**ONE_BATCH), 1, 24_000),
        (TRPOConfig(), 8, 12_000),
    ],
    ids=["ppo-groups", "ppo-critic", "trpo"],
)
def test_images_learn_where_to_exit(config: AlgorithmConfig, group: int, steps: int) -> None:
    model = make_model(config, group=group)
    untrained = evaluate_gate(DeepBackbone(), gate_of(model, config), deep_images())
    assert mean_reward(untrained, DeepBackbone()) == pytest.approx(UNTRAINED_REWARD)
    learn(model, config, steps)
    records = evaluate_gate(DeepBackbone(), gate_of(model, config), deep_images())
    assert SOLVED < mean_reward(records, DeepBackbone()) <= BEST_REWARD + 1e-9
    assert len(DeepBackbone.costs.n_layers_run(records.options).unique()) > 1


def test_no_table_solves_the_task() -> None:
    costs = DeepBackbone.costs
    tables = torch.cartesian_prod(*[torch.arange(EXIT + 1)] * LAYERS)
    rewards = [
        mean_reward(
            evaluate_static_table(DeepBackbone(), deep_images(), table, name="t"), DeepBackbone()
        )
        for table in costs.canonicalize(tables).unique(dim=0).tolist()
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)


class Counting(BaseCallback):
    """Counts decisions of ended episodes; checks that each rollout starts without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions = self.ends = self.dones = 0

    def _on_step(self) -> bool:
        episodes = [info["episode"]["l"] for info in self.locals["infos"] if "episode" in info]
        self.decisions += sum(episodes)
        self.ends += len(episodes)
        self.dones += int(self.locals["dones"].sum())
        if self.locals["n_steps"] == 0 and "episode_starts" in self.locals:
            assert self.locals["episode_starts"].all()
        return True


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(**ONE_BATCH),
        RecurrentPPOConfig(**ONE_BATCH),
        TRPOConfig(),
        MaskablePPOConfig(**ONE_BATCH),
    ],
    ids=lambda config: config.label,
)
def test_timesteps_count_decisions_that_were_made(config: AlgorithmConfig) -> None:
    model, counting = make_model(config), Counting()
    model.learn(1_500, [SyncEpisodes(), counting], log_interval=10**9)
    assert model.num_timesteps == counting.decisions >= 1_500
    assert counting.decisions < 1_500 + 64 * LAYERS  # it ends with an update
    assert counting.dones == counting.ends == model.get_env().episodes
    assert counting.ends > counting.decisions / LAYERS  # some exited early


def test_deployed_gate_decides_as_the_policy() -> None:
    config = PPOConfig(**ONE_BATCH)
    model = make_model(config)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_()
    gate = gate_of(model, config)
    assert gate.n_actions == EXIT + 1
    seen = model.get_env().reset()
    chosen, _ = model.predict(seen, deterministic=True)
    features, context = (torch.from_numpy(seen[key]) for key in ("features", "context"))
    assert gate.decide(features, 0, context).tolist() == chosen.tolist()


# --- baselines and minibatches


def episodes_of(seed: int, layers: int, group: int, n_images: int):
    """Return rewards and starts of whole episodes, some of which end early, and their lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, layers + 1, size=group * n_images)
    rewards = rng.normal(size=(layers, group * n_images)).astype(np.float32)
    starts = np.zeros_like(rewards)
    starts[0] = 1.0
    for env, steps in enumerate(lengths):
        rewards[steps:, env] = 0.0
        starts[steps : steps + 1, env] = 1.0  # an episode ends once
    return rewards, starts, lengths


def fill(kind: str, rewards, starts, *, group: int, **settings: Any):
    """Return a buffer of whole episodes with synchronized starts."""
    layers, envs = rewards.shape
    memory = torch.zeros(1, envs, 3)
    extra: dict[str, Any] = {}
    shape: tuple[Any, ...] = (layers, SPACE, spaces.Discrete(2))
    made: Any = GroupRolloutBuffer
    if kind == "masked":
        made, extra = MaskableGroupRolloutBuffer, {"action_masks": np.ones((envs, 2))}
    elif kind == "recurrent":
        made = RecurrentGroupRolloutBuffer
        extra = {"lstm_states": RNNStates((memory, memory), (memory, memory))}
        shape = (*shape, (layers, 1, envs, 3))
    buffer = made(
        *shape, "cpu", gamma=1.0, n_envs=envs, group_size=group, sync_episodes=True, **settings
    )
    for step in range(layers):
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
def test_baselines_equal_a_loop_over_episodes(seed, layers, group, n_images) -> None:
    rewards, starts, lengths = episodes_of(seed, layers, group, n_images)
    buffer = fill("plain", rewards, starts, group=group)
    for env, length in enumerate(lengths):
        first = env // group * group
        others = [e for e in range(first, first + group) if e != env]
        for step in range(length):
            own = rewards[step:, env].sum()
            there = [e for e in others if lengths[e] > step]
            if there:
                baseline = np.mean([rewards[step:, e].sum() for e in there])
            else:
                whole = np.mean([rewards[:, e].sum() for e in others])
                baseline = whole - rewards[:step, env].sum()
            assert buffer.returns[step, env] == pytest.approx(own, abs=1e-5)
            assert buffer.advantages[step, env] == pytest.approx(own - baseline, abs=1e-4)


@pytest.mark.parametrize("kind", ["plain", "masked", "recurrent"])
@pytest.mark.parametrize("batch", [None, 1, 4, 7])
def test_minibatches_leave_out_padding(kind: str, batch: int | None) -> None:
    rewards, starts, lengths = episodes_of(3, 4, 2, 3)
    seen = []
    for samples in fill(kind, rewards, starts, group=2).get(batch):
        places = samples.observations["features"].flatten()
        seen += (places[samples.mask > 0] if kind == "recurrent" else places).tolist()
    expected = [100 * step + env for env, steps in enumerate(lengths) for step in range(steps)]
    assert sorted(seen) == sorted(expected)


def test_single_episodes_have_upstream_advantages() -> None:
    rewards, starts, lengths = episodes_of(5, 4, 1, 6)
    buffer = fill("plain", rewards, starts, group=1, gae_lambda=1.0)
    for env, steps in enumerate(lengths):
        to_go = rewards[:, env][::-1].cumsum()[::-1]
        np.testing.assert_allclose(buffer.advantages[:steps, env], to_go[:steps], atol=1e-5)


# --- commands

TINY = ["--timesteps", "800", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exits") / "backbone"
    assert train_exits(["--after", "1", "3", "--run-dir", str(path)]) == 0
    return path


def test_a_run_learns_to_exit_and_its_gate_ships(backbone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--algo", "recurrent_ppo", "--backbone", str(backbone), "--run-dir", str(run)]
    assert train_agent.main([*TINY, *flags]) == 0
    model = dfs_rl.load(run)
    # An update is 32 episodes of at most 6 decisions.
    seen = read_json(run / "training.json")["images_seen"]["gate"]
    episodes = seen - pretraining_images(model.backbone.costs)
    last = RunFolder.open(run).read_metrics()[-1]
    assert episodes % 32 == 0
    assert 800 <= last["timesteps"] < min(800 + 32 * 6, 6 * episodes)
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
def test_only_agents_keep_the_exits(
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
    exits = config == TrainAgentConfig()
    assert costs.exits_after == ((1, 3) if exits else ())
    assert capsys.readouterr().err.count("exits are left out") == (0 if exits else 1)
    assert preview.costs == load_backbone(run.path).costs == costs


@pytest.mark.parametrize("command", [train_gumbel, train_static])
def test_notice_of_exits_precedes_the_refusal(
    command: ModuleType, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--backbone", str(backbone), "--budget", "0.05", "--run-dir", str(run)]
    assert command.main(flags) == 2
    notice, error = capsys.readouterr().err.splitlines()
    assert "exits are left out" in notice
    assert "is not enough" in error
    assert not run.exists()


@pytest.mark.parametrize("flags", [["--algo", "dqn"], ["--backbone-mode", "co-train"]])
def test_settings_that_cannot_exit_are_refused(flags, backbone: Path, refusal) -> None:
    assert "give --no-exits" in refusal(
        train_agent.main, [*TINY, *flags, "--backbone", str(backbone)]
    )
