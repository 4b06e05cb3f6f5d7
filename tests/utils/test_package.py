import importlib.metadata
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


def test_import_needs_no_torch(tmp_path):
    code = "import sys, dfs_rl, dfs_rl.envs, dfs_rl.utils.config; print('torch' in sys.modules)"
    assert python("-c", code, cwd=tmp_path) == "False"


def test_import_leaves_the_environment_alone(tmp_path):
    code = "import os; before = dict(os.environ); import dfs_rl; print(before == dict(os.environ))"
    assert python("-c", code, cwd=tmp_path) == "True"


def test_version_is_the_installed_one():
    assert dfs_rl.__version__ == importlib.metadata.version("dfs-rl")


def test_public_names_load_on_first_use():
    from dfs_rl.gating.model import load

    assert dfs_rl.load is load
    with pytest.raises(AttributeError, match="module 'dfs_rl' has no attribute 'laod'"):
        dfs_rl.laod  # noqa: B018


@pytest.mark.parametrize(
    "found_before", ["", "import importlib.util; importlib.util.find_spec('gymnasium')"]
)
def test_make_beside_foreign_packages(foreign, found_before):
    code = (
        f"{found_before}\nimport gymnasium, dfs_rl\nprint(gymnasium.make({ENVIRONMENT!r}).spec.id)"
    )
    assert python("-c", code, cwd=foreign) == ENVIRONMENT


def test_make_by_module_prefix(foreign):
    code = f"import gymnasium; print(gymnasium.make('dfs_rl:{ENVIRONMENT}').spec.id)"
    assert python("-c", code, cwd=foreign) == ENVIRONMENT


@pytest.mark.parametrize(
    "command",
    [
        "train_backbone",
        "train_agent",
        "train_gumbel",
        "train_static",
        "train_cascade",
        "train_exits",
        "evaluate",
        "compare",
        "sweep",
    ],
)
def test_commands_beside_foreign_packages(foreign, command):
    """Only the settings of ``train_backbone`` need torch."""
    code = (
        f"import sys; from dfs_rl.{command} import main; main(['--help']); "
        "print('torch' in sys.modules)"
    )
    page = python("-c", code, cwd=foreign)
    assert f"usage: python -m dfs_rl.{command}" in page
    assert page.endswith(str(command == "train_backbone"))


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
