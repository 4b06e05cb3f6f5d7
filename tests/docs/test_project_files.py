"""Files of the project name what is there."""

import re
from importlib.metadata import metadata

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
