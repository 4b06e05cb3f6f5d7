import math
import statistics
from dataclasses import replace

import pytest
import torch

from dfs_rl.errors import DataError
from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns, Spread, spread
from dfs_rl.evaluation.curves import CurvePoint, hypervolume
from dfs_rl.evaluation.metrics import paired_difference, resampled_means
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.io import read_json, write_json
from tests.helpers.fake_runs import TIMING, fake_run


def gate_of(comparison):
    (gate,) = (point for point in comparison.points if point.kind == "gate")
    return gate


def test_seeds_of_one_gate_are_one_point_with_a_spread():
    runs = [fake_run(f"r{i}", (150 + 4 * i, 0.78 + 0.02 * i), seed=i) for i in range(3)]
    gate = gate_of(compare_runs(runs))
    assert (gate.label, gate.runs, gate.seeds) == ("PPO", ("r0", "r1", "r2"), (0, 1, 2))
    accuracies = [75.0, 77.0, 79.0]
    assert gate.accuracy.mean == pytest.approx(77.0)
    assert gate.accuracy.deviation == pytest.approx(statistics.stdev(accuracies))
    assert gate.computation.mean == pytest.approx(0.80)
    gains = [(a - 75.0) for a in accuracies]
    assert gate.gains["static_table"].mean == pytest.approx(statistics.fmean(gains))
    assert gate.gains["static_table"].deviation == pytest.approx(statistics.stdev(gains))
    assert gate.gains["cascade"].mean == pytest.approx(-3.0)


def test_curve_of_a_baseline_missing_at_some_costs():
    cheap = fake_run("a", (150, 0.2), budget=0.2)
    methods = tuple(m for m in cheap.summary.methods if m.key != "cascade")
    reported, selection = (
        {key: value for key, value in results.items() if key != "cascade"}
        for results in (cheap.reported, cheap.selection)
    )
    summary = replace(cheap.summary, methods=methods)
    lacking = replace(cheap, summary=summary, reported=reported, selection=selection)
    others = [fake_run(n, (170, c), budget=c) for n, c in (("b", 0.8), ("c", 1.5))]
    points = {curve.label: curve.points for curve in compare_runs([lacking, *others]).curves}
    assert points == {
        "PPO": 3,
        "best static tables at the costs of PPO": 3,
        "cascades at the costs of PPO": 2,
    }
    assert any("No cascade" in sentence for sentence in compare_runs([lacking]).verdict)


def gate_labels(runs):
    return {point.label for point in compare_runs(runs).points if point.kind == "gate"}


def test_labels_have_the_settings_that_differ():
    runs = [
        fake_run("a", (150, 0.8), cost_weight=4.0, hidden=8, run_dir="a"),
        fake_run("b", (150, 0.7), cost_weight=6.0, hidden=8, run_dir="b", seed=3),
        fake_run("c", (150, 0.9), label="Gumbel FF", budget=1.0),
    ]
    assert gate_labels(runs) == {"PPO, cost weight 4", "PPO, cost weight 6", "Gumbel FF"}


def test_recommended_points_are_chosen_on_val():
    lucky = fake_run("lucky", (185, 0.7), label="Lucky", selection={"gate": (100, 0.7)})
    steady = fake_run(
        "steady",
        (170, 0.9),
        label="Steady",
        selection={"gate": (175, 0.9)},
        static=(150, 0.85),
        cascade=(155, 0.85),
    )
    comparison = compare_runs([lucky, steady])
    assert comparison.pareto_front == (
        "uniform 2 bit",
        "cascade at 0.8 %",
        "Steady",
        "full precision",
    )
    recommended, cascade, *_ = comparison.verdict
    assert all(label in recommended for label in comparison.pareto_front)
    made = "run train_cascade --passes 2 --answer last --no-mirrored --stopping confidence"
    assert f"{made} --budget 0.8001." in cascade  # rounded up
    runs = [replace(r, summary=replace(r.summary, cost_model="macs")) for r in (lucky, steady)]
    _, cascade, *_ = compare_runs(runs).verdict
    assert f"{made} --cost macs --budget 0.8001." in cascade


def test_gates_of_the_same_cost_are_paired_over_images():
    runs = [
        fake_run("a", (150, 0.80), label="A"),
        fake_run("b", (170, 0.83), label="B"),
        fake_run("c", (170, 0.90), label="C"),
    ]
    comparison = compare_runs(runs)
    (pair,) = comparison.pairs
    assert (pair.first, pair.second) == ("A", "B")
    expected = paired_difference(runs[0].reported["gate"].correct, runs[1].reported["gate"].correct)
    assert (pair.difference, pair.low, pair.high) == pytest.approx(expected)


