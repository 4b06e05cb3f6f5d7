"""Report of a sweep: summary, tables, CSV file, figures and HTML page."""

import csv
import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib import rcParams
from PIL import Image

from dfs_rl.reporting import style
from dfs_rl.sweeping.figures import over_seeds, sweep_figures
from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.report import (
    best_table,
    failures,
    results_csv,
    retrained_table,
    summary,
    sweep_page,
    sweep_text,
    trial_table,
)
from tests.helpers.fake_sweep import REASON, fake_sweep, fake_trial, retrained
from tests.helpers.html import check_in_browser, needs_chromium, outline_of, widths
from tests.helpers.quick import blank_png

FIGURES = [
    "Accuracy against computation",
    "Parallel coordinates",
    "Setting by setting",
    "Hyperparameter importance",
    "Learning curves",
]


@pytest.fixture(scope="module")
def record():
    return fake_sweep()


@pytest.fixture(scope="module")
def figures(record):
    """All figures; drawing gives no warning and leaves matplotlib as it was."""
    before = dict(rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = sweep_figures(record)
    assert dict(rcParams) == before
    assert plt.get_fignums() == []
    return drawn


@pytest.fixture(scope="module")
def page(record, figures):
    return sweep_page(record, figures, "dataset: <script>alert(1)</script>\n")


# Summary and tables


def fresh_seeds(*retrained_records, both=False):
    """Return the sentence about fresh seeds."""
    return summary(replace(fake_sweep(6, both=both), retrained=retrained_records))[2]


def trial(*values, name="001"):
    return retrained(name, {"hypervolume": values}, search_values={"hypervolume": 3.0})


@pytest.mark.parametrize(
    ("values", "defaults", "sentence"),
    [
        ((3.0, 3.1, 3.2), (2.5, 2.7, 2.6), "Better than the defaults on fresh seeds: 001."),
        ((3.0, 3.1, 3.2), (2.5, 2.9, 3.3), "No retrained trial is shown to be better"),
        ((2.0, 2.0, 2.1), (3.0, 3.1, 3.2), "keep the defaults."),
        ((3.0,), (2.0,), "No retrained trial is shown to be better"),
        ((), (2.0,), "values of the search may be luck"),
        ((3.0,), (), "no gain over them is known"),
    ],
)
def test_defaults_are_beaten_beyond_the_deviation(values, defaults, sentence):
    assert sentence in fresh_seeds(trial(*values), trial(*defaults, name="defaults"))


def test_winner_is_worse_in_no_objective():
    cheaper = retrained("001", {"accuracy": (80.0, 80.0), "computation": (0.5, 0.5)})
    traded = retrained("002", {"accuracy": (70.0, 70.0), "computation": (0.4, 0.4)})
    defaults = retrained("defaults", {"accuracy": (80.0, 80.0), "computation": (1.0, 1.1)})
    assert fresh_seeds(cheaper, traded, defaults, both=True).endswith("fresh seeds: 001.")
    record = replace(fake_sweep(6, both=True), retrained=(cheaper, traded, defaults))
    assert retrained_table(record)["mark"].tolist() == ["", "+", "-", "+", "", ""]


def test_no_trial_wins_that_fails_on_a_fresh_seed():
    survivors = trial(3.0, 3.1)
    defaults = trial(2.5, 2.6, 2.5, name="defaults")
    assert "Better than the defaults" in fresh_seeds(survivors, defaults)
    survivors = replace(survivors, failed={103: REASON})
    assert "No retrained trial is shown to be better" in fresh_seeds(survivors, defaults)


def test_figures_and_summary_name_the_cost_model(monkeypatch):
    monkeypatch.setattr(style, "to_png", blank_png)
    sweep = fake_sweep(2)
    sweep = replace(sweep, file=replace(sweep.file, settings={"cost": "latency"}))
    (title, *_), *_ = sweep_figures(sweep)
    assert title == "Accuracy against latency"
    assert "left of 10 % latency and above" in summary(sweep)[-1]
    assert "% latency" in ObjectiveConfig(name="accuracy", budget=1.0).description(
        sweep.reference_point, sweep.file.cost_model
    )


def test_summary_of_failed_trials_recommends_nothing():
    trials = tuple(fake_trial(i, "failed") for i in (1, 2))
    record = replace(fake_sweep(6), trials=trials, best=(), importance={}, seconds=30.0)
    assert summary(record) == [
        "Trials in 30 seconds: 2 failed.",
        "No trial has a result, so there is nothing to recommend.",
    ]


@pytest.mark.parametrize("both", [False, True])
def test_summary_has_five_sentences(both):
    record = fake_sweep(both=both)
    sentences = summary(record)
    assert len(sentences) == 5
    assert "8 finished, 14 stopped, 2 failed" in sentences[0]
    assert f" {record.best[0]}" in sentences[1]


def test_tables_have_values_and_settings(record):
    best = best_table(record, 2).set_index("trial")
    assert list(best.columns) == [*record.best[:2], "defaults"]
    for name in record.best[:2]:
        found = record.trial(name)
        assert float(best.loc["ppo.gamma", name]) == pytest.approx(
            found.settings["ppo.gamma"], rel=1e-3
        )
        assert float(best.iloc[0][name]) == pytest.approx(found.values["hypervolume"], rel=1e-3)
    again, values = retrained_table(record).iloc[0], record.retrained[0].values["hypervolume"]
    assert again["fresh seeds"] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    trials = trial_table(record)
    areas = [record.trial(n).values.get("hypervolume") for n in trials["trial"]]
    assert areas[:-2] == sorted(areas[:-2], reverse=True)
    assert areas[-2:] == [None, None]


def test_failures_of_trials_and_of_fresh_seeds(record):
    lost = retrained("001", {}, failed={101: "killed"})
    reasons = failures(replace(record, retrained=(lost,)))
    assert reasons == {"trial 012": REASON, "trial 024": REASON, "001 on seed 101": "killed"}


def test_csv_has_every_trial_exactly(record):
    rows = list(csv.DictReader(io.StringIO(results_csv(record))))
    assert [row["trial"] for row in rows] == [trial.name for trial in record.trials]
    for row, expected in zip(rows, record.trials, strict=True):
        assert (row["status"], row["reason"]) == (expected.status, expected.reason or "")
        assert float(row["seconds"]) == expected.seconds
        assert float(row["progress"]) == expected.progress
        value = expected.values.get("hypervolume")
        assert row["hypervolume"] == ("" if value is None else repr(value))
        assert json.loads(row["points"]) == [list(point) for point in expected.points]
        assert row.pop("policy.activation") == expected.settings["policy.activation"]
        for name in row.keys() & expected.settings.keys():
            read = json.loads(row[name])
            assert (tuple(read) if isinstance(read, list) else read) == expected.settings[name]


# Figures


def test_tooltips_lie_on_their_points(record, figures):
    _, _, (pareto,) = figures[0]
    pixels = np.asarray(Image.open(io.BytesIO(pareto.png)).convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert len(pareto.points) == len(record.points) + 3 * 4
    colour = [int(style.VERMILION[i : i + 2], 16) for i in (1, 3, 5)]
    best = [p for p in pareto.points if p[0].startswith(f"trial {record.best[0]}:")]
    assert len(best) == 4
    for _, left, top in best:
        y, x = round(top * height), round(left * width)
        near = pixels[y - 20 : y + 20, x - 20 : x + 20].reshape(-1, 3)
        assert np.abs(near - colour).sum(axis=1).min() < 24


def test_alternative_texts_have_the_numbers(record, figures):
    texts = {title: [p.alt for p in pictures] for title, _, pictures in figures}
    best = record.trial(record.best[0])
    low, high = (f"{p.accuracy:.1f} % at {p.computation:.3g} %" for p in sorted(best.points)[::3])
    (pareto,) = texts["Accuracy against computation"]
    assert f"Trial {best.name}: {low} to {high}." in pareto
    gamma, slices = f"ppo.gamma {best.settings['ppo.gamma']:.4g}", texts["Setting by setting"]
    assert gamma in texts["Parallel coordinates"][0]
    assert [gamma in text for text in slices] == [True, False]
    assert all(f"{best.values['hypervolume']:.3f}" in text for text in slices)
    (importance,) = texts["Hyperparameter importance"]
    for name, share in record.importance.items():
        assert f"{name} {100 * share:.0f} %" in importance
    (curves,) = texts["Learning curves"]
    assert f"trial {best.name} ends at {best.history[-1][1]:.3f}" in curves


def test_one_fresh_seed_has_no_deviation(record, figures, monkeypatch):
    monkeypatch.setattr(style, "to_png", blank_png)
    single = [
        replace(
            again,
            seeds=again.seeds[:1],
            points=again.points[:1],
            values={name: values[:1] for name, values in again.values.items()},
        )
        for again in record.retrained
    ]
    one = replace(record, retrained=tuple(single))
    of_one = sweep_figures(one)
    assert "deviation" not in of_one[0][1]
    assert "deviation" in figures[0][1]
    assert "±" not in sweep_page(one, of_one, "")


def test_means_over_seeds(record):
    again = record.retrained[-1]
    accuracies = [min(points).accuracy for points in again.points]
    _, accuracy = over_seeds(again)[0]
    assert accuracy.mean == pytest.approx(np.mean(accuracies))
    assert accuracy.deviation == pytest.approx(np.std(accuracies, ddof=1))
    uneven = replace(again, points=(again.points[0][:1], *again.points[1:]))
    assert len(over_seeds(uneven)) == 1 + 4 + 4


# Page


def test_page_is_complete_and_escaped(record, page):
    outline = outline_of(page)
    assert outline.images == 6
    assert outline.headings[:2] == ["Best trials", "Fresh seeds"]
    assert outline.headings[2:7] == FIGURES
    assert {trial.name for trial in record.trials} <= set(outline.cells)
    assert "<made-up>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("data-tooltip=") == len(record.points) + 3 * 4


@needs_chromium
def test_browser_shows_the_page_without_complaint(page, tmp_path):
    check_in_browser(page, tmp_path, images=6)


@needs_chromium
@pytest.mark.parametrize("width", [390, 768])
def test_nothing_is_wider_than_the_window(page, tmp_path, width):
    window, whole, widest = widths(page, tmp_path, width)
    assert abs(window - width) <= 20
    assert whole == window
    assert widest <= window


def without_trials(record):
    return replace(record, trials=(), best=(), retrained=(), importance={})


def all_failed(record):
    lost = tuple(
        replace(t, status="failed", reason=REASON, values={}, points=(), history=t.history[:n])
        for n, t in enumerate(record.trials[:4])
    )
    return replace(without_trials(record), trials=lost)


def none_finished(record):
    stopped = [replace(t, status="stopped") for t in record.trials if t.status != "failed"]
    return replace(without_trials(record), trials=tuple(stopped))


def one_trial(record):
    return replace(without_trials(record), trials=record.trials[:1], best=("001",))


def diverged_with_lost_seeds(record):
    first, *rest = record.trials
    far = replace(first, values={"hypervolume": -1e9}, history=((0.5, -1e9), (1.0, -1e9)))
    lost = retrained(record.best[0], {"hypervolume": ()}, failed={101: "x"})
    again = (lost, record.retrained[-1])
    return replace(record, trials=(far, *rest), best=record.best[:1], retrained=again)


@pytest.mark.parametrize(
    ("change", "images"),
    [
        (without_trials, 0),
        (all_failed, 1),
        (none_finished, 6),
        (one_trial, 5),
        (diverged_with_lost_seeds, 6),
    ],
)
def test_unusual_sweeps_are_reported(record, change, images, monkeypatch):
    monkeypatch.setattr(style, "DPI", 40)
    record = change(record)
    page = sweep_page(record, sweep_figures(record), "")
    assert outline_of(page).images == images
    assert sweep_text(record).startswith(record.title)
    assert len(results_csv(record).splitlines()) == 1 + len(record.trials)
