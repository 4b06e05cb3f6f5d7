"""The page on users' own models works as it stands, from the model to a trained gate."""

import re
import shlex
import sys
from pathlib import Path

import torch

from dfs_rl import load, train_agent
from dfs_rl.evaluate import main as evaluate_main
from dfs_rl.train_backbone import main as train_backbone_main
from tests.helpers.custom_models import forgotten_trust
from tests.helpers.quick import few_steps, quick_runs

__all__ = ["few_steps", "quick_runs"]

PAGE = Path(__file__).parent.parent / "docs" / "tutorials" / "your-own-model.md"
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
MAINS = {
    "train_agent": train_agent.main,
    "train_backbone": train_backbone_main,
    "evaluate": evaluate_main,
}
SHORTER = {"--timesteps": ["600", "--passes", "1"], "--epochs": ["1"]}


def run(command: str) -> int:
    """Run a command of the page, but not for as long."""
    _, _, module, *arguments = shlex.split(command)
    for flag, values in SHORTER.items():
        if flag in arguments:
            place = arguments.index(flag) + 1
            arguments[place : place + 1] = values
    return MAINS[module.removeprefix("dfs_rl.")](arguments)


def test_the_page_works_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    space: dict[str, object] = {}
    for kind, text in BLOCKS:
        if text.startswith("# mynets.py"):
            Path("mynets.py").write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(text, str(PAGE), "exec"), space)
        else:
            for command in text.splitlines():
                with forgotten_trust():  # each is a process of its own
                    assert run(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert "5 gated layers" in shown.out
    assert "Warning" not in shown.err
    assert space["trace"].bits.shape == (16, 5)
    assert load("runs/gated", trust_code=True).backbone.costs.n_layers == 5
    assert bool(torch.isfinite(space["logits"]).all())
    sys.modules.pop("mynets")


def test_there_is_something_to_test():
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("python") == 5
    assert kinds.count("sh") == 3