def test_significant_gains_exceed_two_deviations():
    assert Spread(mean=1.0, deviation=0.49).is_significant
    assert not Spread(mean=1.0, deviation=0.51).is_significant
    assert not Spread(mean=-1.0, deviation=0.0).is_significant
    assert not spread([9.0]).is_significant


@pytest.mark.parametrize(
    ("rights", "over_seeds", "better"),
    [
        ((170, 171, 172), True, ("static_table", "cascade")),
        ((150, 170, 190), False, ()),
        ((151, 151, 151), True, ()),  # one image per seed is not significant over images
    ],
)
def test_gates_better_than_their_baselines(rights, over_seeds, better):
    runs = [fake_run(f"r{seed}", (right, 0.8), seed=seed) for seed, right in enumerate(rights)]
    gate = gate_of(compare_runs(runs))
    assert gate.gains["static_table"].is_significant is over_seeds
    assert gate.better_than == better


def test_cotrained_gate_meets_the_better_baseline():
    before = {"static_table": (155, 0.79), "cascade": (140, 0.81)}
    comparison = compare_runs([fake_run("a", (150, 0.8), before=before)])
    gate = gate_of(comparison)
    assert gate.gains["static_table"].mean == pytest.approx(-2.5)  # the one from before
    assert gate.gains["cascade"].mean == pytest.approx(-5.0)  # the one on the co-trained backbone
    labels = {p.label for p in comparison.points}
    assert {
        "best static table at 0.79 %",
        "best static table on the co-trained backbone at 0.8 %",
    } <= labels


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fingerprint": "xyz"}, "image fingerprint is xyz, not abc"),
        ({"options": (0, 4, 32)}, "list of bit options is [0, 4, 32], not [0, 2, 32]"),
        ({"backbone": "b1"}, "backbone digest is b1, not b0"),
        ({"cost_model": "macs"}, "cost model is macs, not computation"),
        ({"split": "val"}, "split is val, not test"),
    ],
)
def test_runs_of_something_else_are_refused_by_name(change, what):
    other = fake_run("other", (150, 0.8))
    if "backbone" in change:
        other = replace(other, **change)
    else:
        other = replace(other, summary=replace(other.summary, **change))
    runs = [fake_run("first", (150, 0.8)), other]
    with pytest.raises(DataError) as caught:
        compare_runs(runs)
    assert str(caught.value) == f"other cannot be compared with first: its {what}."


def test_runs_with_other_measured_times_are_refused():
    plain, run = fake_run("plain", (150, 0.8)), fake_run("measured", (150, 0.8), milliseconds={})
    with pytest.raises(DataError, match="latency profile is 4 ms in full precision, a machine, "):
        compare_runs([plain, run])
    for change, words in (
        ({"layer_milliseconds": (0.5, 3.9, 4.5)}, r"profile is 4\.5 ms in full precision"),
        ({"profile": "0123"}, "digest 0123"),
    ):
        summary = replace(run.summary, timing=replace(TIMING, **change))
        other = replace(run, path="other", summary=summary)
        with pytest.raises(DataError, match=words):
            compare_runs([run, other])


def test_points_over_measured_time():
    # By computation the static table is cheapest; by time it is more expensive than the gate.
    times = {"gate": 1.0, "static_table": 2.0, "cascade": 3.0, "uniform_2": 4.0, "full": 5.0}
    runs = [
        fake_run(
            f"r{seed}",
            (180, 0.9),
            seed=seed,
            static=(150, 0.7),
            cascade=(155, 1.0),
            milliseconds={**times, "gate": 1.0 + 0.1 * seed},
        )
        for seed in (0, 2)
    ]
    comparison = compare_runs(runs)
    gate = gate_of(comparison)
    assert gate.milliseconds.mean == pytest.approx(1.1)
    assert gate.milliseconds.deviation == pytest.approx(0.2 / 2**0.5)
    assert gate.selection_milliseconds == pytest.approx(1.1)
    assert comparison.pareto_front == (
        "uniform 2 bit",
        "best static table at 0.7 %",
        "PPO",
        "full precision",
    )
    assert comparison.pareto_front_milliseconds == ("PPO", "full precision")
    (sentence,) = (text for text in comparison.verdict if "measured" in text)
    assert sentence.startswith("By measured time, likewise: from 1.1 ms: PPO (90.00 %); from 5 ms")
    frame = comparison.to_frame().set_index("label")
    assert frame.loc["full precision", "milliseconds_mean"] == 5.0
    assert "milliseconds_mean" not in compare_runs([fake_run("plain", (150, 0.8))]).to_frame()


