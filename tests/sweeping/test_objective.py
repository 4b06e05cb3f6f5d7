"""Objectives of sweeps, against figures computed by hand."""

import math

import pytest
import torch

from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.experiments.backbone_resolver import load_or_train_backbone
from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.spec import load_sweep_file
from dfs_rl.sweeping.sweep import reference_point_of

CORNER = CurvePoint(10.0, 80.0)
CURVE = [CurvePoint(0.1, 82.0), CurvePoint(1.0, 90.0)]


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({}, {"hypervolume": 12.0}),  # one decade at 2 points above the corner, one at 10
        ({"name": "accuracy", "budget": 5.0}, {"accuracy": 90.0}),
        ({"name": "accuracy", "budget": 1.0}, {"accuracy": 90.0}),
        # Halfway on the logarithmic axis.
        ({"name": "accuracy", "budget": math.sqrt(0.1)}, {"accuracy": 86.0}),
        ({"name": "accuracy", "budget": 0.1}, {"accuracy": 82.0}),
        # The cheapest point lies a decade above the budget.
        ({"name": "accuracy", "budget": 0.01}, {"accuracy": -100.0}),
        # The reward is that of the best point.
        ({"name": "reward", "cost_weight": 20.0}, {"reward": 0.82 - 20 * 0.001}),
        ({"name": "reward", "cost_weight": 1.0}, {"reward": 0.90 - 0.01}),
        ({"name": "pareto_front"}, {"accuracy": 90.0, "computation": 1.0}),
    ],
)
def test_values_of_a_validation(settings, values):
    objective = ObjectiveConfig(**settings)
    assert objective.values(CURVE, CORNER) == pytest.approx(values)
    assert objective.modes == {n: "min" if n == "computation" else "max" for n in values}


def test_accuracy_beyond_the_curve_is_the_best():
    objective = ObjectiveConfig(name="accuracy", budget=5.0)
    assert objective.values([*CURVE, CurvePoint(3.0, 85.0)], CORNER) == {"accuracy": 90.0}


@pytest.mark.parametrize(
    ("values", "mean"),
    [((90.0, 80.0), 85.0), ((90.0, -20.0), -20.0), ((-10.0, 90.0, -20.0), -15.0)],
)
def test_penalties_are_not_averaged_with_accuracies(values, mean):
    objective = ObjectiveConfig(name="accuracy", budget=1.0)
    assert objective.mean([{"accuracy": value} for value in values]) == {"accuracy": mean}


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


@pytest.mark.parametrize("stream", ["none", "mixed"])
def test_reference_accuracy_is_that_of_the_stream(tmp_path, stream):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"command: train_agent\nsettings: {{dataset: digits, corruptions: {stream}}}\n"
        "search: {algorithm.ent_coef: {uniform: [0, 1]}}\n"
    )
    file, dataset = load_sweep_file(path), load_dataset("digits", corruptions=stream)
    backbone = load_or_train_backbone(file.config({}), dataset).backbone.eval()
    lowest = min(bits for bits in backbone.options if bits > 0)
    with torch.no_grad():
        hidden = backbone.stem(dataset.val.images)
        for layer in backbone.layers:
            hidden = layer(hidden, lowest)
        correct = backbone.head(hidden).argmax(dim=1) == dataset.val.labels
    assert reference_point_of(file, dataset).accuracy == pytest.approx(
        100 * correct.double().mean().item()
    )
