"""The command from its flags to its run folder, and the sentences with which it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

import dfs_rl
from dfs_rl.agents.hyperparameters import LabelCoTrainConfig
from dfs_rl.backbones import default_digits, save_backbone
from dfs_rl.backbones.interfaces import confidence_sizes
from dfs_rl.costs import BitOptions
from dfs_rl.data import load_dataset
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.gumbel_training import build_gate
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_gumbel import main
from dfs_rl.utils.config import load_config
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.cotrained import assert_cotrained
from tests.helpers.small_backbone import small_backbone

TINY = ["--timesteps", "1000", "--device", "cpu", "--training.batch-size", "32"]


@pytest.fixture(scope="module", params=["ff", "lstm"])
def finished(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "run"
    flags = ["--gate", request.param, "--budget", "5", "--run-dir", str(path)]
    assert main([*TINY, *flags]) == 0
    return path


def test_run_folder_suffices_to_use_the_gate(finished):
    model = dfs_rl.load(finished)
    digits = load_dataset("digits")
    logits, trace = model(digits.test.images[:5])
    assert logits.shape == (5, 10)
    again, _ = model(digits.test.images[:5])
    assert torch.equal(logits, again)  # no noise, no memory between rollouts
    assert set(trace.bits.flatten().tolist()) <= set(BitOptions((0, 2, 3, 4, 8, 32)))
    summary = read_json(finished / "summary.json")
    assert {"gate", "static_table", "cascade", "patterns"} <= {m["key"] for m in summary["methods"]}
    stored = load_config(finished / "config.yaml", TrainGumbelConfig)
    assert stored.start == "uniform"  # what the default came to
    made = {"ff": MLPGate, "lstm": LSTMGate}[stored.gate]
    assert isinstance(load_gate(finished / "gate"), made)
    # 32 images of 6 layers are 192 timesteps, so 1000 take 6 batches; six options were tried
    # and one pass was imitated before.
    seen = {"gate": 6 * 32 + 7 * 2048, "backbone": 0}
    assert read_json(finished / "training.json")["images_seen"] == seen


def test_flags_reach_the_training():
    backbone = default_digits()
    config = TrainGumbelConfig(method="dfs", gate="lstm", timesteps=4000, hidden=7, budget=2.0)
    gate = build_gate(config, backbone)
    assert isinstance(gate, LSTMGate)
    assert (gate.hidden, gate.name, gate.budget_conditioning) == (7, "DFS LSTM", None)
    assert gate.feature_sizes == confidence_sizes(backbone.feature_sizes)
    assert config.validation_interval == 200
    once = build_gate(TrainGumbelConfig(method="blockdrop"), backbone)
    assert isinstance(once, OneShotGate)
    assert once.feature_sizes == tuple(backbone.feature_sizes)
    assert build_gate(TrainGumbelConfig(), backbone).budget_conditioning is not None


@pytest.mark.parametrize(
    ("flags", "kind", "bits", "name"),
    [
        (["--method", "skipnet"], MLPGate, {0, 32}, "SkipNet FF"),
        (["--method", "blockdrop"], OneShotGate, {0, 2, 3, 4, 8, 32}, "BlockDrop"),
    ],
    ids=["skipnet", "blockdrop"],
)
def test_literature_gates_train_evaluate_and_load(tmp_path, flags, kind, bits, name):
    path = tmp_path / "run"
    assert main([*TINY, *flags, "--budget", "60", "--run-dir", str(path)]) == 0
    gate = load_gate(path / "gate")
    assert isinstance(gate, kind)
    assert {gate.options[choice] for choice in gate.choices} == bits
    assert (gate.name, gate.budget_conditioning) == (name, None)
    model = dfs_rl.load(path)
    _, trace = model(load_dataset("digits").test.images[:40])
    assert set(trace.bits.flatten().tolist()) <= bits
    summary = read_json(path / "summary.json")
    assert {m["label"] for m in summary["methods"]} >= {name}


def test_cotraining_counts_images_and_keeps_the_original(tmp_path):
    path = tmp_path / "run"
    flags = ["--method", "dfs", "--backbone-mode", "co-train", "--cotrain.batch-size", "32"]
    # All but full precision everywhere is within this budget, so that the gate is kept that comes
    # last; three steps lead it through the first phase.
    eager = ["--training.learning-rate", "0.1", "--training.multiplier", "1", "--budget", "100"]
    longer = ["4000" if word == "1000" else word for word in TINY]
    assert main([*longer, *flags, *eager, "--run-dir", str(path)]) == 0
    # Half of 4000 are the gate's, in batches of 192: 11, of which those after the first phase
    # teach the backbone.
    seen = read_json(path / "training.json")["images_seen"]
    taught = [update["backbone"] is not None for update in updates_of(path)]
    assert seen == {"gate": 11 * 32, "backbone": sum(taught) * 32}
    assert taught == sorted(taught)
    assert 0 < sum(taught) < 11
    assert_cotrained(path)


def updates_of(run: Path) -> list[dict[str, Any]]:
    return [r for r in RunFolder.open(run).read_metrics() if r["kind"] == "update"]


def test_cotraining_uses_labels_alone_by_default(tmp_path):
    config = TrainGumbelConfig(method="dfs", backbone_mode="co-train")
    assert config.cotrain == LabelCoTrainConfig()
    # A file that sets one of a block's settings leaves the others at the command's own defaults.
    (tmp_path / "config.yaml").write_text(
        "backbone_mode: co-train\ncotrain: {full_precision: 2.0}\n"
    )
    read = load_config(tmp_path / "config.yaml", TrainGumbelConfig).cotrain
    assert read == LabelCoTrainConfig(full_precision=2.0)


def test_lowest_budget_that_no_choice_meets_is_named(refusal):
    said = refusal(main, [*TINY, "--budgets", "0.1", "5"])
    assert "lowest budget is 0.1 %, too little" in said
    assert "default" not in said


def test_backbone_without_skip_or_full_is_refused(refusal, tmp_path):
    stored = small_backbone(load_dataset("digits"), bits=(0, 2, 8))
    save_backbone(stored.backbone, stored.info, tmp_path / "backbone")
    flags = ["--method", "skipnet", "--budget", "50", "--backbone", "backbone"]
    said = refusal(main, [*TINY, *flags])
    assert "the gate of SkipNet chooses from 0 and 32 bit" in said
    assert "bit options [0, 2, 8] lack 32 bit" in said


@pytest.mark.parametrize(("flag", "value"), [("--start", "rule"), ("--features", "none")])
def test_choices_of_several_passes_are_refused(flag, value, refusal):
    said = refusal(main, [flag, value])
    assert flag in said
    assert f"'{value}'" in said
