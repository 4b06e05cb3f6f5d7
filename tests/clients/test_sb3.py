"""The recipe for Stable-Baselines3 trains a policy and makes it a gate."""

import dfs_rl
from tests.helpers.pages import run_recipe


def test_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gate = run_recipe("Stable-Baselines3")["gate"]
    assert "cascade" in capsys.readouterr().out
    assert dfs_rl.load("runs/sb3").gate.widths == (16,)
    assert gate.validation["accuracy"] > 10.0
