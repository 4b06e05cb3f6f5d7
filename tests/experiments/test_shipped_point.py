"""The point of a gate for all budgets that is shown in training is that which ships."""

import re

import pytest

import dfs_rl
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.session import shipped_point

CURVE = [(0.5, 80.0), (1.0, 90.0), (2.0, 94.0), (4.0, 95.0)]  # costs double in equal steps


@pytest.mark.parametrize(
    ("settings", "computation", "accuracy"),
    [
        ({"budget": 1.0}, 1.0, 90.0),
        ({"budget": 2.0**0.5}, 2.0**0.5, 92.0),  # halfway in log cost
        ({"budget": 9.0}, 4.0, 95.0),
        ({"budget": 0.1}, 0.5, 80.0),  # not within reach: the cheapest
        ({"max_accuracy_drop": 2.0}, 2.0, 94.0),
        ({"max_accuracy_drop": 0.1}, 4.0, 95.0),  # not within reach: the most accurate
        ({}, 2.0, 94.0),  # at the preference of the cost weight
    ],
)
def test_shown_point_is_that_of_the_aim(settings, computation, accuracy):
    config = TrainAgentConfig(**settings)
    point = shipped_point(config, CURVE, preference=2 / 3, full_precision_accuracy=95.5)
    assert point == pytest.approx({"computation": computation, "accuracy": accuracy})


@pytest.mark.parametrize(
    ("method", "settings", "budget"),
    [
        ("gumbel", {"timesteps": 600, "eval_every": 300, "budgets": [0.8, 8.0]}, 0.9),
        ("ppo", {"timesteps": 800, "num_envs": 32, "passes": 2, "start": "indifferent"}, 2.0),
    ],
)
def test_callback_gets_the_figures_that_are_shown(tmp_path, capsys, method, settings, budget):
    """They are at the budget, which the mean over all budgets is not."""
    given = []
    settings |= {"budget": budget, "callback": given.append, "run_dir": tmp_path / "run"}
    dfs_rl.train_gate(None, "digits", method=method, **settings)
    line = r"step ([\d,]+) of .*val accuracy about ([\d.]+) %, computation about ([\d.]+) %"
    shown = re.findall(line, capsys.readouterr().err)
    assert len(shown) == len(given) >= 3
    for (step, accuracy, computation), record in zip(shown, given, strict=True):
        assert record["timesteps"] == int(step.replace(",", ""))
        assert record["accuracy"] == pytest.approx(float(accuracy), abs=0.006)
        assert record["computation"] == pytest.approx(float(computation), abs=0.0006)
        costs = [cost for cost, _ in record["points"]]
        assert record["computation"] == pytest.approx(min(max(budget, min(costs)), max(costs)))
