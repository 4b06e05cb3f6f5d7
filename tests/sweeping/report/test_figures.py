"""The pictures of a sweep: everything is where its figures say, and no text covers another."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.reporting import style
from dfs_rl.sweeping.records import SweepRecord
from dfs_rl.sweeping.report.axes import setting_axis
from dfs_rl.sweeping.report.importance import importance_plot
from dfs_rl.sweeping.report.learning_curves import progress_plot
from dfs_rl.sweeping.report.parallel_coordinates import parallel_plot
from dfs_rl.sweeping.report.pareto_plot import sweep_pareto_plot
from dfs_rl.sweeping.report.slices import settings_plot
from dfs_rl.sweeping.report.style import value_range, wrapped
from tests.helpers.fake_sweep import again, fake_sweep, fake_trial, few_settings


def long_names(record: SweepRecord) -> SweepRecord:
    new = {
        name: f"agent.{name}_which_is_rather_long" if i % 2 else name
        for i, name in enumerate(record.scales)
    }

    def renamed(values):
        return {new[name]: value for name, value in values.items()}

    def trial(i, trial):
        few, many = f"activation number {i % 4}", f"so many steps: {i % 9}"
        longer = {"policy.activation": few, "ppo.n_steps": many}
        return replace(trial, settings=renamed({**trial.settings, **longer}))

    return replace(
        record,
        scales=renamed(record.scales),
        importance=renamed(record.importance),
        trials=tuple(trial(i, t) for i, t in enumerate(record.trials)),
        retrained=tuple(replace(a, settings=renamed(a.settings)) for a in record.retrained),
    )


def crowded() -> SweepRecord:
    """Return a sweep with trials of every status, four best ones trained again, all with long names, and far too many poor points."""
    statuses = ("finished", "stopped", "failed", "unfinished")
    trials = [fake_trial(i, statuses[i % 4], both=True) for i in range(40)]
    trials = [replace(trial, name=f"configuration {trial.name}") for trial in trials]
    best = trials[0:16:4]
    again_all = (*map(again, best), again(trials[20], name="defaults"))
    far = tuple(CurvePoint(1.0, 10.0) for _ in range(999))
    trials[-1] = replace(trials[-1], points=far)
    names = tuple(trial.name for trial in best)
    record = fake_sweep(both=True)
    return replace(record, trials=tuple(trials), best=names, retrained=again_all)


SWEEPS = {
    "24": fake_sweep(24),
    "100": fake_sweep(100),
    "both": fake_sweep(60, both=True),
    "long names": long_names(fake_sweep(24)),
    "crowded": crowded(),
    "one setting": few_settings(fake_sweep(24), 1),
    "three settings": few_settings(fake_sweep(24), 3),
}


def visible_texts(figure):
    """Return every text that is drawn, legends and ticks within their axes included."""
    found = list(figure.texts)
    for legend in figure.legends:
        found += legend.get_texts()
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title]
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label]
            found += [
                tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in drawn_ticks(axis)
            ]
            found += [
                tick.label2 for axis in (axes.xaxis, axes.yaxis) for tick in drawn_ticks(axis)
            ]
    return [text for text in found if text.get_visible() and text.get_text()]


def drawn_ticks(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def corners(text):
    """Return the corners of a text's box, turned as it is."""
    turn = text.get_rotation()
    text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(turn)
    upright = text.get_window_extent()
    if turn % 90 == 0:
        return upright.corners()[[0, 1, 3, 2]]
    angle = np.deg2rad(turn)
    spin = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([box.width, box.height]) / 2
    flat = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * half
    return flat @ spin.T + (upright.p0 + upright.p1) / 2


def apart(first, second) -> bool:
    """Whether a straight line lies between two convex shapes (the separating axis theorem)."""
    for shape in (first, second):
        for edge in np.roll(shape, 1, axis=0) - shape:
            normal = np.array([-edge[1], edge[0]])
            one, other = first @ normal, second @ normal
            if one.max() <= other.min() or other.max() <= one.min():
                return True
    return False


def check_texts(figure) -> None:
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), corners(text)) for text in visible_texts(figure)]
    assert boxes
    for text, box in boxes:
        inside = box.min() >= 0 and box[:, 0].max() <= width and box[:, 1].max() <= height
        assert inside, f"{text!r} is cut off"
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert apart(box, other_box), f"{text!r} covers {other!r}"


@pytest.mark.parametrize("record", SWEEPS.values(), ids=SWEEPS.keys())
def test_no_text_is_cut_off_or_covers_another(record):
    check_texts(sweep_pareto_plot(record))
    check_texts(parallel_plot(record))
    check_texts(progress_plot(record))
    check_texts(importance_plot(record))
    for name in record.objective.names:
        check_texts(settings_plot(record, name))


def lines_by_length(axes, length):
    return [line for line in axes.lines if len(line.get_xdata()) == length]


def test_the_frontier_is_what_no_point_beats():
    record = fake_sweep(both=True)
    axes = sweep_pareto_plot(record).axes[0]
    (envelope,) = [line for line in axes.lines if line.get_label() == "envelope of all trials"]
    points = [p for trial in record.trials for p in trial.points]
    unbeaten = sorted(
        p for p in points
        if not any(o != p and o.computation <= p.computation and o.accuracy >= p.accuracy for o in points)
    )  # fmt: skip
    drawn = list(zip(envelope.get_xdata(), envelope.get_ydata(), strict=True))
    assert drawn[:-1] == unbeaten
    assert drawn[-1] == (axes.get_xlim()[1], max(p.accuracy for p in points))


