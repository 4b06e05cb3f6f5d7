"""Hooks of mkdocs: the package as it installs, and a page of the commands' help."""

import io
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from dfs_rl.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
COMMANDS_PAGE = """\
# Commands

This page is the help of every command. `dfs-rl train-agent` and `python -m dfs_rl.train_agent` are
the same. Every command takes `--config file.yaml` with any of its flags (flags win); commands that
write a run folder take `--run-dir`.
"""
WIDTH = 78
"""Columns of a help page that the site shows without scrolling."""


def on_startup(**_: object) -> None:
    """Write the package for mkdocstrings, which drops folders that are missing when it starts."""
    copy_package(ROOT / "build" / "source" / "dfs_rl")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of the commands."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


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


def commands_page() -> str:
    """Return a page with the help of every command."""
    os.environ["COLUMNS"] = str(WIDTH)
    page = io.StringIO()
    page.write(COMMANDS_PAGE)
    for name in COMMANDS:
        page.write(f"\n## {name}\n\n```text\n")
        with redirect_stdout(page):
            main([name, "--help"])
        page.write("```\n")
    return page.getvalue()
