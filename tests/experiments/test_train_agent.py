"""The command from its flags to its run folder, and the sentences with which it refuses."""

import os
import shutil
import signal
import sys
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dfs_rl
from dfs_rl.agents.hyperparameters import ALGORITHM_CONFIGS, A2CConfig, DQNConfig, PPOConfig
from dfs_rl.backbones import default_digits, save_backbone, storage
from dfs_rl.costs.latency_profile import LatencySettings
from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.backbone_resolver import (
    load_or_train_backbone,
    preview_backbone,
    supernet_config,
)
from dfs_rl.experiments.gate_training import cost_weight_range_of, make_gate
from dfs_rl.gating.budget_conditioning import CostWeightRange
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_agent import main
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.checkpoint import load_checkpoint
from dfs_rl.utils.config import config_to_dict, load_config
from dfs_rl.utils.io import read_json
from tests.helpers.cotrained import assert_cotrained
from tests.helpers.images import write_image_folder
from tests.helpers.shown import sentence
from tests.helpers.small_backbone import small_backbone

TINY = ["--timesteps", "800", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]
ONE_PASS = ["--passes", "1"]


def algorithm_of(config: TrainAgentConfig):
    timesteps, start = config.timesteps, config.resolved_start
    return config.algorithm.resolve(512, 6, 100, timesteps=timesteps, start=start)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "run"
    assert main([*TINY, *ONE_PASS, "--run-dir", str(path), "--cost-weight", "20"]) == 0
    return path


def test_neighbouring_seeds_share_no_images(tmp_path):
    keys = []
    for seed in ("0", "1"):
        run = tmp_path / seed
        assert main([*TINY, *ONE_PASS, "--seed", seed, "--run-dir", str(run)]) == 0
        state = load_checkpoint(run / "checkpoints" / "last.safetensors").state
        keys += state["env"]["streams"]["keys"]
    assert len(set(keys)) == len(keys) == 64


def test_run_folder_suffices_to_use_the_gate(finished):
    model = dfs_rl.load(finished)
    digits = load_dataset("digits")
    logits, trace = model(digits.test.images[:5])
    assert logits.shape == (5, 10)
    assert trace.bits.shape == (5, default_digits().costs.n_layers)
    assert (finished / "summary.json").is_file()
    assert list((finished / "plots").glob("*.png"))
    stored = load_config(finished / "config.yaml", TrainAgentConfig)
    assert (stored.cost_weight, stored.start, stored.group_size) == (20.0, "uniform", 1)


def test_gate_can_be_set_to_other_budgets(finished):
    gate = load_gate(finished / "gate")
    assert gate.budget_conditioning is not None
    cost_weight_range = CostWeightRange(lowest=0.1, highest=30.0)
    assert float(cost_weight_range.at(torch.tensor(gate.preference))) == pytest.approx(20.0)
    least, most = gate.budget_conditioning.budget_range
    digits = load_dataset("digits")
    model = dfs_rl.load(finished, budget=(least + most) / 2)
    _, trace = model(digits.val.images)
    assert least <= float(trace.computation.mean()) <= most + 1e-6


def test_tensorboard_has_the_bits_of_layers_and_the_result(finished):
    found = EventAccumulator(str(finished / "tensorboard")).Reload()
    layers = default_digits().costs.n_layers
    assert {f"bits/layer_{i}" for i in range(1, layers + 1)} <= set(found.Tags()["scalars"])
    ((computation,), (accuracy,)) = (
        [event.value for event in found.Scalars(f"final/val_{name}")]
        for name in ("computation", "accuracy")
    )
    points = read_json(finished / "training.json")["points_on_val"]
    assert any([computation, accuracy] == pytest.approx(point) for point in points)
    assert "_hparams_/session_start_info" in found.PluginTagToContent("hparams")


