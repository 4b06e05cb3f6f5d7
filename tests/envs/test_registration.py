import subprocess
import sys

import gymnasium

from dfs_rl.envs import ENV_ID, register_envs


def test_registering_is_light_and_may_be_repeated():
    code = (
        "import sys, dfs_rl.envs as envs; envs.register_envs()\n"
        "heavy = [m for m in ('torch', 'stable_baselines3', 'dfs_rl.gating') if m in sys.modules]\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before = gymnasium.spec(ENV_ID)
    register_envs()
    assert gymnasium.spec(ENV_ID) is before