def test_a_comparison_round_trips_through_strict_json(tmp_path):
    times = {"gate": 0.5}
    comparison = compare_runs(
        [fake_run(f"r{i}", (150, 0.8), seed=i, milliseconds=times) for i in range(2)]
    )
    path = tmp_path / "comparison.json"
    write_json(path, config_to_dict(comparison))
    assert config_from_dict(read_json(path), ComparisonOfRuns, str(path)) == comparison


def test_budgets_of_one_gate_form_a_curve():
    runs = [
        fake_run(
            f"{budget}-{seed}",
            (right + seed, budget),
            seed=seed,
            budget=budget,
            static=(right - 10, budget),
            cascade=(right, budget),
        )
        for seed in (0, 2)
        for budget, right in ((0.6, 140), (1.2, 160))
    ]
    runs.append(fake_run("alone", (150, 0.8), label="Alone"))
    gate, static, cascade = compare_runs(runs).curves
    assert (gate.label, gate.points) == ("PPO", 2)
    assert static.label == "best static tables at the costs of PPO"
    reference_point = CurvePoint(10.0, 60.0)  # uniform 2 bit, and where areas of low bits end
    areas = [
        hypervolume(
            [CurvePoint(0.6, (140 + seed) / 2), CurvePoint(1.2, (160 + seed) / 2)],
            reference_point=reference_point,
        )
        for seed in (0, 2)
    ]
    assert gate.hypervolume.mean == pytest.approx(statistics.fmean(areas), rel=1e-5)
    assert gate.hypervolume.deviation == pytest.approx(statistics.stdev(areas), rel=1e-4)
    assert static.hypervolume.mean < cascade.hypervolume.mean < gate.hypervolume.mean
    assert set(gate.accuracy_at) == {"0.75", "1"}
    share = math.log(1 / 0.6) / math.log(2)
    assert gate.accuracy_at["1"].mean == pytest.approx(70.5 + 10 * share, rel=1e-5)


def test_curves_above_ten_percent_computation():
    comparison = compare_runs(
        [fake_run(f"{b}", (r, b), budget=b) for b, r in ((20, 170), (50, 180))]
    )
    # Full precision, and skip all.
    assert (comparison.reference_computation, comparison.reference_accuracy) == (100.0, 10.0)
    area = (85 - 10) * math.log10(50 / 20) + (90 - 10) * math.log10(100 / 50)
    assert comparison.curves[0].hypervolume.mean == pytest.approx(area, rel=1e-5)
    accuracies = comparison.curves[0].accuracy_at
    assert {at: value.mean for at, value in accuracies.items()} == {"20": 85.0, "50": 90.0}


def test_the_same_seed_twice_is_refused():
    runs = [fake_run("a", (150, 0.8)), fake_run("b", (150, 0.8), device="cuda")]
    with pytest.raises(DataError, match="b and a are the same gate, PPO, with the same seed 0"):
        compare_runs(runs)


def test_none_stands_for_a_missing_setting():
    runs = [fake_run("a", (150, 0.8)), fake_run("b", (150, 0.8), seed=1, hidden=None)]
    assert gate_of(compare_runs(runs)).seeds == (0, 1)
    runs.append(fake_run("c", (150, 0.8), hidden=8))
    assert gate_labels(runs) == {"PPO, hidden default", "PPO, hidden 8"}


def test_baselines_of_one_cost_have_unique_labels():
    runs = [
        fake_run("a", (150, 0.8), label="A"),
        fake_run("b", (150, 0.8), label="B", static=(155, 0.8)),
    ]
    runs.append(fake_run("c", (150, 0.8), label="C", cascade=(160, 0.8001)))
    labels = [p.label for p in compare_runs(runs).points]
    assert len(set(labels)) == len(labels)
    assert "best static table at 0.8 %, for A" in labels
    cascades = [label for label in labels if label.startswith("cascade")]
    # The same for A and B, and one with another cost.
    assert cascades == ["cascade at 0.8 %", "cascade at 0.8001 %"]


def test_a_seed_that_lacks_a_budget_has_no_curve():
    runs = [
        fake_run(f"{budget}-{seed}", (140, budget), seed=seed, budget=budget)
        for seed, budget in ((0, 0.6), (0, 1.2), (1, 0.6))
    ]
    gate = compare_runs(runs).curves[0]
    assert (gate.points, gate.seeds, gate.hypervolume.deviation) == (2, 1, None)
    assert gate.n_incomplete_seeds == 1
    assert compare_runs(runs[1:]).curves == ()


