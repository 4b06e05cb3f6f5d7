"""The command, from flags to a stored backbone, and what it does when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfs_rl.backbones import (
    AdaptiveResNet,
    AdaptiveVisionTransformer,
    VisionTransformer,
    load_stored_backbone,
)
from dfs_rl.backbones.registry import network_of
from dfs_rl.costs import DEFAULT_BITS
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.train_backbone import main
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.checkpoint import load_tensors
from dfs_rl.utils.config import load_config
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.images import write_image_folder

TINY = [
    "--backbone",
    "resnet8",
    "--width",
    "2",
    "--bits",
    "0",
    "4",
    "32",
    "--training.calibration-rounds",
    "1",
]


def metrics(run: Path) -> list[dict[str, object]]:
    return RunFolder.open(run).read_metrics()


def test_a_run_holds_everything(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*TINY, "--epochs", "2", "--run-dir", str(run)]) == 0
    assert [record["epoch"] for record in metrics(run)] == [1, 2]
    assert set(metrics(run)[0]) == {
        "kind",
        "epoch",
        "progress",
        "points",
        "loss/labels",
        "loss/distillation",
        "val_accuracy/4_bit",
        "val_accuracy/32_bit",
    }
    assert [record["progress"] for record in metrics(run)] == [0.5, 1.0]
    last = metrics(run)[-1]
    measured = [last["val_accuracy/4_bit"], last["val_accuracy/32_bit"]]
    assert [accuracy for _, accuracy in last["points"]] == measured
    stored = load_stored_backbone(run)
    assert stored.info.dataset == "digits"
    assert len(stored.info.class_names) == 10
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_accuracy"] == stored.info.accuracy
    assert load_config(run / "config.yaml", TrainBackboneConfig).epochs == 2
    assert list((run / "tensorboard").iterdir())
    out, err = capsys.readouterr()
    assert "computation %" in out
    assert str(run) in out
    assert "epoch 2: loss" in err


@pytest.mark.parametrize(
    ("flags", "kind", "layers"),
    [
        (["--gate-branches"], VisionTransformer, 6),
        (["--recipe", "adn"], AdaptiveVisionTransformer, 1),
    ],
)
def test_transformers_are_trained_by_their_name(flags, kind, layers, tmp_path):
    run = str(tmp_path / "run")
    shape = ["--backbone", "vit3", "--width", "8", "--heads", "2", "--patch", "4"]
    few = ["--epochs", "1", "--training.calibration-rounds", "1", "--bits", "0", "4", "32"]
    assert main([*shape, *few, *flags, "--run-dir", run]) == 0
    backbone = load_stored_backbone(Path(run)).backbone
    assert type(backbone) is kind
    assert len(backbone.blocks) == layers
    config = backbone.config
    assert (config.width, config.heads, config.tokens) == (8, 2, (2, 2))


@pytest.mark.parametrize(
    ("name", "recipe", "width"),
    [
        ("resnet20", "supernet", 16),
        ("resnet20", "adn", 16),
        ("resnet50", "adn", 64),
        ("mobilenetv2", "adn", 32),
        ("vit12", "supernet", 192),
        ("vit12", "adn", 192),
        ("swin_tiny", "adn", 96),
    ],
)
def test_name_fixes_the_papers_width_by_default(name, recipe, width):
    config = network_of(name, recipe).config
    assert config().width == width
    assert config(width=96).width == 96


def test_plain_has_no_quantizer_anywhere(tmp_path):
    run = tmp_path / "run"
    shape = ["--backbone", "resnet8", "--width", "2"]
    assert main([*shape, "--plain", "--epochs", "1", "--run-dir", str(run)]) == 0
    backbone = load_stored_backbone(run).backbone
    assert tuple(backbone.options) == (32,)
    assert backbone.config.stem_bits == 32
    assert sum(p.numel() for n, p in backbone.named_parameters() if "log_scale" in n) == 0


@pytest.mark.parametrize(
    ("flags", "bits"),
    [(["--bits", "0", "4", "32"], (0, 4, 32)), (["--plain", "--granularity", "block"], (0, 32))],
)
def test_adaptive_depth_measures_the_shortest_network(tmp_path, flags, bits):
    run = tmp_path / "run"
    command = ["--recipe", "adn", "--backbone", "cifar_resnet26", "--width", "2", *flags]
    rounds = ["--training.calibration-rounds", "1"]
    assert main([*command, *rounds, "--epochs", "2", "--run-dir", str(run)]) == 0
    backbone = load_stored_backbone(run).backbone
    assert isinstance(backbone, AdaptiveResNet)
    assert backbone.config.blocks == (4, 4, 4)
    assert len(backbone.layers) == (6 if "block" in flags else 3)
    assert tuple(backbone.options) == bits
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["val_accuracy"]) == [str(b) for b in bits]
    # Its cost is that of what always runs.
    assert summary["points_on_val"][0][0] == pytest.approx(100 * backbone.costs.fixed_cost())
    assert "val_accuracy/0_bit" in metrics(run)[0]
    shutil.rmtree(run / "backbone")  # as if it had been killed before the end
    assert main(["--resume", str(run)]) == 0
    again = load_stored_backbone(run).backbone.state_dict()
    assert all(torch.equal(again[name], t) for name, t in backbone.state_dict().items())


def test_bit_options_by_name_are_the_same(tmp_path, capsys):
    widths = ["0", "8", "10", "12", "14", "16", "32"]
    shape = [
        "--backbone",
        "resnet8",
        "--width",
        "2",
        "--training.calibration-rounds",
        "1",
        "--epochs",
        "1",
    ]
    file = tmp_path / "bits.yaml"
    file.write_text("bits: dfs\n")
    ways = {
        "name": ["--bits", "dfs"],
        "file": ["--config", str(file)],
        "widths": ["--bits", *widths],
    }
    for name, flags in ways.items():
        assert main([*shape, *flags, "--run-dir", str(tmp_path / name)]) == 0
    shown = capsys.readouterr().out
    configs = [
        replace(load_config(tmp_path / name / "config.yaml", TrainBackboneConfig), run_dir=None)
        for name in ways
    ]
    assert configs[0] == configs[1] == configs[2]
    weights = [(tmp_path / n / "backbone" / "backbone.safetensors").read_bytes() for n in ways]
    assert weights[0] == weights[1] == weights[2]
    assert list(load_stored_backbone(tmp_path / "name").backbone.options) == [
        int(w) for w in widths
    ]
    (
        tmp_path / "name" / "backbone" / "backbone.json"
    ).unlink()  # as if it had been killed at the end
    assert main(["--resume", str(tmp_path / "name")]) == 0
    assert (
        capsys.readouterr().out.splitlines()[:-1]
        == shown.splitlines()[: shown.count("\n") // 3 - 1]
    )


def test_a_folder_that_holds_a_run_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    main([*TINY, "--epochs", "1", "--run-dir", str(run)])
    before = (run / "config.yaml").read_bytes()
    assert main([*TINY, "--epochs", "2", "--run-dir", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "vgg16"], "backbone is 'vgg16'; with the recipe supernet allowed are"),
        (["--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--width", "30000"], "width is 30000, which takes about "),
        (["--workers", "1000", "--training.batch-size", "1000"], "workers is 1000, which takes "),
        (["--bits", "0", "9"], "bit options [0, 9] contain 9"),
        (["--bits", "paper"], "bits has 'paper'; allowed are bit widths among [0, 1, 2,"),
        (["--bits", "0", "x"], "bits has 'x'"),
        (["--dataset", "no/such/folder"], "no/such/folder"),
        (["--device", "quantum"], "device is 'quantum'"),
        (["--training.lr", "-1"], "lr is -1.0"),
        (["--training.pad", "1000"], "training.pad is 1000, but the images are 8 x 8 pixels"),
        (["--training.pad", "9"], "allowed are 0 to 8 pixels"),
        (["--image-size", "3"], "image_size is 3; allowed are whole numbers of pixels from 4"),
        (["--recipe", "adn", "--bits", "4", "32"], "bits is [4, 32], but a network of"),
        (["--recipe", "adn", "--first-block", "always"], "first_block is set, which resnet20 with"),
        (["--heads", "6"], "heads is set, which resnet20 with the recipe supernet has not"),
        (["--backbone", "vit12", "--heads", "5"], "heads is 5; the width 192 must be a multiple"),
        (
            ["--backbone", "vit12", "--patch", "3"],
            "patch is 3, which does not suit images of 8 x 8 pixels",
        ),
        (["--backbone", "vit8", "--recipe", "adn"], "vit3, vit6, vit9, ..., vit48"),
        (
            ["--backbone", "vit6", "--recipe", "adn", "--gate-branches"],
            "gate_branches is set, which vit6 with the recipe adn has not",
        ),
        (
            ["--granularity", "block"],
            "granularity is set, which resnet20 with the recipe supernet has not",
        ),
        (["--stem", "imagenet"], "stem is set, which resnet20 with the recipe supernet has not"),
        (["--training.alpha", "0.4"], "training.alpha is set, which belongs to the recipe adn"),
        (["--training.feature-weight", "-1"], "feature_weight is -1.0; it must be at least 0"),
        (["--plain", "--bits", "0", "4", "32"], "bits is set, but with --plain nothing is"),
        (["--plain", "--stem-bits", "4"], "stem_bits is set, but with --plain nothing is"),
        (["--plain", "--per-channel"], "per_channel is set, but with --plain nothing is"),
        (["--backbone", "m:f", "--width", "8"], "width is set, but the network of m:f has its own"),
        (["--backbone", "mobilenetv2"], "'mobilenetv2', which the recipe adn trains; add"),
        (["--backbone", "resnet50"], "add --recipe adn, or take cifar_resnet50"),
        (["--recipe", "adn", "--stem", "imagenet"], "image_size is (8, 8), of which stem and"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, message, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*flags, "--run-dir", str(run)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not run.exists()


def start(run: Path, epochs: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dfs_rl.train_backbone", *TINY, "--run-dir", str(run)]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [*command, "--epochs", str(epochs)], env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_epoch(run: Path, process: "subprocess.Popen[str]") -> None:
    path = run / "checkpoints" / "last.safetensors"
    deadline = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "bit_options"),
    [
        ({"plain": True, "bits": (32,), "stem_bits": 32}, (32,)),
        ({"plain": True, "bits": (0, 32), "recipe": "adn"}, (0, 32)),
        ({"training": SupernetConfig(alpha=0.4), "recipe": "adn"}, DEFAULT_BITS),
    ],
)
def test_what_is_set_to_what_is_done_anyway_is_taken(settings, bit_options):
    assert TrainBackboneConfig(**settings).bit_options == bit_options


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_stopped_run_resumes_exactly(tmp_path, how, code, capsys):
    epochs = 12
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start(stopped, epochs)
    wait_for_epoch(stopped, process)
    process.send_signal(how)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == code
    if how is not signal.SIGKILL:
        assert f"--resume {stopped}" in message
    assert not (stopped / "summary.json").exists()

    assert main(["--resume", str(stopped)]) == 0
    assert main([*TINY, "--epochs", str(epochs), "--run-dir", str(whole)]) == 0
    assert metrics(stopped) == metrics(whole)
    ours, theirs = (
        load_tensors(run / "backbone" / "backbone.safetensors") for run in (stopped, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_shown_again_and_not_trained(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*TINY, "--epochs", "1", "--run-dir", str(run)]) == 0
    table = capsys.readouterr().out
    written = (run / "backbone" / "backbone.safetensors").stat().st_mtime_ns
    assert main(["--resume", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.out == table
    assert f"The training in {run} is finished." in shown.err
    assert (run / "backbone" / "backbone.safetensors").stat().st_mtime_ns == written


def test_run_resumes_on_moved_but_not_on_other_data(tmp_path, capsys):
    run, first = tmp_path / "run", write_image_folder(tmp_path / "first")
    flags = [*TINY, "--dataset", str(first), "--run-dir", str(run)]
    assert main([*flags, "--epochs", "1"]) == 0
    shutil.rmtree(run / "backbone")  # as if it had been killed before the end
    first.rename(tmp_path / "moved")
    other = write_image_folder(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert main(["--resume", str(run), "--dataset", str(other)]) == 2
    assert "was begun on other images or splits" in capsys.readouterr().err
    for picture in other.glob("*/??*.png"):  # too few for a batch
        picture.unlink()
    assert main(["--resume", str(run), "--dataset", str(other)]) == 2
    assert "was begun on other images or splits" in capsys.readouterr().err
    assert main(["--resume", str(run), "--dataset", str(tmp_path / "moved")]) == 0
    assert (run / "backbone" / "backbone.safetensors").is_file()
