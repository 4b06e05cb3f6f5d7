"""The program ``dfs-rl``, and the first screen of each command."""

import io
import re
import shlex
import subprocess
import sys
from ast import literal_eval
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

import dfs_rl
from dfs_rl.__main__ import COMMANDS, main
from dfs_rl.experiments.command import COMMANDS as CONFIGS
from dfs_rl.utils.cli import run_command

MODULES = {name.replace("-", "_") for name in COMMANDS}


@cache
def help_of(name: str) -> str:
    with redirect_stdout(io.StringIO()) as shown:
        assert import_module(f"dfs_rl.{name}").main(["--help"]) == 0
    return shown.getvalue()


def test_program_knows_every_command():
    root = {path.stem for path in Path(dfs_rl.__file__).parent.glob("*.py")}
    assert root - {"__init__", "__main__", "errors"} == MODULES == set(CONFIGS)


def test_program_lists_commands_and_shows_its_version(capsys):
    assert main([]) == main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert re.findall(r"^  (\S+)  ", listed, re.MULTILINE) == 2 * list(COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dfs-rl {dfs_rl.__version__}\n"


@pytest.mark.parametrize("name", ["train-agent", "train_agent"])
def test_program_runs_a_command_with_its_arguments(name, capsys):
    assert main([name, "--timesteps", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: --timesteps is 'x'; allowed: a whole number")


def test_unknown_command_is_one_sentence(capsys):
    assert main(["train", "--help"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: 'train' is no command; allowed are train-backbone, ")
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_module_is_the_program_and_loads_one_command():
    code = (
        "import runpy, sys; sys.argv[1:] = ['export', '--help']\n"
        "try: runpy.run_module('dfs_rl', run_name='__main__')\n"
        "finally: print(sorted(m for m in sys.modules if m.startswith('dfs_rl.')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: python -m dfs_rl.export")
    loaded = literal_eval(shown.stdout.splitlines()[-1])
    assert [name for name in MODULES if f"dfs_rl.{name}" in loaded] == ["export"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_first_screen_has_at_most_60_lines(name):
    lines = [line.strip(" ╭─╮") for line in help_of(name).splitlines()]
    details = [i for i, line in enumerate(lines) if re.fullmatch(r"\w+ options", line)]
    assert "options" in lines[: min(details, default=None)]
    assert min(details, default=len(lines)) <= 60


@pytest.mark.parametrize("name", sorted(MODULES))
def test_three_examples_can_be_parsed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune_configs").symlink_to(Path(dfs_rl.__file__).parents[1] / "tune_configs")
    for folder in ["net", "gate", "table", "ppo", "gumbel", "cascade"]:
        (tmp_path / "runs" / folder).mkdir(parents=True)
    for file in ("photos", "net.pt", "profile.json"):
        (tmp_path / file).mkdir()
    examples = re.findall(r"^  python -m dfs_rl\.(.*)", help_of(name), re.MULTILINE)
    assert len(examples) == 3
    for command, *arguments in map(shlex.split, examples):
        assert command == name
        if arguments[0:1] != ["--resume"]:
            seen = []
            config_type = resolve_name(CONFIGS[name])
            assert (
                run_command(seen.append, config_type, prog="", description="", argv=arguments) == 0
            )
            assert len(seen) == 1
