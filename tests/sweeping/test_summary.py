"""What a sweep says: luck in being chosen and the defaults, told from figures that were written down by hand."""

from dataclasses import replace

import numpy as np
import pytest

from dfs_rl.evaluation.comparison_records import Spread
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.number_format import duration_text, number_text, setting_text, spread_text
from dfs_rl.sweeping.records import RetrainedRecord, SweepRecord, TrialRecord
from dfs_rl.sweeping.summary import retrained_values, sweep_verdict
from tests.helpers.fake_sweep import fake_sweep, fake_trial, retrained


def sweep(*fresh: RetrainedRecord, both: bool = False) -> SweepRecord:
    return replace(fake_sweep(6, both=both), retrained=fresh)


def said(record: SweepRecord) -> str:
    return "\n".join(sweep_verdict(record))


def area(*values: float, name: str = "001", search_values: float | None = 3.0) -> RetrainedRecord:
    return retrained(
        name,
        {"area": values},
        search_values={} if search_values is None else {"area": search_values},
    )


def defaults(*values: float) -> RetrainedRecord:
    return area(*values, name="defaults", search_values=None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((2.7, 2.8, 2.6), "Chosen in part by luck, worse on fresh seeds by more than two standard deviations: 001 in area 2.70 ± 0.10"),
        ((2.9, 3.0, 2.8), "On fresh seeds within two standard deviations of the sweep: 001 in area 2.90 ± 0.10"),
        ((3.3, 3.4, 3.2), "Better on fresh seeds by more than two standard deviations: 001 in area 3.30 ± 0.10"),
        ((2.0,), "One fresh seed cannot tell luck in being chosen from chance: 001 in area 2.000"),
    ],
)  # fmt: skip
def test_luck_in_being_chosen_is_told_from_the_spread_over_seeds(values, words):
    n = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
    assert f"{words} over {n}, 3.000 in the sweep." in said(sweep(area(*values, search_values=3.0)))


@pytest.mark.parametrize(
    ("values", "theirs", "words"),
    [
        ((3.0, 3.1, 3.2), (2.5, 2.7, 2.6), ["more than two standard deviations: 001 in area by +0.50 ± 0.10", "beaten by trial 001."]),
        ((3.0, 3.1, 3.2), (2.5, 2.9, 3.3), ["these seeds show: 001 in area by +0.20 ± 0.30", "That any of them beats"]),
        ((2.0, 2.0, 2.1), (3.0, 3.1, 3.2), ["Worse than the defaults on the same seeds", "by -1.067 ± 0.058", "keep the defaults"]),
        ((3.0,), (2.0,), ["as far as these seeds show: 001 in area by +1.000", "is not shown"]),
    ],
)  # fmt: skip
def test_the_defaults_are_beaten_only_beyond_the_spread(values, theirs, words):
    told = said(sweep(area(*values), defaults(*theirs)))
    for word in words:
        assert word in told


def test_gains_are_taken_seed_by_seed_over_common_seeds():
    trial = replace(area(3.0, 3.2, 9.9), seeds=(101, 102, 200))
    gains = [row.gain for row in retrained_values(sweep(trial, defaults(2.0, 2.1, 2.2)))]
    differences = np.array([3.0, 3.2]) - np.array([2.0, 2.1])
    assert gains[0] is not None
    assert gains[0].mean == pytest.approx(differences.mean())
    assert gains[0].deviation == pytest.approx(differences.std(ddof=1))
    assert gains[1] is None


def test_less_computation_is_a_gain_and_one_value_must_not_pay_for_the_other():
    names = ("accuracy", "computation")
    search_values = {"accuracy": 80.0, "computation": 1.0}
    cheaper = retrained(
        "001",
        dict(zip(names, ((80.0, 80.0), (0.5, 0.5)), strict=True)),
        search_values=search_values,
    )
    traded = retrained(
        "002",
        dict(zip(names, ((70.0, 70.0), (0.4, 0.4)), strict=True)),
        search_values=search_values,
    )
    plain = retrained("defaults", dict(zip(names, ((80.0, 80.0), (1.0, 1.1)), strict=True)))
    record = sweep(cheaper, traded, plain, both=True)
    gains = {(row.name, row.objective): row.gain for row in retrained_values(record) if row.gain}
    assert gains["001", "computation"].mean == pytest.approx(0.55)
    assert gains["002", "accuracy"].mean == pytest.approx(-10.0)
    told = said(record)
    assert "The defaults are beaten by trial 001." in told
    assert "Better on fresh seeds by more than two standard deviations: 001 in computation" in told


