"""The command, from flags to a stored backbone, and what it does when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

import dfs_rl
from dfs_rl.backbones import (
    AdaptiveResNet,
    AdaptiveVisionTransformer,
    VisionTransformer,
    VisionTransformerConfig,
    load_stored_backbone,
)
from dfs_rl.backbones.registry import network_of
from dfs_rl.costs import DEFAULT_BITS
from dfs_rl.data import load_dataset
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.supernet_training import build
from dfs_rl.train_backbone import main
from dfs_rl.training.supernet import StepLosses, SupernetTrainer
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.checkpoint import load_tensors
from dfs_rl.utils.config import load_config
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.images import write_image_folder

TINY = [
    *("--backbone", "resnet8", "--width", "2", "--bits", "0", "4", "32"),
    *("--training.calibration-rounds", "1"),
]
TWO_EPOCHS = [*TINY, "--epochs", "2", "--run-dir"]
WEIGHTS = Path("backbone") / "backbone.safetensors"


def metrics(run: Path) -> list[dict[str, object]]:
    return RunFolder.open(run).read_metrics()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A finished run, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    with redirect_stdout(StringIO()) as shown:
        assert main([*TWO_EPOCHS, str(run)]) == 0
    return run, shown.getvalue()


def test_a_run_holds_everything(finished):
    run, shown = finished
    assert [record["epoch"] for record in metrics(run)] == [1, 2]
    assert set(metrics(run)[0]) == {
        *("kind", "epoch", "progress", "points", "loss/labels", "loss/distillation"),
        *("val_accuracy/4_bit", "val_accuracy/32_bit"),
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
    assert "computation %" in shown
    assert str(run) in shown


def test_a_finished_run_is_shown_again_and_not_trained(finished, tmp_path, capsys):
    run, shown = finished
    written = (run / WEIGHTS).stat().st_mtime_ns
    assert main(["--resume", str(run)]) == 0
    again = capsys.readouterr()
    assert again.out == shown
    assert f"The training in {run} is finished." in again.err
    assert (run / WEIGHTS).stat().st_mtime_ns == written
    assert main([*TINY, "--epochs", "3", "--run-dir", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert load_config(run / "config.yaml", TrainBackboneConfig).epochs == 2
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "backbone" / "backbone.json").unlink()  # as if it had been killed at the end
    assert main(["--resume", str(copy)]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == shown.splitlines()[:-1]
    assert (copy / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


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


def test_plain_has_no_quantizer_anywhere():
    config = TrainBackboneConfig(backbone="resnet8", width=2, plain=True)
    backbone = build(config, load_dataset("digits"))
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
    assert main([*command, *rounds, "--epochs", "1", "--run-dir", str(run)]) == 0
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


def test_elastic_depth_measures_and_prints_nested_depths(tmp_path, capsys):
    run = tmp_path / "run"
    command = ["--recipe", "elastic", "--backbone", "resnet14", "--width", "2"]
    few = ["--bits", "0", "4", "32", "--epochs", "1", "--training.calibration-rounds", "1"]
    assert main([*command, *few, "--run-dir", str(run)]) == 0
    shown = capsys.readouterr().out
    stored = load_stored_backbone(run)
    assert list(stored.info.depth_accuracy) == ["1-1-1"]
    assert list(stored.info.depth_accuracy["1-1-1"]) == ["4", "32"]
    _, nested = shown.split("the first 1-1-1 of the 2-2-2 layers of 3 stages, the others skipped:")
    bits, accuracy, computation = map(float, nested.splitlines()[2].split())
    measured = stored.info.depth_accuracy["1-1-1"]["32"]
    assert (bits, accuracy) == (32, pytest.approx(measured, abs=0.006))
    macs = stored.backbone.costs.layer_macs
    fixed = 100 * stored.backbone.costs.fixed_cost()
    assert computation == pytest.approx(100 * sum(macs[::2]) / sum(macs) + fixed, abs=0.01)
    assert main(["--resume", str(run)]) == 0
    assert capsys.readouterr().out == shown


def test_bit_options_by_name_are_the_same(tmp_path):
    (tmp_path / "bits.yaml").write_text("bits: dfs\n")
    named = TrainBackboneConfig(bits="dfs")
    assert named.bit_options == (0, 8, 10, 12, 14, 16, 32)
    assert load_config(tmp_path / "bits.yaml", TrainBackboneConfig) == named
    assert TrainBackboneConfig(bits=named.bit_options) == named


def test_default_heads_are_the_transformers():
    assert TrainBackboneConfig().heads == VisionTransformerConfig.heads


def train_and_be_stopped(run: str, number: int) -> int:
    """Train, with a signal to this process in the middle of the second epoch."""
    train_epoch = SupernetTrainer.train_epoch

    def stopped(trainer: SupernetTrainer) -> Iterator[StepLosses]:
        for losses in train_epoch(trainer):
            if (trainer.epoch, trainer.step) == (1, 2):
                os.kill(os.getpid(), number)
            yield losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupernetTrainer, "train_epoch", stopped)
        return main([*TWO_EPOCHS, run])


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
def test_stopped_run_resumes_exactly(tmp_path, finished, capsys, how, code):
    (whole, _), stopped = finished, tmp_path / "stopped"
    if how is signal.SIGKILL:
        # One worker does without Ray: its import would end the process by an error.
        script = "import runpy, sys; sys.modules['ray'] = None; "
        script += "runpy.run_path({!r})['train_and_be_stopped']({!r}, {})"
        filled = script.format(__file__, str(stopped), how.value)
        assert subprocess.run([sys.executable, "-c", filled], check=False).returncode == code
    else:
        assert train_and_be_stopped(str(stopped), how) == code
        assert f"--resume {stopped}" in capsys.readouterr().err
    assert len(metrics(stopped)) == 1
    assert not (stopped / "summary.json").exists()

    assert main(["--resume", str(stopped)]) == 0
    assert metrics(stopped) == metrics(whole)
    ours, theirs = (load_tensors(run / WEIGHTS) for run in (stopped, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("times", [1, 2])  # after the epoch, and at once
def test_stop_in_the_last_epoch_says_how_to_go_on(tmp_path, finished, times):
    def stop(record):
        for _ in range(times if record["epoch"] == 2 else 0):
            os.kill(os.getpid(), signal.SIGINT)

    settings = {"width": 2, "bits": (0, 4, 32), "training": {"calibration_rounds": 1}, "epochs": 2}
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=f"train_backbone --resume {run}$"):
        dfs_rl.train_backbone("resnet8", "digits", callback=stop, run_dir=run, **settings)
    assert not (run / WEIGHTS).exists()
    assert main(["--resume", str(run)]) == 0
    assert metrics(run) == metrics(finished[0])


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
    assert (run / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        ({}, "elastic"),
        ({"recipe": "supernet"}, "supernet"),
        ({"bits": (2, 8, 32)}, "supernet"),
        ({"plain": True}, "supernet"),
        ({"backbone": "resnet8"}, "supernet"),
        ({"backbone": "vit2"}, "supernet"),
        ({"backbone": "module:function"}, "supernet"),
    ],
)
def test_networks_that_can_skip_are_elastic_by_default(settings, recipe):
    assert TrainBackboneConfig(**settings).recipe == recipe
    assert TrainBackboneConfig(**settings | {"recipe": recipe}).recipe == recipe
