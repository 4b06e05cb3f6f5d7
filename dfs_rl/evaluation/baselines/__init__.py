"""Baselines that gates are compared with; ``BASELINES`` lists them by name."""

from dfs_rl.evaluation.baselines import methods as methods  # registers the baselines
from dfs_rl.evaluation.baselines.registry import BASELINES as BASELINES
from dfs_rl.evaluation.baselines.registry import register_baseline as register_baseline
from dfs_rl.evaluation.baselines.registry import run_baselines as run_baselines