def test_images_seen_are_counted(finished):
    record = read_json(finished / "training.json")
    # 32 episodes of 6 layers are 192 steps, so 800 steps take 5 updates. Before them, 2,048
    # images ran at each of six options and were imitated once.
    assert record["images_seen"] == {"gate": 5 * 32 + 7 * 2048, "backbone": 0}


def test_a_folder_with_a_run_is_refused(finished, capsys):
    assert main([*TINY, "--run-dir", str(finished)]) == 2
    assert "holds a run already" in sentence(capsys)


def test_finished_run_prints_its_table_again(finished, capsys):
    metrics = (finished / "metrics.jsonl").read_text()
    assert main(["--resume", str(finished)]) == 0
    shown = capsys.readouterr()
    assert f"The training in {finished} is finished." in shown.err
    assert "full precision" in shown.out
    assert (finished / "metrics.jsonl").read_text() == metrics


@pytest.fixture
def killed(finished, tmp_path):
    """A run that was killed before the end."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "training.json").unlink()
    return run


def test_stop_after_the_last_step_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    class Terminal(StringIO):
        """Terminal of a user who stops the command once it measures the trained gate."""

        def write(self, text):
            if text.startswith("Measuring the cost"):
                os.kill(os.getpid(), signal.SIGINT)
            return super().write(text)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal := Terminal())
        assert main([*TINY, *ONE_PASS, "--run-dir", str(run)]) == 130
    assert terminal.getvalue().endswith(f"python -m dfs_rl.train_agent --resume {run}\n")
    assert main(["--resume", str(run)]) == 0


def test_a_run_never_goes_on_with_other_images(killed, tmp_path, capsys):
    other = write_image_folder(tmp_path / "other")
    assert main(["--resume", str(killed), "--dataset", str(other)]) == 2
    assert f"{killed} was begun on other images or splits" in sentence(capsys)
    other_backbone(killed / "backbone", {})
    assert main(["--resume", str(killed)]) == 2
    assert "was trained on other images or splits" in sentence(capsys)


def test_cotraining_shares_timesteps_and_trains_backbone(tmp_path):
    path = tmp_path / "run"
    flags = ["--backbone-mode", "co-train", "--cotrain.batch-size", "32", "--budget", "20"]
    assert main([*TINY, *flags, "--run-dir", str(path)]) == 0
    # Half of 800 steps are the gate's: 3 updates of 192, each followed by a batch of 32.
    assert read_json(path / "training.json")["images_seen"] == {"gate": 96, "backbone": 96}
    assert_cotrained(path)
    # The gate is set to the budget, or to the lowest that it can hold.
    gate = load_gate(path / "gate")
    _, trace = dfs_rl.load(path)(load_dataset("digits").val.images)
    assert gate.budget_conditioning is not None
    least, _ = gate.budget_conditioning.budget_range
    assert gate.preference == gate.budget_conditioning.preference_for_budget(max(20.0, least))
    if gate.preference in (0.0, 1.0):  # else it lies between two measured positions
        measured = gate.budget_conditioning.computations[0 if gate.preference == 0.0 else -1]
        assert float(trace.computation.mean()) == pytest.approx(measured)


def other_backbone(path: Path, info: dict[str, Any], **settings: Any) -> None:
    """Store a backbone that was trained on other images than the digits."""
    stored = small_backbone(load_dataset("digits"), **settings)
    theirs = replace(stored.info, **({"dataset": "letters", "fingerprint": "other"} | info))
    save_backbone(stored.backbone, theirs, path)


@pytest.mark.parametrize(
    ("info", "settings", "words"),
    [
        ({}, {"image_size": (16, 16)}, r"takes images of [1, 16, 16]"),
        (
            {"class_names": ("a", "b", "c")},
            {"n_classes": 3},
            "tells the classes of 'letters' apart (a, b, c)",
        ),
        ({}, {}, "was trained on other images or splits than those of data set 'digits'"),
    ],
    ids=["shape", "classes", "images"],
)
def test_a_backbone_for_other_data_is_refused_by_name(tmp_path, refusal, info, settings, words):
    other_backbone(tmp_path / "net", info, **settings)
    said = refusal(main, [*TINY, "--backbone", str(tmp_path / "net")])
    assert words in said
    assert str(tmp_path / "net") in said


def test_other_data_without_a_backbone_trains_one_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "pictures")
    weights = []
    for old, name in (("pictures", "pictures"), ("pictures", "moved")):  # found by its images
        (tmp_path / old).rename(tmp_path / name)
        config = TrainAgentConfig(dataset=name, supernet_epochs=1)
        weights.append(load_or_train_backbone(config, load_dataset(name)).backbone.state_dict())
        said = capsys.readouterr().err
        assert ("training resnet20 on 'pictures' first" in said) == (len(weights) == 1)
        assert ("using the one trained before" in said) == (len(weights) == 2)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_reward_defaults_are_the_environments():
    assert TrainAgentConfig().reward_weights == RewardWeights()


def test_default_cost_weight_lies_in_the_range():
    assert TrainAgentConfig(cost_weight_range=(1.0, 10.0)).reward_weights.cost == 10.0
    measured = {"cost": "latency", "latency": LatencySettings(profile=Path("profile.json"))}
    assert TrainAgentConfig(**measured).cost_weight_range == (0.01, 3.0)
    given = TrainAgentConfig(**measured, cost_weight_range=(0.1, 30.0))
    assert given.cost_weight_range == (0.1, 30.0)
    config = TrainAgentConfig(cost_weight_range=(0.01, 0.04))
    assert config.reward_weights.cost == pytest.approx(0.02)
    assert replace(config, cost_weight=0.03).reward_weights.cost == 0.03
    assert make_gate(config, default_digits()).preference == pytest.approx(0.5)


def test_default_supernet_batch_fits_few_images():
    digits = load_dataset("digits")
    few = replace(digits, train=digits.train.subset(torch.arange(60)))
    config = TrainAgentConfig(dataset="x")
    assert supernet_config(config, few).training.batch_size == 60
    assert supernet_config(config, digits).training.batch_size == SupernetConfig.batch_size


def test_mnist5k_has_a_network_with_cheap_decisions():
    config = TrainAgentConfig(dataset="mnist5k", passes=3, hidden=8)
    backbone = preview_backbone(config, load_dataset("mnist5k")).backbone
    blocks = [(28, 12, 12)] * 2 + [(14, 12, 24), (14, 24, 24), (7, 24, 48), (7, 48, 48)]
    macs = sum(9 * side**2 * (i * o + o * o) for side, i, o in blocks)
    assert backbone.costs.total_macs == macs
    gate = make_gate(config, backbone, PassSettings(limit=3))
    cheapest_pass = (1 / 32) ** 2
    assert sum(gate.layer_macs) / macs < 0.15 * cheapest_pass


def test_masked_gate_keeps_every_image_within_budget(tmp_path, monkeypatch):
    loading = Mock(wraps=storage.load_tensors)
    monkeypatch.setattr(storage, "load_tensors", loading)
    flags = ["--algo", "maskable_ppo", "--per-input-budget", "2", "--cost-weight", "0.1"]
    # Uniform options stay below the budget; a gate that begins indifferent is stopped by it.
    flags += ["--start", "indifferent"]
    assert main([*TINY, *flags, "--run-dir", str(tmp_path / "run")]) == 0
    # One backbone for validation, training, calibration and evaluation:
    assert loading.call_count == 1
    model, images = dfs_rl.load(tmp_path / "run"), load_dataset("digits").test.images
    most = []
    for budget in (2.0, 100.0):
        model.budget = budget
        most.append(float(model(images)[1].computation.max()))
    assert most[0] <= 2.0 < most[1]


def test_flags_reach_the_training():
    config = TrainAgentConfig(
        algo="a2c",
        timesteps=4000,
        cost_weight=3.0,
        cost_weight_range=(1.0, 9.0),
        hidden=7,
        per_input_budget=2.0,
    )
    # What suits a uniform start:
    assert algorithm_of(config) == A2CConfig(
        learning_rate=0.03, final_learning_rate=0.0015, ent_coef=0.0
    )
    assert algorithm_of(replace(config, start="indifferent")).ent_coef == 0.03
    assert config.reward_weights.cost == 3.0
    assert cost_weight_range_of(config) == CostWeightRange(lowest=1.0, highest=9.0)
    assert config.validation_interval == 200
    gate = make_gate(config, default_digits())
    assert (gate.hidden, gate.budget, gate.name) == (7, 2.0, "A2C")
    assert gate.preference == pytest.approx(0.5)
    assert cost_weight_range_of(TrainAgentConfig(fixed_budget=True)) is None


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({}, ("rule", 1)),
        ({"passes": 1}, ("uniform", 1)),
        ({"passes": 2, "per_input_budget": 3.0}, ("indifferent", 1)),
        ({"start": "indifferent"}, ("indifferent", 8)),
        ({"backbone_mode": "co-train"}, ("indifferent", 8)),
        ({"init_gate": Path("gate")}, (None, 8)),  # it begins where that gate is
        ({"group_size": 4}, ("uniform", 4)),
        ({"algo": "dqn"}, ("indifferent", 1)),
    ],
)
def test_a_run_stores_what_its_defaults_came_to(settings, stored):
    config = TrainAgentConfig(**settings)
    resolved = config.with_resolved_defaults()
    assert (resolved.start, resolved.group_size) == stored
    assert resolved.with_resolved_defaults() == resolved
    assert algorithm_of(resolved) == algorithm_of(config)
    given = {n: getattr(config, n) for n in ("start", "group_size", "passes", "features")}
    assert replace(resolved, **given) == config


def test_stored_settings_have_one_algorithm():
    stored = config_to_dict(TrainAgentConfig(algo="dqn"))
    assert set(stored["algorithm"]) == {field.name for field in fields(DQNConfig)}
    assert not set(stored) & ALGORITHM_CONFIGS.keys()
    with pytest.raises(ConfigError, match="algorithm is a PPOConfig, but algo is 'dqn'"):
        TrainAgentConfig(algo="dqn", algorithm=PPOConfig())


def test_help_shows_the_chosen_algorithm_late(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for algo, flag in (("ppo", "--algorithm.clip-range"), ("dqn", "--algorithm.buffer-size")):
        assert main(["--algo", algo, "--help"]) == 0
        before, _, after = capsys.readouterr().out.partition("algorithm options")
        assert flag in after
        assert ("clip-range" in after) == (algo == "ppo")
        assert before.count("\n") <= 60
        assert before.count("python -m dfs_rl.train_agent -") == 3
        first = [word for word in before.split() if word.startswith("--")]
        for name in TrainAgentConfig.FIRST[:-1]:
            assert f"--{name.replace('_', '-')}" in first


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.yaml", "", "config.yaml is not what the run stored"),
        ("config.yaml", "algo: ppo\n", "config.yaml is not what the run stored"),
        ("timing.json", '{"seconds": "long"}', "seconds is 'long'"),
        ("training.json", '{"images_seen": {"gate": "96"}}', "images_seen.gate is '96'"),
        ("training.json", "[]", "not a mapping"),
    ],
)
def test_a_run_whose_files_are_damaged_does_not_go_on(killed, capsys, file, content, named):
    (killed / file).write_text(content)
    metrics = (killed / "metrics.jsonl").read_bytes()
    assert main(["--resume", str(killed)]) == 2
    said = sentence(capsys)
    assert named in said
    assert str(killed / file) in said
    assert (killed / "metrics.jsonl").read_bytes() == metrics
