"""Records of a sweep that contradict themselves are refused."""

import math
from dataclasses import replace

import pytest

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint
from tests.helpers.fake_sweep import AREA, fake_sweep, fake_trial, retrained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ()}, "one or two are needed"),
        (
            {"names": ("a", "a"), "maximize": (True, True), "units": ("", "")},
            "one or two are needed",
        ),
        ({"maximize": (True, False)}, "maximize of the objective is"),
        ({"units": ()}, "units of the objective is"),
    ],
)
def test_an_objective_has_one_or_two_names_and_all_else_for_each(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(AREA, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"area": math.nan}}, "values of trial 001 has nan"),
        ({"history": ((0.1, math.inf),)}, "history of trial 001 has inf"),
        ({"seconds": math.nan}, "seconds of trial 001"),
        ({"progress": 1.5}, "progress of trial 001 is 1.5"),
        ({"reason": "boom"}, "is finished and its reason is 'boom'"),
        ({"status": "failed"}, "is failed and its reason is None"),
        ({"points": (CurvePoint(0.0, 50.0),)}, "a computation of 0.0"),
        ({"points": (CurvePoint(1.0, math.nan),)}, "points of trial 001 has nan"),
    ],
)
def test_a_trial_has_finite_figures_and_a_reason_only_if_it_failed(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(fake_trial(1), **changes)


def test_values_on_fresh_seeds_go_with_the_seeds():
    good = retrained("001", {"area": (1.0, 2.0)})
    with pytest.raises(ConfigError, match="area of 001 on fresh seeds has 2 entries; 1 are needed"):
        replace(good, seeds=(101,))
    with pytest.raises(ConfigError, match="points of 001 on fresh seeds has 1 entries"):
        replace(good, points=((),))
    with pytest.raises(ConfigError, match="must be finite"):
        retrained("001", {"area": (1.0, math.nan)})
    with pytest.raises(ConfigError, match="must be positive"):
        replace(good, points=((), (CurvePoint(-1.0, 5.0),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best": ("999",)}, "best has '999'"),
        ({"best": ("012",)}, "best has '012'; allowed are trials with values of area"),
        ({"scales": {}}, "scales has no 'ppo.learning_rate', which trial 001 sets"),
        ({"trials": (fake_trial(1), fake_trial(1))}, "the same name"),
        ({"retrained": (retrained("001", {"accuracy": (1.0,)}),)}, "needed are"),
    ],
)
def test_a_sweep_hangs_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(fake_sweep(), **changes)


@pytest.mark.parametrize("value", [0.0, -1.0, None, "a"])
def test_what_stands_on_a_log_axis_is_a_positive_number(value):
    record = fake_sweep(1)
    (trial,) = record.trials
    wrong = replace(trial, settings={**trial.settings, "ppo.learning_rate": value})
    with pytest.raises(ConfigError, match="on a log axis it must be a positive number"):
        replace(record, trials=(wrong,))
