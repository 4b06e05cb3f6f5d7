"""CleanRL's ppo.py trains on the environment after the page's change.

CleanRL is no package to install, so a variable names the script.
"""

import os
import shutil
import subprocess

import pytest

from tests.helpers.pages import recipe

VARIABLE = "CLEANRL_PPO"
SMALL = " --total-timesteps 256 --num-envs 4 --num-steps 32 --no-cuda"


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no ppo.py of CleanRL")
def test_recipe(tmp_path):
    shutil.copy(os.environ[VARIABLE], tmp_path / "ppo.py")
    run = subprocess.run(
        ["bash", "-ec", recipe("CleanRL", "bash").rstrip() + SMALL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "flat=True" in (tmp_path / "ppo.py").read_text()
    assert run.stdout.count("SPS:") == 2
