import importlib.metadata
import subprocess
import sys

import pytest

import dfs_rl

ENVIRONMENT = "dfs_rl/FractionalSkipping-v0"


def python(code: str, cwd, *flags: str) -> str:
    run = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_importing_the_package_is_light(tmp_path):
    code = "import sys, dfs_rl, dfs_rl.config, dfs_rl.runs; print('torch' in sys.modules)"
    assert python(code, tmp_path) == "False"


def test_the_version_is_the_installed_one():
    assert dfs_rl.__version__ == importlib.metadata.version("dfs-rl")


def test_load_is_found_on_first_use_and_other_names_are_not():
    from dfs_rl.gating.model import load

    assert dfs_rl.load is load
    with pytest.raises(AttributeError, match="module 'dfs_rl' has no attribute 'laod'"):
        dfs_rl.laod  # noqa: B018


@pytest.mark.parametrize(
    "statement", ["import gymnasium", "from gymnasium.envs.registration import spec"]
)
def test_gymnasium_knows_the_environment_without_an_import_of_ours(tmp_path, statement):
    code = f"{statement}\nimport gymnasium\nprint(gymnasium.spec({ENVIRONMENT!r}).id)"
    assert python(code, tmp_path) == ENVIRONMENT


def test_python_starts_without_importing_anything_of_ours_but_the_plugin(tmp_path):
    code = "import sys; print([m for m in sys.modules if m.startswith(('dfs_rl', 'envs', 'agents', 'gym'))])"
    assert python(code, tmp_path) == "['dfs_rl_plugin']"


def test_a_foreign_package_called_envs_does_not_break_gymnasium(tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    code = f"import gymnasium; print({ENVIRONMENT!r} in gymnasium.registry)"
    assert python(code, tmp_path) == "False"
    assert (
        python("import dfs_rl_plugin as p; p.watch(); p.watch(); import gymnasium", tmp_path) == ""
    )
