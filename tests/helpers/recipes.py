"""Code of the page about other libraries, which the tests of its clients run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "other-libraries.md"


def recipe(library: str, language: str = "python") -> str:
    """Return the code of one section."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {library}\n")[1].split("\n## ")[0]
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return code


def run_recipe(library: str) -> dict:
    """Run the Python code of one section and return its variables."""
    variables: dict = {"__name__": "__main__"}
    exec(compile(recipe(library), f"{PAGE.name}, {library}", "exec"), variables)
    return variables