def test_bars_on_fresh_seeds_are_means_and_deviations():
    record = fake_sweep(both=True)
    axes = sweep_pareto_plot(record).axes[0]
    again = record.retrained[-1]
    accuracies = [points[0].accuracy for points in again.points]
    (drawn,) = [c for c in axes.containers if c.get_label() == "defaults, fresh seeds"]
    (segment,) = drawn.lines[2][1].get_segments()  # the vertical bar
    middle, half = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert segment[:, 1] == pytest.approx([middle - half, middle + half])


def test_lines_cross_parallel_axes_where_the_values_are():
    record = fake_sweep()
    axes = parallel_plot(record).axes[0]
    columns = len(record.scales) + 1
    lines = lines_by_length(axes, columns)
    assert len(lines) == len(record.trials)
    rates = np.log10([trial.settings["ppo.learning_rate"] for trial in record.trials])
    gammas = np.array([trial.settings["ppo.gamma"] for trial in record.trials])
    areas = [trial.values["area"] for trial in record.trials if trial.values]
    expected = sorted(
        (
            (rate - rates.min()) / np.ptp(rates),
            (gamma - gammas.min()) / np.ptp(gammas),
            (trial.values["area"] - min(areas)) / np.ptp(areas) if trial.values else -0.1,
        )
        for rate, gamma, trial in zip(rates, gammas, record.trials, strict=True)
    )
    heights = sorted((y[0], y[2], y[-1]) for y in (line.get_ydata() for line in lines))
    np.testing.assert_allclose(heights, expected, atol=1e-9)
    best = [line for line in lines if line.get_color() == style.VERMILION]
    assert [line.get_ydata()[-1] for line in best] == [pytest.approx(1.0)]


def test_curves_end_where_trials_were_stopped():
    record = fake_sweep()
    axes = progress_plot(record).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 1]
    ends = sorted(line.get_xdata()[-1] for line in curves)
    assert ends == pytest.approx(sorted(100 * trial.history[-1][0] for trial in record.trials))
    last = sorted(line.get_ydata()[-1] for line in curves)
    assert last == pytest.approx(sorted(trial.history[-1][1] for trial in record.trials))


def test_bars_are_as_long_as_the_shares_and_the_longest_is_on_top():
    record = fake_sweep()
    axes = importance_plot(record).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx(sorted(100 * v for v in record.importance.values()))
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "ppo.learning_rate"


def test_panels_show_each_value_and_the_defaults():
    record = fake_sweep()
    rates = settings_plot(record, "area").axes[0]
    spots = [line for line in rates.lines if len(line.get_xdata()) == 1]
    assert len(spots) == len(record.trials)
    default = record.retrained[-1].settings["ppo.learning_rate"]
    logs = np.log10([*(t.settings["ppo.learning_rate"] for t in record.trials), default])
    (line,) = [line for line in rates.lines if line.get_label() == "defaults"]
    assert line.get_xdata()[0] == pytest.approx((logs[-1] - logs.min()) / np.ptp(logs))
    shown = sorted(line.get_ydata()[0] for line in spots if line.get_marker() != "x")
    assert shown == pytest.approx(sorted(t.values["area"] for t in record.trials if t.values))


def test_choices_stand_in_order_and_numbers_to_scale():
    record = fake_sweep()
    assert setting_axis(record, "ppo.target_kl").choices == ("null", "0.01", "0.1")
    assert setting_axis(record, "policy.net_arch").choices == ("[64]", "[64, 64]", "[128, 64, 32]")
    assert setting_axis(record, "ppo.target_kl").place(0.01) == 0.5
    assert setting_axis(record, "ppo.target_kl").place(7) is None
    axis = setting_axis(record, "ppo.learning_rate", also=[1e-6, 1.0, None, -3.0])
    assert axis.place(1e-3) == pytest.approx(0.5)
    assert axis.place(2.0) is None
    assert axis.place(None) is None
    assert axis.place(0.0) is None
    assert (0.5, "0.001") in [(pytest.approx(place), text) for place, text in axis.ticks(7)]


def test_a_value_that_is_no_number_makes_an_axis_of_choices():
    record = few_settings(fake_sweep(2), 3)
    first, second = record.trials
    odd = replace(first, settings={**first.settings, "ppo.gamma": None})
    axis = setting_axis(replace(record, trials=(odd, second)), "ppo.gamma")
    assert axis.choices[0] == "null"
    assert axis.place(None) == 0.0


def test_an_axis_leaves_out_what_is_far_worse_than_most():
    assert value_range([1.0, 2.0, 3.0, -100.0], maximize=True) == (1.5 - 4 * 1.5, 3.0)
    assert value_range([1.0, 2.0, 3.0, 100.0], maximize=False) == (1.0, 2.5 + 4 * 1.5)
    assert value_range([1.0, 2.0, 3.0], maximize=True) == (1.0, 3.0)
    assert value_range([2.0], maximize=True) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("ppo.learning_rate", ["ppo.", "learning_rate"]),
        ("uncertainty_weighting", ["uncertainty_", "weighting"]),
        ("gamma", ["gamma"]),
        ("x" * 20, ["x" * 13, "x" * 7]),
        ("area, points x decades", ["area, points", "x decades"]),
    ],
)
def test_names_break_where_they_may(name, lines):
    assert wrapped(name, 13).split("\n") == lines


@pytest.mark.parametrize(
    ("text", "cut"),
    [("relu", "relu"), ("twelve chars", "twelve chars"), ("activation number 3", "activa…ber 3")],
)
def test_long_choices_keep_their_ends(text, cut):
    assert style.short_middle(text, 12) == cut
