"""Report of a comparison: tables, text, CSV and an HTML page that a browser opens."""

import io
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.summary import PerImageResults
from dfs_rl.reporting import alt_text, style
from dfs_rl.reporting.comparison_figures import bit_mix_plot, comparison_figures
from dfs_rl.reporting.comparison_report import comparison_tables, comparison_text, html_report
from dfs_rl.reporting.frontier import method_panels, pareto_plot, ranked_methods
from dfs_rl.reporting.render import Picture, render
from tests.helpers.fake_runs import fake_run
from tests.helpers.html import browse, check_in_browser, needs_chromium, outline_of, widths

GOLDEN = Path(__file__).parent / "golden"
MARKUP = 'Gumbel <b>"FF"</b>'


@pytest.fixture(scope="module")
def comparison():
    return compare_runs(
        [
            *(fake_run(f"ppo{i}", (150 + 4 * i, 0.8), seed=i, cost_weight=4) for i in range(3)),
            fake_run("g", (165, 1.0), label=MARKUP, cascade=(170, 1.0)),
        ]
    )


@pytest.fixture(scope="module")
def curves():
    runs = [
        fake_run(f"b{b}-{seed}", (right + seed, b), seed=seed, budget=b, static=(right, b - more))
        for b, right, more in ((0.7, 150, 0.0), (1.4, 170, 0.1))
        for seed in (0, 2)
    ]
    runs.append(fake_run("high", (180, 0.76), label="High", budget=1.4, static=(181, 1.38)))
    runs.append(fake_run("over", (178, 0.8), label="Over", budget=0.7))
    return compare_runs(runs)


@pytest.fixture(scope="module")
def figures(comparison):
    return comparison_figures(comparison)


@pytest.fixture(scope="module")
def page(comparison, figures):
    section = {
        "label": MARKUP,
        "figures": {"Bits at each layer": Picture(style.to_png(style.new_figure(2, 1)), "bits")},
        "commands": ["python -m dfs_rl.train_gumbel --seed 0"],
        "settings": "budget: 1.0\nname: <script>alert(1)</script>\n",
    }
    return html_report(comparison, figures, [section])


def test_text_of_a_comparison(curves):
    assert comparison_text(curves) == (GOLDEN / "compare.txt").read_text()


def test_without_budgets_there_is_no_table_of_them(comparison):
    assert comparison_tables(comparison)["budgets"] == ((), [])


def test_frame_has_every_point_and_its_gains(comparison, curves):
    frame = comparison.to_frame().set_index("label")
    assert len(frame) == len(comparison.points) + len(comparison.references)
    ppo = frame.loc["PPO"]
    assert (ppo["accuracy_mean"], ppo["accuracy_sd"]) == pytest.approx((77.0, 2.0))
    assert (ppo["static_table_mean"], ppo["seeds"]) == (pytest.approx(2.0), 3)
    assert np.isnan(frame.loc["full precision", "accuracy_sd"])
    assert "exits_mean" not in frame
    # The table lists only the baselines at a budget.
    listed = {row[0] for group in comparison_tables(curves)["points"][1] for row in group}
    assert "best static table at 1.3 %" in set(curves.to_frame()["label"]) - listed
    file = io.StringIO(comparison.to_frame().to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(file), comparison.to_frame(), check_dtype=False)


def test_gains_over_exits_have_a_column():
    with_exits = compare_runs([fake_run("l", (150, 0.8), exits=(144, 0.78))])
    head, (gates, *_) = comparison_tables(with_exits)["points"]
    gains = dict(zip(head, gates[0], strict=True))
    assert gains["minus exits"] == "+3.00  "
    assert gains["minus static"] == "+0.00 ="
    assert "exits_mean" in with_exits.to_frame()


def test_text_lists_only_significant_differences():
    runs = [
        fake_run(n, (right, 0.8), label=n) for n, right in zip("ABC", (150, 170, 171), strict=True)
    ]
    comparison = compare_runs(runs)
    every, some = (
        comparison_tables(comparison, significant=flag)["pairs"][1] for flag in (False, True)
    )
    assert [row[:2] for row in every[0]] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert [row[:3] for row in some[0]] == [("A", "B", "-10.00"), ("A", "C", "-10.50")]


def written(figure):
    return {text.get_text() for text in figure.findobj(Text) if text.get_text()}


