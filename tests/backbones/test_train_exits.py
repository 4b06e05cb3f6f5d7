"""The command that gives a backbone exits."""

import json

import pytest

from dfs_rl.backbones import load_backbone
from dfs_rl.evaluate import evaluate_run
from dfs_rl.train_exits import main


def test_a_run_holds_the_backbone_with_exits(tmp_path, capsys):
    run = tmp_path / "exits"
    assert main(["--after", "1", "3", "--run-dir", str(run)]) == 0
    assert "after 1    after 3" in capsys.readouterr().out
    assert load_backbone(run).costs.exits_after == (1, 3)
    accuracy = json.loads((run / "summary.json").read_text())["val_accuracy"]
    assert list(accuracy) == ["2", "3", "4", "8", "32"]
    assert min(accuracy["8"]) > 90.0  # of ten classes
    assert len(evaluate_run(run, split="val").summary.methods) == 6
    again = tmp_path / "again"
    assert main(["--after", "1", "3", "--run-dir", str(again)]) == 0
    heads = "backbone/exits.safetensors"
    assert (run / heads).read_bytes() == (again / heads).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--after", "2", "6"], "allowed are ascending numbers from 0 to 5"),
        (["--after", "3", "1"], "after [3, 1] gated layers"),
        (["--after", "1", "--threads", "0"], "threads is 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(tmp_path, capsys, arguments, complaint):
    run = tmp_path / "run"
    assert main([*arguments, "--run-dir", str(run)]) == 2
    assert complaint in capsys.readouterr().err
    assert not run.exists()
