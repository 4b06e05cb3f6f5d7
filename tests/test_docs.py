"""The documentation's Python code runs, with shorter trainings, and its commands parse."""

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

import dfs_rl
from dfs_rl.__main__ import COMMANDS, main
from tests.helpers.pages import blocks, commands
from tests.helpers.quick import few_steps, quick_runs

__all__ = ["few_steps", "quick_runs"]

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
RUN_ELSEWHERE = {
    *("docs/tutorials/your-own-model.md", "docs/how-to/extending.md"),
    *("docs/environments/fractional-skipping.md", "docs/environments/network-wide.md"),
    *("docs/how-to/other-libraries.md", "docs/how-to/hub.md"),
}
TRAININGS = re.compile(r"(?<=timesteps=)[\d_]+|(?<=model\.learn\()[\d_]+")
PROGRAMS = {
    page: TRAININGS.sub("1536", "\n".join(code))
    for page, text in PAGES.items()
    if page not in RUN_ELSEWHERE and (code := blocks(text, "python"))
}
LINES = sorted({(page, *line) for page, text in PAGES.items() for line in commands(text)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Short runs for all budgets in place of those that the pages train; the last one is small."""
    folder, few = tmp_path_factory.mktemp("docs"), {"method": "gumbel", "timesteps": 1000}
    net = {"bits": (0, 8, 32), "epochs": 1, "width": 2, "run_dir": folder / "net"}
    small = dfs_rl.train_backbone("resnet8", "digits", **net)
    dfs_rl.train_gate(None, "digits", run_dir=folder / "run", **few)
    dfs_rl.train_gate(small, "digits", run_dir=folder / "timed", budget=60.0, **few)
    return folder


@pytest.mark.parametrize("page", PROGRAMS)
def test_code_runs(page, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for run in set(re.findall(r'"(runs/[\w-]+)', PROGRAMS[page])):
        if f'run_dir="{run}"' not in PROGRAMS[page]:
            shutil.copytree(trained / ("timed" if run == "runs/timed" else "run"), run)
    exec(compile(PROGRAMS[page], page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("page", "command", "arguments"), LINES)
def test_command_parses(page, command, arguments, tmp_path, monkeypatch, capsys):
    # Only the last flag is wrong: what stands in the page is accepted up to it.
    monkeypatch.chdir(tmp_path)
    known = shlex.split(arguments, comments=True)
    for file in (word for flag, word in pairwise(known) if flag == "--config"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("{}\n", encoding="utf-8")
    assert main([command, *known, "--no-such-flag"]) == 2
    assert "no-such-flag" in capsys.readouterr().err


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {
        name
        for text in PAGES.values()
        for block in blocks(text, "bash")
        for name in re.findall(r"^make ([a-z]+)", block, re.MULTILINE)
    }
    assert {"demo", "test"} <= named
    assert named <= set(targets)


def test_ci_calls_the_tests_of_the_readme():
    assert "make test " in "".join(blocks(PAGES["README.md"], "bash"))
    assert "make test " in (ROOT / ".ci" / "run").read_text()


def test_reference_holds_every_public_name():
    page = PAGES["docs/reference/api.md"]
    shown = set(re.findall(r"heading: dfs_rl\.(\w+)", page))
    assert shown == set(dfs_rl.__all__) - {"__version__"}


def test_pages_are_short():
    lengths = {page: len(text.splitlines()) for page, text in PAGES.items()}
    assert lengths.pop("README.md") <= 120
    assert {page: n for page, n in lengths.items() if n > 200} == {}


def test_there_is_something_to_test():
    assert len(PROGRAMS) > 5
    assert {command.replace("_", "-") for _, command, _ in LINES} == set(COMMANDS)
    assert set(PAGES) >= RUN_ELSEWHERE