@pytest.fixture(scope="module")
def contest():
    """Ten methods: gates 1 to 8 become better with their number; the first is far off."""
    rights = [24, *range(142, 170, 4)]
    return compare_runs(
        [
            fake_run(
                f"{number}-{budget}-{seed}",
                (right + 4 * seed + round(4 * budget), 0.9 * budget),
                label=f"Gate {number}",
                seed=seed,
                budget=budget,
                static=(120, 0.9 * budget),
                cascade=(172 + round(4 * budget), 0.9 * budget),
            )
            for number, right in enumerate(rights, start=1)
            for budget in (0.8, 2.0)
            for seed in (0, 1)
        ]
    )


@pytest.fixture(scope="module")
def contest_figures(contest):
    return comparison_figures(contest)


COLOURED = ["cascade", "Gate 8", "Gate 7", "Gate 6"]
GREY = [*(f"Gate {i}" for i in range(5, 0, -1)), "best static table"]


def test_best_four_methods_have_a_colour(contest):
    coloured, grey = ranked_methods(contest)
    assert [method.name for method in coloured] == COLOURED
    assert len({method.colour for method in coloured}) == 4
    assert {method.name for method in grey} == set(GREY)
    assert {method.colour for method in grey} == {style.PALE}
    figure, _ = pareto_plot(contest)
    (axes,) = figure.axes
    labels = {text.get_text(): text.get_color() for text in axes.texts}
    assert {name: labels[name] for name in COLOURED} == {m.name: m.colour for m in coloured}
    assert not set(GREY) & labels.keys()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["other gates", "other baselines"]
    bars = {to_hex(bar.get_edgecolor()[0]) for bar in axes.collections}
    assert bars == {method.colour for method in coloured if method.is_gate}


def test_best_gate_has_a_colour_below_the_baselines():
    before = {"static_table": (160, 0.8), "cascade": (164, 0.8)}
    runs = [
        fake_run("b", (120, 0.8), label="B", static=(158, 0.8), cascade=(162, 0.8), before=before),
        fake_run("a", (110, 0.8), label="A", cascade=(166, 0.7), exits=(170, 0.8)),
    ]
    coloured, grey = ranked_methods(compare_runs(runs))
    assert [method.is_gate for method in coloured] == [False, False, False, True]
    assert coloured[-1].name == "B"
    assert "A" in {method.name for method in grey}


def test_each_other_method_has_a_panel(contest):
    figure = method_panels(contest)
    assert figure is not None
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert sorted(panels) == sorted(GREY)
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in panels.values()]
    assert labelled == [False, False, True, True, True, True]  # four in a row, the lowest ones
    best = {p.accuracy.mean for p in contest.points if p.family == COLOURED[0]}
    for name, axes in panels.items():
        points = [p for p in contest.points if p.family == name]
        grey, *own = axes.lines
        assert grey.get_color() == style.PALE
        assert set(grey.get_ydata()) == best
        drawn = {round(float(y), 6) for line in own for y in np.atleast_1d(line.get_ydata())}
        if name != "Gate 1":
            assert {round(p.accuracy.mean, 6) for p in points} <= drawn
    low, high = panels["Gate 1"].get_ylim()
    assert 50 < low < high < 100
    accuracies = {f"{p.accuracy.mean:.0f} %" for p in contest.points if p.family == "Gate 1"}
    assert {text.get_text() for text in panels["Gate 1"].texts} == accuracies


def test_far_off_gates_are_noted_and_not_drawn():
    runs = [fake_run("a", (150, 0.8), label="A"), fake_run("bad", (24, 0.6), label="Bad")]
    comparison = compare_runs(runs)
    figure, tooltips = pareto_plot(comparison)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert 57.0 < low < 75.0 < 95.0 < high  # between uniform 2 bit and the gates
    assert axes.get_xlim()[1] < 5.0  # full precision is a line
    assert "full precision, at 100 %" in {text.get_text() for text in axes.texts}
    (note,) = (text.get_text() for text in figure.texts)
    assert "Bad (12.0 % at 0.6 %)" in note
    assert not any(text.startswith(("Bad", "full precision")) for text, *_ in tooltips)
    assert method_panels(comparison) is None
    assert "methods" not in comparison_figures(comparison)
    alone, _ = pareto_plot(compare_runs([runs[-1]]))
    assert alone.axes[0].get_ylim()[0] < 12.0
    assert not alone.texts


