"""Links of the pages lead somewhere, both on GitHub and on the site."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dfs_rl.__main__ import COMMANDS
from tests.helpers.pages import DOCS, names, read, table

ROOT = DOCS.parent
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES = [*OUTSIDE, *sorted(DOCS.rglob("*.md"))]
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, which GitHub and the site form alike."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures inside the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"\w+:", target)]


def tracked() -> set[Path]:
    """Return the files that GitHub shows; without git, those that are there."""
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {path for path in ROOT.rglob("*") if path.is_file()}
    return {ROOT / name for name in listed}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    files = tracked()
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place in files, target
        assert not anchor or anchor in anchors(place), target
        # The site has the pages of docs alone.
        assert page in OUTSIDE or place.is_relative_to(DOCS), target


def test_there_are_links():
    assert sum(len(links(page)) for page in PAGES) > 150
    assert "budget-conditioning" in anchors(DOCS / "glossary.md")


def test_the_site_has_every_page():
    def listed(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry if isinstance(entry, list) else entry.values()
        return [page for part in parts for page in listed(part)]

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(listed(yaml.safe_load(text)["nav"])) == sorted(pages)


def test_the_page_of_commands_has_them_all():
    rows = table(read("reference/commands.md"), "command")
    shown = {names(row["command"])[0]: row["what it does"] for row in rows}
    assert shown == COMMANDS
