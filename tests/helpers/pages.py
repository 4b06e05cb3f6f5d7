"""Tables, code and commands of documentation pages."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def read(page: str) -> str:
    """Return the text of a page, given by its path below ``docs``."""
    return (DOCS / page).read_text(encoding="utf-8")


def tables(text: str) -> list[list[dict[str, str]]]:
    """Return the tables of a page; each row has its cells by the head of their column."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def table(text: str, *columns: str) -> list[dict[str, str]]:
    """Return the only table of a page with these columns."""
    (wanted,) = [rows for rows in tables(text) if set(columns) <= set(rows[0])]
    return wanted


def names(cell: str) -> list[str]:
    """Return what stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(text: str, language: str) -> list[str]:
    """Return the code of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[tuple[str, str]]:
    """Return name and arguments of each command of a page that begins a line of a shell block."""
    lines = "\n".join(blocks(text, "(?:bash|sh)")).replace("\\\n", " ")
    return re.findall(r"^(?:python -m dfs_rl\.|dfs-rl )(\w[\w-]+) ?(.*)$", lines, re.MULTILINE)


def recipe(library: str, language: str = "python") -> str:
    """Return the code of a section of the page about other libraries."""
    section = read("how-to/other-libraries.md").split(f"\n## {library}\n")[1].split("\n## ")[0]
    (code,) = blocks(section, language)
    return code


def run_recipe(library: str) -> dict[str, Any]:
    """Run the Python code of one of these sections and return its variables."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(recipe(library), library, "exec"), variables)
    return variables
