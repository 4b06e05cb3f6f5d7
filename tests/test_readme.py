"""The README's Python examples run as they stand, and its commands parse."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.quick import quick_runs

__all__ = ["quick_runs"]

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = re.findall(
    r"^python -m (dfs_rl\.\w+) (.*)$", README.read_text(encoding="utf-8"), re.MULTILINE
)
NAMES = (
    *("train_backbone", "train_agent", "train_gumbel", "train_static", "train_cascade"),
    *("train_exits", "evaluate", "compare", "sweep", "export", "profile"),
)
MAINS = {name: import_module(name).main for name in map("dfs_rl.{}".format, NAMES)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run in place of the demo's."""
    path = tmp_path_factory.mktemp("demo")
    flags = ["--timesteps", "3000", "--run-dir", str(path / "runs" / "demo")]
    assert MAINS["dfs_rl.train_agent"](flags) == 0
    return path


@pytest.fixture
def demo(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example, demo, capsys):
    exec(compile(example, str(README), "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_command_parses(module, arguments, tmp_path, monkeypatch, capsys):
    # Only the last flag is wrong: what stands in the README is accepted up to it.
    monkeypatch.chdir(tmp_path)
    known = shlex.split(arguments, comments=True)
    assert MAINS[module]([*known, "--no-such-flag"]) == 2
    assert "no-such-flag" in capsys.readouterr().err


def test_there_is_something_to_test():
    assert len(EXAMPLES) == 4
    assert {module for module, _ in COMMANDS} == set(MAINS)