def test_what_is_not_known_is_said():
    nothing = said(sweep())
    assert "how much of these figures is luck in being chosen is not known" in nothing
    assert "whether the sweep beats them is not known" in said(sweep(area(2.9, 3.0)))
    lost = replace(area(search_values=3.0), failed={101: "boom"})
    assert "Failed on every fresh seed: 001." in said(sweep(lost, defaults(1.0, 2.0)))


def test_a_sweep_of_failures_recommends_nothing():
    trials = tuple(fake_trial(i, "failed") for i in (1, 2))
    record = replace(sweep(), trials=trials, best=(), importance={}, seconds=30.0)
    assert sweep_verdict(record) == (
        "2 trials in 30 seconds: 2 failed.",
        "There is no best trial, so there is nothing to recommend.",
    )


def naive_hypervolume(points: list[CurvePoint], reference_point: CurvePoint) -> float:
    """Add up thin columns of the logarithm of computation."""
    edges = np.linspace(np.log10(0.1), np.log10(reference_point.computation), 20_001)
    middles = (edges[:-1] + edges[1:]) / 2
    heights = np.zeros_like(middles)
    for point in points:
        reach = middles >= np.log10(point.computation)
        heights = np.maximum(heights, reach * max(0.0, point.accuracy - reference_point.accuracy))
    return float((heights * np.diff(edges)).sum())


@pytest.mark.parametrize("both", [False, True])
def test_the_area_is_that_of_all_points_together(both):
    record = fake_sweep(both=both)
    points = [point for trial in record.trials for point in trial.points]
    (told,) = [said for said in sweep_verdict(record) if "dominate an area" in said]
    assert f"{len(points)} points" in told
    assert float(told.split("area of ")[1].split()[0]) == pytest.approx(
        naive_hypervolume(points, record.reference_point), abs=0.01
    )


def test_counts_are_those_of_the_trials():
    record = fake_sweep(36)
    statuses = [trial.status for trial in record.trials]
    told = sweep_verdict(record)[0]
    assert told == (
        f"36 trials in 1.5 hours: {statuses.count('finished')} finished, "
        f"{statuses.count('stopped')} stopped early, "
        f"{statuses.count('failed')} failed."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (85.2345, "85.23"),
        (2.8, "2.800"),
        (12345.6, "12,346"),
        (99.996, "100.0"),
        (0.00123456, "0.001235"),
        (3.2e-7, "3.2e-07"),
        (-1.5, "-1.500"),
    ],
)
def test_figures_have_four_digits(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (85.2345, 0.3123, "85.23 ± 0.31"),
        (2.5, None, "2.500"),
        (0.1, 12.3, "0 ± 12"),
        (1234.5, 100.4, "1,234 ± 100"),
        (2.0, 1e-17, "2.000 ± 0"),
    ],
)
def test_means_are_as_exact_as_their_deviation(mean, deviation, text):
    assert spread_text(Spread(mean=mean, deviation=deviation)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (0.000123456, "0.0001235"),
        ("relu", "relu"),
        ((64, (1.5, None)), "[64, [1.5, null]]"),
        ((), "[]"),
    ],
)
def test_settings_are_written_as_yaml_has_them(value, text):
    assert setting_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(30.0, "30 seconds"), (90.0, "1.5 minutes"), (7200.0, "2.0 hours")]
)
def test_durations_have_a_fitting_unit(seconds, text):
    assert duration_text(seconds) == text


def test_a_trial_is_found_by_its_name():
    record = fake_sweep(4)
    found: TrialRecord = record.trial("003")
    assert found is record.trials[2]