def test_points_below_the_cheapest_uniform_cost_are_drawn():
    # Uniform 2 bit has 60 % at 0.5 %.
    best = fake_run("a", (150, 0.8), label="A")
    for cost, is_drawn in ((0.4, True), (0.6, False)):
        figure, tooltips = pareto_plot(compare_runs([best, fake_run("b", (100, cost), label="B")]))
        (axes,) = figure.axes
        assert (axes.get_ylim()[0] < 50.0) == is_drawn
        assert any(text.startswith("B") for text, *_ in tooltips) == is_drawn
        assert [text.get_text() for text in figure.texts] == (
            [] if is_drawn else ["Too inaccurate to draw: B (50.0 % at 0.6 %)."]
        )


def test_one_seed_has_no_deviation(contest):
    one = compare_runs([fake_run(f"b{b}", (150, b), budget=b) for b in (0.7, 1.4)])
    shown = written(pareto_plot(contest)[0])
    assert any("standard deviation over 2 seeds" in text for text in shown)
    page = html_report(one, comparison_figures(one), [])
    for text in (comparison_text(one), page, *written(pareto_plot(one)[0])):
        assert "±" not in text
        assert "standard deviation" not in text


def test_alternative_texts_have_the_numbers(contest, curves):
    pareto, panels = alt_text.of_pareto_plot(contest), alt_text.of_panels(contest)
    of = {point.label: point for point in contest.points}
    for name, text in (("Gate 8", pareto), ("Gate 4", panels)):
        ends = [of[f"{name}, budget {b}"] for b in ("0.8", "2")]
        low, high = (f"{p.accuracy.mean:.1f} % at {p.computation.mean:.3g} %" for p in ends)
        assert f"{name}: {low} to {high}." in text
    assert "full precision 95.0 % at 100 %" in pareto
    curve = next(curve for curve in curves.curves if curve.label == "PPO")
    mix = alt_text.of_bit_mix(curve, curves.options)
    assert mix.endswith("at 0.7 %: skip 50 %, 2 bit 50 %; at 1.4 %: skip 50 %, 2 bit 50 %.")
    gate = next(g for g in contest.computation_by_difficulty if g.family == "Gate 8")
    first, *_, last = (value for value in gate.relative if value is not None)
    text = alt_text.of_difficulty(contest)
    assert f"{gate.label}: {first:.2f} (uniform 2 bit) to {last:.2f}" in text


def test_texts_of_a_gate_have_the_numbers():
    run = fake_run("g", (150, 0.8))
    assert alt_text.of_options(run, "PPO").endswith("; layer 3: skip 50 %, 2 bit 50 %.")
    passes = (((0.0, 1.0, 0.0),) * 3, ((0.0, 0.0, 0.25),) * 3)
    several = replace(run, summary=replace(run.summary, pass_histograms=passes))
    text = alt_text.of_options(several, "PPO")
    assert "at each layer, over all passes. layer 1: skip 50 %" in text
    assert text.endswith("; pass 1: 100 % of the images; pass 2: 25 % of the images.")
    assert alt_text.of_images(run, "PPO").endswith("All cost 0.8 % computation.")
    spent = torch.where(torch.arange(200) < 100, 0.5, 2.0)  # the first 150 are right
    gate = PerImageResults(run.reported["gate"].correct, spent)
    text = alt_text.of_images(replace(run, reported={**run.reported, "gate": gate}), "PPO")
    assert "Images cost 0.5 to 2 % computation" in text
    assert "100.0 % of the cheaper half and 50.0 % of the other half" in text


def test_spread_over_seeds_keeps_the_range_of_the_axis():
    limits = []
    for spread in (0, 30):
        pair = [fake_run(f"s{i}", (150 + d, 0.8), seed=i) for i, d in ((0, -spread), (1, spread))]
        figure, _ = pareto_plot(compare_runs([*pair, fake_run("b", (160, 1.2), label="B")]))
        limits.append(figure.axes[0].get_ylim())
    assert limits[0] == pytest.approx(limits[1])


def test_ticks_of_option_shares_up_to_100_percent():
    comparison = compare_runs([fake_run(f"b{b}", (150, b), budget=b) for b in (20.0, 100.0)])
    figure = bit_mix_plot(comparison.curves[0], comparison.options)
    assert figure.get_supylabel() == "passes, %"  # of gates of several passes, all together
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["20", "50", "100"]


