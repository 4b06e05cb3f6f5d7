import subprocess
import sys

import gymnasium

from envs.registration import ENV_ID, register_envs


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_module_prefix_registers_without_an_import():
    done = run(f"import gymnasium; print(gymnasium.make('envs:{ENV_ID}').action_space)")
    assert done.stdout == "Discrete(6)\n", done.stderr


def test_registering_is_light_and_may_be_repeated():
    done = run(
        "import sys, envs; envs.register_envs()\n"
        "heavy = [m for m in ('torch', 'stable_baselines3', 'dfs_rl.gating') if m in sys.modules]\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert done.returncode == 0, done.stderr
    before = gymnasium.spec(ENV_ID)
    register_envs()
    assert gymnasium.spec(ENV_ID) is before


def test_registers_while_gymnasium_is_still_being_imported():
    # What a plugin loader does: gymnasium.envs is complete, the package gymnasium is not.
    done = run(
        "import sys, builtins\n"
        "real = builtins.__import__\n"
        "def hook(name, *args, **kwargs):\n"
        "    module = real(name, *args, **kwargs)\n"
        "    if name == 'gymnasium.envs.registration' and 'envs' not in sys.modules:\n"
        "        builtins.__import__ = real\n"
        "        from envs.registration import register_envs\n"
        "        register_envs()\n"
        "    return module\n"
        "builtins.__import__ = hook\n"
        "import gymnasium\n"
        f"print(gymnasium.spec('{ENV_ID}').id)"
    )
    assert done.stdout == f"{ENV_ID}\n", done.stderr
