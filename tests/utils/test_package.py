"""The package beside others, in new processes: what imports load, and what a wheel holds."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dfs_rl

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "dfs_rl/FractionalSkipping-v0"
# What stands in a user's folder, or is installed by openai-agents and by PyPI's envs.
FOREIGN = ("agents", "envs")
HELP_PAGES = """
import sys
from importlib import import_module

for command in (
    "train_backbone train_agent train_gumbel train_static train_cascade train_exits evaluate "
    "compare sweep export profile"
).split():
    import_module(f"dfs_rl.{command}").main(["--help"])
    import_module(f"dfs_rl.{command}").main(["--config", "no/file"])
    print(command, "torch" in sys.modules)
"""


def python(*arguments: str, cwd: Path) -> str:
    run = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            "raise ImportError('a package of another project')\n"
        )
    return tmp_path


def test_import_needs_no_torch_and_changes_no_variable(tmp_path):
    code = (
        "import os, sys; before = dict(os.environ); import dfs_rl.envs, dfs_rl.utils.config; "
        "print('torch' in sys.modules, before == dict(os.environ))"
    )
    assert python("-c", code, cwd=tmp_path) == "False True"


def test_version_is_the_installed_one():
    assert dfs_rl.__version__ == importlib.metadata.version("dfs-rl")


def test_public_names_load_on_first_use():
    from dfs_rl.gating.loading import load

    assert dfs_rl.load is load
    with pytest.raises(AttributeError, match="module 'dfs_rl' has no attribute 'laod'"):
        dfs_rl.laod  # noqa: B018


def test_make_beside_foreign_packages(foreign):
    """By module prefix, which imports the package, and then without it."""
    code = "import gymnasium, sys; print(*(gymnasium.make(name).spec.id for name in sys.argv[1:]))"
    made = python("-c", code, f"dfs_rl:{ENVIRONMENT}", ENVIRONMENT, cwd=foreign)
    assert made.split() == [ENVIRONMENT, ENVIRONMENT]


def test_commands_beside_foreign_packages(foreign):
    pages = python("-c", HELP_PAGES, cwd=foreign)
    loads_torch = dict(re.findall(r"^(\w+) (True|False)$", pages, re.MULTILINE))
    assert [name for name in loads_torch if f"usage: python -m dfs_rl.{name}" not in pages] == []
    assert list(loads_torch.values()) == ["False"] * 11
    assert pages.count("--trust-code") == 11


def test_wheel_holds_every_module_under_one_name(tmp_path):
    """Built from a copy, since setuptools leaves its work in the source tree."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("dfs_rl", *FOREIGN, "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    python("-c", build, str(tmp_path), cwd=copy)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        ("" if top == "dfs_rl" else "dfs_rl/") + path.relative_to(ROOT).as_posix()
        for top in ("dfs_rl", *FOREIGN)
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == expected