def test_labels_do_not_overlap(contest):
    # Full precision is worse than the gates, so that its label is at the lower right.
    runs = [
        fake_run(f"b{b}", (right, b), budget=b, static=(right, b), cascade=(right - 1, b))
        for b, right in ((20.0, 197), (50.0, 199))
    ]
    for comparison in (compare_runs(runs), contest):
        figure, _ = pareto_plot(comparison)
        figure.canvas.draw()
        (axes,) = figure.axes
        boxes = [text.get_window_extent() for text in axes.texts]
        if axes.get_legend() is not None:
            boxes.append(axes.get_legend().get_window_extent())
        assert len(boxes) >= 4
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_any_gate_name_is_drawn_and_escaped():
    names = ["_a$b$c", r"$\frac$", "<b>&汉字", "x" * 300]
    baselines = {"static": (110, 0.5), "cascade": (110, 0.5)}
    runs = [
        fake_run(f"{i}", (150 + i, 0.7), label=name, budget=0.7, **baselines)
        for i, name in enumerate(names)
    ]
    runs.append(fake_run("curve", (160, 1.0), label=names[0], budget=1.0, **baselines))
    comparison = compare_runs(runs)
    figure, _ = pareto_plot(comparison)
    assert {style.short_middle(name, 80) for name in names} <= written(figure)
    figures = comparison_figures(comparison)
    sections = [
        {"label": name, "figures": {name: figures["pareto"]}, "commands": [name], "settings": name}
        for name in names
    ]
    outline = outline_of(html_report(comparison, figures, sections))
    assert set(names) <= set(outline.cells)
    assert outline.images == 8  # Pareto front, panels, difficulty, options, one per gate
    assert {"Budgets", "Curves"} <= set(outline.headings)


def test_hover_points_lie_on_their_markers(comparison, figures):
    pixels = np.asarray(Image.open(io.BytesIO(figures["pareto"].png)).convert("RGB"))
    height, width, _ = pixels.shape
    text, left, top = next(p for p in figures["pareto"].points if p[0].startswith("PPO"))
    assert text == "PPO: 77.00 % at 0.8 % computation, 3 seeds"
    found = pixels[round(top * height), round(left * width)]
    (colour,) = (m.colour for m in ranked_methods(comparison)[0] if m.name == "PPO")
    expected = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(found.astype(int) - expected).max() < 8


def test_report_of_measured_times():
    times = {"gate": 1.5, "static_table": 2.0, "uniform_2": 3.9, "full": 4.0}
    runs = [
        fake_run(f"r{i}", (180, 0.9), seed=i, milliseconds={**times, "gate": 1.5 + i})
        for i in range(2)
    ]
    comparison = compare_runs(runs)
    figures = comparison_figures(comparison)
    (text,) = (text for text, *_ in figures["pareto_ms"].points if text.startswith("PPO"))
    assert text == "PPO: 90.00 % at 2 ms measured, 2 seeds"
    head, (gates, *_) = comparison_tables(comparison)["points"]
    assert dict(zip(head, gates[0], strict=True))["measured ms"] == "2.0000 ± 0.7071"
    outline = outline_of(html_report(comparison, figures, []))
    assert outline.images == 3  # accuracy over computation and time, difficulty
    assert "Accuracy against measured time" in outline.headings
    text = " ".join(comparison_text(comparison).split())
    assert "Measured: ms per image" in text
    assert "on a machine, onnx runtime, 1 thread, batch size 1, medians of 100 calls" in text
    assert "A gate other than the measured one counts in proportion to its MACs." in text
    assert "On this machine 2 bit takes as long as 32 bit or longer" in text


def test_page_is_self_contained_and_escaped(page):
    outline = outline_of(page)
    assert outline.images == 3
    assert MARKUP in outline.cells
    assert not {"Budgets", "Curves"} & set(outline.headings)


@needs_chromium
def test_a_browser_opens_the_page_without_complaint(page, tmp_path):
    check_in_browser(page, tmp_path, images=3)


@needs_chromium
@pytest.mark.parametrize("width", [390, 768, 1400])
def test_nothing_is_wider_than_the_window(contest, contest_figures, tmp_path, width):
    long = replace(contest, dataset="x" * 300, failed={"runs/" + "y" * 300: "z" * 300})
    section = {
        "label": "g" * 300,
        "figures": {"Bits": contest_figures["pareto"]},
        "commands": ["c " * 300],
        "settings": "s" * 300,
    }
    page = html_report(long, contest_figures, [section])
    window, whole, widest = widths(page, tmp_path, width)
    assert abs(window - width) <= 20  # a scrollbar
    assert whole == window
    assert widest <= window


@needs_chromium
def test_folded_content_is_printed(tmp_path):
    page = render("base.html", title="Report", about="", summary=[], failed={})
    rows = "".join(f"<p>{number}</p>" for number in range(200))
    file, printed = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(page.replace("</body>", f"<details>{rows}</details></body>"))
    browse(file, f"--print-to-pdf={printed}")
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) > 2
