"""Files of the project name what is there."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import metadata

import pytest
import yaml

from tests.helpers.pages import DOCS, names, table

ROOT = DOCS.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = metadata("dfs-rl")


def test_the_layout_has_every_package():
    rows = table(CONTRIBUTING, "place", "what it holds")
    shown = {name for row in rows for name in names(row["place"])}
    assert all(list(ROOT.glob(name)) for name in shown)
    packages = {path.parent.name for path in (ROOT / "dfs_rl").glob("*/__init__.py")}
    assert {name.removeprefix("dfs_rl/") for name in shown} >= packages


def test_places_exist():
    places = [name for row in table(CONTRIBUTING, "new", "place") for name in names(row["place"])]
    assert all((ROOT / name).exists() for name in places if "/" in name)


def test_make_has_the_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", CONTRIBUTING, re.MULTILINE)
    assert len(targets) == 4
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_refuses_another_python_than_that_of_the_environment(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fakes = {"mine": "print('3.10 of mine')", "other": "print('3.12 of another')"}
    for name, answer in fakes.items():
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{answer}"\n')
        python.chmod(0o755)
    (tmp_path / "mine" / "bin" / "pip").touch()
    (tmp_path / "mine" / ".installed").touch()  # newer than the files it was installed from

    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"]}
        command = ["make", "-C", str(tmp_path), "demo", "VENV=mine", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    for same in ([], ["PYTHON=mine/bin/python"]):
        made = make(*same)
        assert made.returncode == 0
        assert "dfs_rl.train_agent" in made.stdout
    refused = make("PYTHON=other/bin/python")
    assert refused.returncode == 2
    assert "dfs_rl" not in refused.stdout
    said = refused.stderr.splitlines()[0]
    for part in ("other/bin/python (3.12 of another)", "mine was made with", "VENV=DIR"):
        assert part in said


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["Version"]
    assert citation["license"] == PROJECT["License-Expression"]
    assert citation["keywords"] == PROJECT["Keywords"].split(",")
    assert citation["authors"] == [{"name": PROJECT["Author"]}]


def test_the_workflow_runs_what_a_change_must_pass():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["strategy"]["matrix"]["python"][0] == PROJECT["Requires-Python"].removeprefix(">=")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