def curves_of_two(seeds=(0, 1), gap=12):
    """Two kinds of gates at two budgets, the second one with ``gap`` more right answers."""
    return [
        fake_run(
            f"{label}-{budget}-{seed}",
            (right + more + seed, budget),
            label=label,
            seed=seed,
            budget=budget,
            static=(right - 20, budget),
            cascade=(right + more + seed, budget),
        )
        for label, more in (("A", 0), ("B", gap))
        for seed in seeds
        for budget, right in ((0.6, 140), (1.2, 160))
    ]


def test_points_of_one_curve_are_not_paired():
    comparison = compare_runs(curves_of_two())
    gates = [p for p in comparison.points if p.kind == "gate"]
    assert {(p.label, p.family, p.budget) for p in gates} == {
        (f"{name}, budget {budget:g}", name, budget) for name in "AB" for budget in (0.6, 1.2)
    }
    pairs = {(pair.first, pair.second) for pair in comparison.pairs}
    assert pairs == {(f"A, budget {b}", f"B, budget {b}") for b in ("0.6", "1.2")}


def test_curves_are_compared_over_the_same_draws():
    comparison = compare_runs(curves_of_two())
    by_name = {(p.first, p.second): p for p in comparison.curve_pairs}
    between = by_name["A", "B"]
    areas = {curve.label: curve.hypervolume.mean for curve in comparison.curves}
    assert between.difference == pytest.approx(areas["A"] - areas["B"])
    assert between.interval.low < between.difference < between.interval.high < 0
    # The images that only B gets right are the same in every draw.
    assert between.interval.high - between.interval.low < 0.7 * (
        comparison.curves[0].interval.high - comparison.curves[0].interval.low
    )
    # The cascade does as the gate does, image by image, so nothing can tell them apart.
    same = by_name["A", "cascades at the costs of A"]
    assert (same.difference, same.interval.low, same.interval.high) == (0.0, 0.0, 0.0)
    assert "B with" in comparison.verdict[-1]
    assert comparison.verdict[-1].endswith("tied with cascades at the costs of B.")


def test_curves_are_compared_seed_by_seed_in_any_order_of_runs():
    runs = curves_of_two()
    pairs = [compare_runs(given).curve_pairs for given in (runs, [*runs[:4], *runs[:3:-1]])]
    between = [next(p for p in some if (p.first, p.second) == ("A", "B")) for some in pairs]
    assert between[0].spread is not None
    assert between[1].spread == between[0].spread


def test_a_gate_named_like_a_baseline_is_told_apart():
    comparison = compare_runs([fake_run("a", (170, 0.8), label="cascade", budget=0.8)])
    assert gate_of(comparison).label == "cascade gate"
    assert "cascade at 0.8 %" in [point.label for point in comparison.points]


def test_interval_is_the_normal_approximation():
    runs = curves_of_two(seeds=(0,))
    curve = compare_runs(runs).curves[0]
    # 70 % right of 200 images at 0.6 %: the binomial standard error is 3.24 points.
    found = resampled_means(runs[0].reported["gate"].correct)
    assert float(found.std()) == pytest.approx(math.sqrt(0.7 * 0.3 / 200), rel=0.15)
    assert curve.interval.low < curve.hypervolume.mean < curve.interval.high


def test_difficulty_is_the_cheapest_correct_setting():
    # 120 of 200 images are right at 2 bit, 70 more in full precision only, and 10 never.
    run = fake_run("a", (150, 0.8))
    spent = torch.cat([torch.full((120,), 0.5), torch.full((80,), 1.25)])
    gate = run.reported["gate"]._replace(computation=spent)
    reported = {**run.reported, "gate": gate}
    run = replace(run, reported=reported)
    comparison = compare_runs([run])
    assert comparison.difficulty == ("uniform 2 bit", "full precision", "none is right")
    assert comparison.difficulty_shares == pytest.approx((0.6, 0.35, 0.05))
    (computation_by_difficulty,) = comparison.computation_by_difficulty
    mean = 0.6 * 0.5 + 0.4 * 1.25
    assert computation_by_difficulty.relative == pytest.approx(
        (0.5 / mean, 1.25 / mean, 1.25 / mean)
    )


def test_a_static_baseline_is_one_table_and_no_mean():
    runs = [fake_run(f"r{i}", (150, 0.8 + i), seed=i, static=(150 + i, 0.5 + i)) for i in range(2)]
    comparison = compare_runs(runs)
    (static,) = [p for p in comparison.points if p.kind == "static_table"]
    assert (static.label, static.seeds) == ("best static table at 0.5 %", (0,))
    assert gate_of(comparison).gains["static_table"].mean == pytest.approx(-0.25)  # over both seeds
