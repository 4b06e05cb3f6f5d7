"""Hooks of mkdocs: the package as it installs, and the commands' help on their page."""

import io
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path

from mkdocs.structure.pages import Page

from dfs_rl.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
COMMANDS_PAGE = "reference/commands.md"
"""Page that the help of every command is added to; the repository has its beginning."""
WIDTH = 78
"""Columns of a help page that the site shows without scrolling."""


def on_startup(**_: object) -> None:
    """Write the package for mkdocstrings, which drops folders that are missing when it starts."""
    copy_package(ROOT / "build" / "source" / "dfs_rl")


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Add the help of the commands to their page."""
    return markdown + help_pages() if page.file.src_uri == COMMANDS_PAGE else markdown


def copy_package(target: Path) -> None:
    """Copy the package as it installs: mkdocstrings knows no package-dir of setuptools."""
    shutil.rmtree(target, ignore_errors=True)
    for source, place in (("dfs_rl", "."), ("agents", "agents"), ("envs", "envs")):
        shutil.copytree(
            ROOT / source,
            target / place,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )


def help_pages() -> str:
    """Return a section with the help of each command."""
    os.environ["COLUMNS"] = str(WIDTH)
    page = io.StringIO()
    for name in COMMANDS:
        page.write(f"\n## {name}\n\n```text\n")
        with redirect_stdout(page):
            main([name, "--help"])
        page.write("```\n")
    return page.getvalue()
