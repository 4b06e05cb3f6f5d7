"""Learning when to exit, on a planted task and by command."""

from dataclasses import replace

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

import dfs_rl
from dfs_rl import train_agent, train_gumbel, train_static
from dfs_rl.agents.callbacks import SyncEpisodes
from dfs_rl.agents.hyperparameters import (
    MaskablePPOConfig,
    PPOConfig,
    RecurrentPPOConfig,
    TRPOConfig,
)
from dfs_rl.agents.pretraining import pretraining_images
from dfs_rl.backbones import load_backbone
from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.experiments import gate_run
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.backbone_resolver import backbone_of_run
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.search_config import TrainCascadeConfig, TrainStaticConfig
from dfs_rl.train_exits import main as train_exits
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.planted_task import (
    PlantedBackbone,
    gate_of,
    images_of,
    learn,
    make_agent,
    make_task,
    mean_reward,
)
from tests.helpers.quick import few_images, quick_runs

__all__ = ["few_images", "quick_runs"]

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

    def __call__(self, hidden, bits):
        hidden = hidden.clone()
        hidden[:, 1] += -1.0 if bits == OPTIONS[1] else 10.0
        return hidden


class DeepBackbone(PlantedBackbone):
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
    layer_feature_macs = (0.0,) * LAYERS
    image_shape = (2, 4, 4)
    feature_mean = torch.tensor([[0.5, 1.0]] * LAYERS)
    feature_std = torch.tensor([[0.5, 1.0]] * LAYERS)

    @property
    def layers(self):
        return [DiggingLayer() for _ in range(LAYERS)]

    def answer(self, hidden, layer):
        return self.head(hidden)


def deep_images():
    """Every label with every depth, 6 images."""
    return images_of(torch.arange(2), torch.arange(1, 4))


def make_model(config, *, group=8):
    return make_agent(
        config, make_task(DeepBackbone(), deep_images()), group=group, sync_episodes=True
    )


# --- learning on the planted task


@pytest.mark.parametrize(
    ("config", "group", "steps"),
    [(PPOConfig(**ONE_BATCH), 1, 24_000), (TRPOConfig(), 8, 8_000)],
    ids=["critic", "groups"],
)
def test_images_learn_where_to_exit(config, group, steps):
    model = make_model(config, group=group)
    untrained = evaluate_gate(DeepBackbone(), gate_of(model, config), deep_images())
    assert mean_reward(untrained, DeepBackbone()) == pytest.approx(UNTRAINED_REWARD)
    learn(model, config, steps)
    records = evaluate_gate(DeepBackbone(), gate_of(model, config), deep_images())
    assert SOLVED < mean_reward(records, DeepBackbone()) <= BEST_REWARD + 1e-9
    assert len(DeepBackbone.costs.n_layers_run(records.options).unique()) > 1


def test_no_table_solves_the_task():
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

    def __init__(self):
        super().__init__()
        self.decisions = self.ends = self.dones = 0

    def _on_step(self):
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
def test_timesteps_count_decisions_that_were_made(config):
    model, counting = make_model(config), Counting()
    model.learn(1_500, [SyncEpisodes(), counting], log_interval=10**9)
    assert model.num_timesteps == counting.decisions >= 1_500
    assert counting.decisions < 1_500 + 64 * LAYERS  # it ends with an update
    assert counting.dones == counting.ends == model.get_env().episodes
    assert counting.ends > counting.decisions / LAYERS  # some exited early


class Estimates(BaseCallback):
    """Compares the advantages of a rollout with a loop over its episodes."""

    def _on_rollout_start(self):
        self.lengths = {}

    def _on_step(self):
        for env, info in enumerate(self.locals["infos"]):
            if "episode" in info:
                self.lengths[env] = info["episode"]["l"]
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        for env, length in self.lengths.items():
            values, advantage = [*buffer.values[:length, env], 0.0], 0.0
            for step in reversed(range(length)):
                error = buffer.rewards[step, env] + values[step + 1] - values[step]
                advantage = error + self.model.gae_lambda * advantage
                assert buffer.advantages[step, env] == pytest.approx(advantage, abs=1e-5)


@pytest.mark.parametrize(
    "kind",
    [PPOConfig, RecurrentPPOConfig, TRPOConfig, MaskablePPOConfig],
    ids=lambda kind: kind.label,
)
def test_advantages_decay_by_gae_lambda(kind):
    estimates = Estimates()
    make_model(kind(gae_lambda=0.5), group=1).learn(400, estimates, log_interval=10**9)
    assert len(set(estimates.lengths.values())) > 1


def test_deployed_gate_decides_as_the_policy():
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


# --- commands

TINY = ["--timesteps", "800", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("exits") / "backbone"
    assert train_exits(["--after", "1", "3", "--run-dir", str(path)]) == 0
    return path


def test_a_run_learns_to_exit_and_its_gate_ships(backbone, tmp_path):
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
    ("config", "exits"),
    [
        (TrainAgentConfig(exits=False), False),
        (TrainGumbelConfig(), False),
        (TrainStaticConfig(), False),
        (TrainStaticConfig(method="search"), True),
        (TrainCascadeConfig(), True),
        (TrainAgentConfig(), True),
    ],
)
def test_some_gates_keep_the_exits(config, exits, backbone, tmp_path, capsys):
    dataset = load_dataset("digits")
    run = RunFolder.create(
        tmp_path / "run", kind="train", name="run", config=config, command=(), fingerprint="0"
    )
    config = replace(config, backbone=backbone)
    _, _, preview = gate_run.validate(config, dataset)
    costs = backbone_of_run(run, config, dataset).backbone.costs
    assert costs.exits_after == ((1, 3) if exits else ())
    assert capsys.readouterr().err.count("does not use the backbone's exits") == (0 if exits else 1)
    assert preview.backbone.costs == load_backbone(run.path).costs == costs


@pytest.mark.parametrize("command", [train_gumbel, train_static])
def test_notice_of_exits_precedes_the_refusal(command, backbone, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--backbone", str(backbone), "--budget", "0.05", "--run-dir", str(run)]
    assert command.main(flags) == 2
    notice, error = capsys.readouterr().err.splitlines()
    assert "does not use the backbone's exits" in notice
    assert "too little" in error
    assert not run.exists()


@pytest.mark.parametrize("flags", [["--algo", "dqn"], ["--backbone-mode", "co-train"]])
def test_settings_that_cannot_exit_are_refused(flags, backbone, refusal):
    assert "give --no-exits" in refusal(
        train_agent.main, [*TINY, *flags, "--backbone", str(backbone)]
    )
