"""Command ``train_exits``: run folder, resumption and refusal of bad input."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from dfs_rl.backbones import (
    PRETRAINED_DIGITS,
    AdaptiveResNet,
    AdaptiveResNetConfig,
    StoredBackbone,
    load_backbone,
    load_stored_backbone,
)
from dfs_rl.data import channel_statistics, load_dataset
from dfs_rl.experiments.config import EvaluateConfig
from dfs_rl.experiments.evaluation import evaluate_run
from dfs_rl.experiments.exit_fitting import exit_accuracies
from dfs_rl.train_exits import main
from dfs_rl.utils import trusted_import
from tests.helpers.custom_models import forgotten_trust, write

AFTER = ["--after", "1", "3"]
HEADS = "backbone/exits.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "exits"
    assert main([*AFTER, "--run-dir", str(run)]) == 0
    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_has_a_backbone_with_exits(finished, capsys):
    assert load_backbone(finished).costs.exits_after == (1, 3)
    accuracy = json.loads((finished / "summary.json").read_text())["val_accuracy"]
    assert list(accuracy) == ["2", "3", "4", "8", "32"]
    assert min(accuracy["8"]) > 90.0  # of ten classes
    assert len(evaluate_run(EvaluateConfig(run=finished, split="val")).summary.methods) == 6
    capsys.readouterr()
    before = contents(finished)
    assert main(["--resume", str(finished)]) == 0
    shown = capsys.readouterr()
    assert "after 1    after 3" in shown.out
    assert "is finished" in shown.err
    assert contents(finished) == before


def test_adaptive_depth_is_not_in_the_table():
    torch.manual_seed(0)
    digits = load_dataset("digits")
    config = AdaptiveResNetConfig(
        blocks=(2, 2), width=4, in_channels=1, image_size=(8, 8), bits=(0, 32), stem_bits=32
    )
    backbone = AdaptiveResNet(config, channel_statistics(digits.train.images)).eval()
    backbone.set_exits((1,))
    stored = StoredBackbone(backbone=backbone, info=load_stored_backbone(PRETRAINED_DIGITS).info)
    accuracies = exit_accuracies(stored, digits)
    assert list(accuracies) == ["0", "32"]
    # Untrained heads predict the same for all images.
    assert all(len(each) == 1 and 0.0 <= each[0] < 40.0 for each in accuracies.values())


def test_interrupted_run_resumes_exactly(finished, tmp_path, capsys):
    run, original = tmp_path / "run", contents(PRETRAINED_DIGITS)

    def interrupt() -> None:
        while not (run / ".lock").exists():
            time.sleep(0.01)
        time.sleep(0.1)  # the lock is a moment older than the work
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert main([*AFTER, "--run-dir", str(run)]) == 130
    assert f"python -m dfs_rl.train_exits --resume {run}\n" in capsys.readouterr().err
    assert not (run / "backbone" / "backbone.json").exists()
    assert main([*AFTER, "--run-dir", str(run)]) == 2
    assert f"{run} holds a run already" in capsys.readouterr().err
    assert main(["--resume", str(run)]) == 0
    assert (run / HEADS).read_bytes() == (finished / HEADS).read_bytes()
    assert contents(PRETRAINED_DIGITS) == original


@pytest.mark.parametrize("into", [".", "backbone"])
def test_folder_of_the_backbone_stays_unchanged(into, finished, tmp_path):
    shutil.copytree(finished / "backbone", tmp_path / "backbone")
    original = contents(tmp_path)
    places = ["--backbone", str(tmp_path), "--run-dir", str(tmp_path / into)]
    assert main(["--after", "2", *places]) == 2
    assert contents(tmp_path) == original


def test_replaced_exits_are_told(finished, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["--after", "2", "--backbone", str(finished), "--run-dir", str(run)]) == 0
    said = "The exits after [1, 3] gated layers are replaced by those after [2]."
    assert said in capsys.readouterr().err
    assert load_backbone(run).costs.exits_after == (2,)


@pytest.mark.usefixtures("no_allowed_constructors")
def test_users_network_has_its_weights(capsys):
    write("ownnets")
    trusted_import.trust_constructor("ownnets:make")
    weights = trusted_import.call_constructor("ownnets:make").state_dict()
    bias = torch.arange(10.0)
    torch.save({**weights, "5.bias": bias}, "weights.pt")
    network = ["--backbone", "ownnets:make", "--weights", "weights.pt"]
    assert main(["--after", "1", *network, "--run-dir", "run"]) == 0
    said = capsys.readouterr().err
    assert "Warning: the accuracy of the network of ownnets:make" in said
    assert "--backbone run --trust-code." in said
    stored = load_backbone(Path("run"), trust_code=True)
    assert stored.costs.exits_after == (1,)
    assert any(torch.equal(tensor, bias) for tensor in stored.state_dict().values())
    with forgotten_trust():
        assert main(["--resume", "run"]) == 2
    assert "give --trust-code" in capsys.readouterr().err
    assert main(["--resume", "run", "--trust-code"]) == 0
