"""Shipped sweeps: each is valid, and a small trial of each has a value of its objective."""

import math
from pathlib import Path

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.sweeping import commands
from dfs_rl.sweeping.spec import check_with_dataset, load_sweep_file
from dfs_rl.sweeping.sweep import reference_point_of
from dfs_rl.sweeping.trial import validations
from tests.helpers.quick import few_steps, quick_runs

__all__ = ["few_steps", "quick_runs"]

CONFIGS = Path(__file__).parents[2] / "tune_configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TINY = {
    "train_agent": {"timesteps": 192, "num_envs": 32, "passes": 1},
    "train_gumbel": {"timesteps": 96, "training.batch_size": 16},
    "train_static": {"episodes": 2, "images": 20},
    "train_backbone": {"backbone": "resnet8", "width": 4, "epochs": 1},
}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.mark.parametrize("name", NAMES)
def test_one_trial_trains(name, digits, tmp_path):
    path = CONFIGS / f"{name}.yaml"
    shipped = load_sweep_file(path)
    check_with_dataset(shipped, digits, path)
    tiny = TINY[shipped.command]
    file = load_sweep_file(path, {f"settings.{n}": v for n, v in tiny.items()})
    values = {setting: domain.samples[0] for setting, domain in file.search.items()}
    config = file.config(values, seed=0, run_dir=str(tmp_path / "run"))
    run = commands.create(config, digits)
    commands.train(config, digits, run)
    progress, points = validations(run)[-1]
    assert progress == 1.0
    reference_point = reference_point_of(file, digits)
    assert reference_point.computation == 10.0
    for shown in (points, commands.points_on_val(run)):
        assert all(isinstance(point, CurvePoint) for point in shown)
        value = file.objective.values(list(shown), reference_point)
        assert set(value) == set(file.objective.modes)
        assert all(math.isfinite(v) for v in value.values())
