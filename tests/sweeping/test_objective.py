"""Objectives of sweeps, against figures computed by hand."""

import math

import pytest

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.sweeping.objective import ObjectiveConfig

CORNER = CurvePoint(10.0, 80.0)
CURVE = [CurvePoint(0.1, 82.0), CurvePoint(1.0, 90.0)]


def test_hypervolume_of_two_points():
    values = ObjectiveConfig().values(CURVE, CORNER)
    # One decade at 2 points above the corner, one at 10.
    assert values == {"hypervolume": pytest.approx(12.0)}


@pytest.mark.parametrize(
    ("budget", "accuracy"),
    [
        (5.0, 90.0),
        (1.0, 90.0),
        (math.sqrt(0.1), 86.0),  # halfway on the logarithmic axis
        (0.1, 82.0),
        (0.01, -100.0),  # the cheapest point lies a decade above the budget
    ],
)
def test_accuracy_within_a_budget(budget, accuracy):
    objective = ObjectiveConfig(name="accuracy", budget=budget)
    assert objective.values(CURVE, CORNER) == {"accuracy": pytest.approx(accuracy)}


def test_reward_is_that_of_the_best_point():
    high = ObjectiveConfig(name="reward", cost_weight=20.0)
    assert high.values(CURVE, CORNER) == {"reward": pytest.approx(0.82 - 20 * 0.001)}
    low = ObjectiveConfig(name="reward", cost_weight=1.0)
    assert low.values(CURVE, CORNER) == {"reward": pytest.approx(0.90 - 0.01)}


def test_pareto_front_has_two_values():
    objective = ObjectiveConfig(name="pareto_front")
    assert objective.values([CURVE[1]], CORNER) == {"accuracy": 90.0, "computation": 1.0}
    assert objective.modes == {"accuracy": "max", "computation": "min"}


def test_mean_of_the_last_validations():
    objective = ObjectiveConfig(last=2)
    logged = [{"hypervolume": value} for value in (9.0, 1.0, 2.0)]
    assert objective.mean_of_last(logged) == {"hypervolume": 1.5}
    assert objective.mean_of_last(logged[:1]) == {"hypervolume": 9.0}


@pytest.mark.parametrize(
    ("values", "mean"),
    [((90.0, 80.0), 85.0), ((90.0, -20.0), -20.0), ((-10.0, 90.0, -20.0), -15.0)],
)
def test_penalties_are_not_averaged_with_accuracies(values, mean):
    objective = ObjectiveConfig(name="accuracy", budget=1.0)
    several = [{"accuracy": value} for value in values]
    assert objective.mean(several) == objective.mean_of_last(several) == {"accuracy": mean}


@pytest.mark.parametrize("name", ["hypervolume", "accuracy", "reward", "pareto_front"])
def test_failed_trial_is_worse_than_any_other(name):
    extra = {"accuracy": {"budget": 1e-3}, "reward": {"cost_weight": 1000.0}}.get(name, {})
    objective = ObjectiveConfig(name=name, **extra)
    bad = objective.values([CurvePoint(100.0, 0.0)], CORNER)
    for value, mode, worst in zip(
        bad.values(), objective.modes.values(), objective.failure_values.values(), strict=True
    ):
        assert worst <= value if mode == "max" else worst >= value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "loss"}, "name is 'loss'; allowed is one of 'hypervolume'"),
        ({"name": "accuracy"}, "budget is missing; accuracy needs it"),
        ({"name": "reward"}, "cost_weight is missing; reward needs it"),
        ({"budget": 1.0}, "budget is 1.0, which is for accuracy; leave it out"),
        ({"name": "accuracy", "budget": 0.0}, "budget is 0.0; it must be above 0"),
        (
            {"name": "pareto_front", "reference_point": (1.0, 2.0)},
            "reference_point is .* which is for hypervolume",
        ),
        ({"reference_point": (0.0, 2.0)}, "reference_point.0. is 0.0; it must be above 0"),
        ({"last": 0}, "last is 0; it must be at least 1"),
    ],
)
def test_invalid_objectives_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**settings)
