"""The report of a sweep: as text, as a spreadsheet, as a page that a real browser shows without complaint."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfs_rl.reporting import style
from dfs_rl.sweeping.records import SweepRecord
from dfs_rl.sweeping.report.figures import SweepFigures, sweep_figures
from dfs_rl.sweeping.report.html import sweep_report
from dfs_rl.sweeping.report.pareto_plot import sweep_hover_points, sweep_pareto_plot
from dfs_rl.sweeping.report.text import failures, sweep_csv, sweep_text, trial_table
from tests.helpers.fake_sweep import REASON, fake_sweep, few_settings, retrained
from tests.helpers.html import check_in_browser, needs_chromium, outline_of

SECTIONS = [
    "Accuracy against computation",
    "Best configurations",
    "On fresh seeds",
    "All settings at once",
    "Setting by setting",
    "Which settings matter",
    "While the trials trained",
    "All trials",
    "Failed",
    "To go on from here",
]


@pytest.fixture(scope="module")
def record() -> SweepRecord:
    return fake_sweep()


@pytest.fixture(scope="module")
def figures(record: SweepRecord) -> SweepFigures:
    return sweep_figures(record)


@pytest.fixture(scope="module")
def page(record: SweepRecord, figures: SweepFigures) -> str:
    return sweep_report(record, figures)


def report(record: SweepRecord) -> str:
    return sweep_report(record, sweep_figures(record))


def test_the_screen_tells_the_sweeps_own_number_beside_the_fresh_seeds(record: SweepRecord) -> None:
    text = sweep_text(record)
    again = record.retrained[0]
    fresh = np.array(again.values["area"])
    search_values = record.trial(again.name).values["area"]
    (line,) = [line for line in text.splitlines() if line.startswith(f"{again.name} ")]
    assert f"{search_values:.3f}  {fresh.mean():.3f} ± {fresh.std(ddof=1):.3f}      3" in line
    assert f"Failed: trial 012: {REASON}" in text
    assert "8 finished, 14 stopped early, 2 failed" in text
    rates = next(line for line in text.splitlines() if line.startswith("ppo.learning_rate")).split()
    shown = [record.trial(name).settings["ppo.learning_rate"] for name in record.best]
    assert [float(rate) for rate in rates[1:4]] == pytest.approx(shown, rel=1e-3)


def test_the_spreadsheet_has_every_trial_exactly(record: SweepRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(sweep_csv(record))))
    assert [row["trial"] for row in rows] == [trial.name for trial in record.trials]
    for row, trial in zip(rows, record.trials, strict=True):
        assert row["status"] == trial.status
        assert row["reason"] == (trial.reason or "")
        assert float(row["seconds"]) == trial.seconds
        assert float(row["progress"]) == trial.progress
        assert row["area"] == ("" if trial.reason else repr(trial.values["area"]))
        assert json.loads(row["points"]) == [list(point) for point in trial.points]
        assert row["policy.activation"] == trial.settings["policy.activation"]
        for name, value in trial.settings.items():
            if name != "policy.activation":
                read = json.loads(row[name])
                assert (tuple(read) if isinstance(read, list) else read) == value


@pytest.mark.parametrize("both", [False, True])
def test_the_table_of_all_trials_begins_with_the_best(both: bool) -> None:
    record = fake_sweep(both=both)
    head, (valued, failed) = trial_table(record)
    name = "accuracy" if both else "area"
    values = [record.trial(row[0]).values[name] for row in valued]
    assert values == sorted(values, reverse=True)
    assert [row[0] for row in failed] == ["012", "024"]
    assert all(len(row) == len(head) for row in (*valued, *failed))


def test_failures_of_fresh_seeds_are_told_as_well(record: SweepRecord) -> None:
    lost = retrained("001", {}, failed={101: "killed"})
    told = failures(replace(record, retrained=(lost,)))
    assert told == {"trial 012": REASON, "trial 024": REASON, "001 on seed 101": "killed"}


def test_points_are_told_where_they_are_drawn(record: SweepRecord, figures: SweepFigures) -> None:
    assert figures.pareto_front is not None
    pixels = np.asarray(Image.open(io.BytesIO(figures.pareto_front)).convert("RGB"))
    height, width, _ = pixels.shape
    cheapest = min(record.trial(record.best[0]).points)
    (spot,) = [
        p
        for p in figures.points
        if p.text.startswith(f"trial {record.best[0]}, finished")
        and p.text.endswith(f"{cheapest.accuracy:.2f} % right at {cheapest.computation:.3g} %")
    ]
    found = pixels[round(spot.top * height), round(spot.left * width)]
    colour = [int(style.VERMILION[i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(found.astype(int) - colour).max() < 8


@pytest.mark.parametrize("both", [False, True])
def test_every_spot_lies_by_the_logarithm_of_its_computation(both: bool) -> None:
    record = fake_sweep(both=both)
    figure = sweep_pareto_plot(record)
    axes = figure.axes[0]
    box = axes.get_position()
    left, right = np.log10(axes.get_xlim())
    low, high = axes.get_ylim()
    spots = sweep_hover_points(figure, record)
    trials = [t for t in record.trials if t.name not in record.best]
    trials += [record.trial(name) for name in reversed(record.best)]
    points = [p for trial in trials for p in trial.points if low <= p.accuracy <= high]
    assert len(spots) == len(points) + sum(len(again.points[0]) for again in record.retrained)
    for spot, point in zip(spots, points, strict=False):
        across = (np.log10(point.computation) - left) / (right - left)
        up = (point.accuracy - low) / (high - low)
        assert spot.left == pytest.approx(box.x0 + across * box.width)
        assert 1 - spot.top == pytest.approx(box.y0 + up * box.height)


def test_the_page_is_whole_and_escapes_what_users_wrote(record: SweepRecord, page: str) -> None:
    outline = outline_of(page)
    assert outline.images == 5
    assert outline.headings == SECTIONS
    assert "<made-up>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert {trial.name for trial in record.trials} <= set(outline.cells)
    points = sum(len(trial.points) for trial in record.trials)
    assert (
        page.count("data-tooltip=") == points + 3 * 4
    )  # two trials and the defaults, four budgets


@needs_chromium
def test_a_browser_shows_the_page_without_complaint(page: str, tmp_path: Path) -> None:
    check_in_browser(page, tmp_path, images=5)


def test_two_objectives_have_a_picture_of_the_settings_each() -> None:
    page = report(fake_sweep(both=True))
    assert outline_of(page).images == 6
    assert "<h3>accuracy</h3>" in page
    assert "<h3>computation</h3>" in page


def without_trials(record: SweepRecord) -> SweepRecord:
    return replace(record, trials=(), best=(), retrained=(), importance={})


def all_failed(record: SweepRecord) -> SweepRecord:
    lost = tuple(
        replace(t, status="failed", reason=REASON, values={}, points=(), history=t.history[:n])
        for n, t in enumerate(record.trials[:4])
    )
    return replace(without_trials(record), trials=lost)


def one_trial(record: SweepRecord) -> SweepRecord:
    return replace(without_trials(record), trials=record.trials[:1], best=("001",))


def without_settings(record: SweepRecord) -> SweepRecord:
    bare = tuple(replace(trial, settings={}) for trial in record.trials)
    return replace(record, scales={}, trials=bare, importance={})


def constant_settings(record: SweepRecord) -> SweepRecord:
    same = record.trials[0].settings
    return replace(record, trials=tuple(replace(t, settings=same) for t in record.trials))


def same_values(record: SweepRecord) -> SweepRecord:
    level = tuple(replace(t, values={"area": 1.0} if t.values else {}) for t in record.trials)
    return replace(record, trials=level)


def a_settings_left_out(record: SweepRecord) -> SweepRecord:
    first, *rest = record.trials
    kept = {k: v for k, v in first.settings.items() if k != "ppo.gamma"}
    return replace(record, trials=(replace(first, settings=kept), *rest))


def uneven_points(record: SweepRecord) -> SweepRecord:
    again = record.retrained[0]
    uneven = replace(again, points=(again.points[0][:1], *again.points[1:]))
    return replace(record, retrained=(uneven, *record.retrained[1:]))


def lost_seeds(record: SweepRecord) -> SweepRecord:
    lost = retrained(
        record.best[0], {}, search_values=record.trial(record.best[0]).values, failed={101: "x"}
    )
    return replace(record, retrained=(lost, record.retrained[-1]))


def diverged(record: SweepRecord) -> SweepRecord:
    first, *rest = record.trials
    far = replace(first, values={"area": -1e9}, history=((0.5, -1e9), (1.0, -1e9)))
    return replace(record, trials=(far, *rest), best=record.best[:1])


def many_best(record: SweepRecord) -> SweepRecord:
    return replace(record, best=tuple(t.name for t in record.trials if t.values)[:9])


@pytest.mark.parametrize(
    ("change", "images"),
    [
        (without_trials, 0),
        (all_failed, 2),
        (one_trial, 4),
        (without_settings, 2),
        (constant_settings, 5),
        (same_values, 5),
        (a_settings_left_out, 5),
        (uneven_points, 5),
        (lost_seeds, 5),
        (diverged, 5),
        (many_best, 5),
    ],
)
def test_sweeps_of_every_kind_are_reported(change, images: int) -> None:
    changed = change(few_settings(fake_sweep(), 4))
    outline = outline_of(report(changed))
    assert outline.images == images
    assert "To go on from here" in outline.headings
    assert sweep_text(changed).startswith(changed.title)
    assert len(sweep_csv(changed).splitlines()) == 1 + len(changed.trials)
