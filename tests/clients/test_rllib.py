"""RLlib's new API stack trains on the vector entry point."""

import warnings

import pytest

from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.utils.ray import start_ray
from tests.helpers.pages import run_recipe

for package in ("tree", "scipy", "lz4", "ormsgpack"):  # of the extra ray[rllib]
    pytest.importorskip(package, reason="ray[rllib] is not installed")


def test_recipe(capsys):
    with start_ray(cpus=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray about itself
        algorithm = run_recipe("RLlib")["algorithm"]
    assert isinstance(algorithm.env_runner.env.unwrapped, FractionalSkippingVectorEnv)
    assert -11.0 < float(capsys.readouterr().out.split()[-1]) < 1.0
