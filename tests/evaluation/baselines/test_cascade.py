import itertools
import math

import pytest
import torch

from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.evaluation.baselines.cascade import Cascade, choose_cascade, run_cascade
from dfs_rl.evaluation.baselines.methods import uniform_baselines
from dfs_rl.evaluation.records import GateRecords

COSTS = CostTable(
    options=BitOptions((8, 16)),
    layer_macs=(600, 400),
    fixed=(FixedCost(name="stem", macs=100, bits=16), FixedCost(name="head", macs=5, bits=32)),
)
# Percent of one pass, stem (2.5 %) and head (0.5 %) included.
LOW, HIGH = 6.25 + 3.0, 25.0 + 3.0


def uniform(option, predictions, confidence):
    n = len(predictions)
    return GateRecords(
        name=f"uniform {option}",
        predictions=torch.tensor(predictions),
        labels=torch.zeros(n, dtype=torch.int64),
        options=torch.full((n, 2), option),
        log_likelihood=torch.tensor(confidence, dtype=torch.float64).log(),
        confidence=torch.tensor(confidence, dtype=torch.float64),
    )


# Right is 0. The low pass errs where it is unsure; the high pass is right everywhere but once.
PASSES = [
    uniform(0, [0, 1, 1, 0], [0.9, 0.5, 0.6, 0.8]),
    uniform(1, [0, 0, 0, 1], [0.9, 0.8, 0.9, 0.7]),
]


def test_the_unsure_run_twice_and_pay_twice():
    records = run_cascade(PASSES, Cascade(0, 1, 0.7))
    assert records.predictions.tolist() == [0, 0, 0, 0]
    assert records.options.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert records.confidence.tolist() == [0.9, 0.8, 0.9, 0.8]
    expected = [LOW, LOW + HIGH, LOW + HIGH, LOW]
    assert records.computation(COSTS).tolist() == pytest.approx(expected)
    gated = [6.25, 31.25, 31.25, 6.25]
    assert records.computation(COSTS, "dfs").tolist() == pytest.approx(gated)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (LOW, Cascade(0, 1, 0.0)),  # nobody runs again
        (LOW + HIGH / 4, Cascade(0, 1, 0.55)),  # one of four may
        (LOW + HIGH / 2 - 0.01, Cascade(0, 1, 0.55)),
        (LOW + HIGH / 2, Cascade(0, 1, 0.7)),
        (1000.0, Cascade(0, 1, 0.7)),  # more would not help
    ],
)
def test_choice_under_a_cap(budget, expected):
    chosen = choose_cascade(PASSES, COSTS, budget)
    assert (chosen.first, chosen.second) == (expected.first, expected.second)
    assert chosen.threshold == pytest.approx(expected.threshold)


def test_choice_is_the_best_of_all_that_fit(backbone, val):
    passes = [method.records[0] for method in uniform_baselines(backbone, val)]
    for budget in (5.0, 20.0, 60.0, 104.0, 150.0):
        chosen = run_cascade(passes, choose_cascade(passes, backbone.costs, budget))
        assert chosen.computation(backbone.costs).mean().item() <= budget + 1e-9
        best = 0
        for a, b in itertools.combinations(range(3), 2):
            for threshold in (*passes[a].confidence.tolist(), math.inf):
                tried = run_cascade(passes, Cascade(a, b, threshold))
                if tried.computation(backbone.costs).mean().item() <= budget:
                    best = max(best, int(tried.correct.sum()))
        # Thresholds are tried in steps of 1 % of the 157 images: every second one.
        assert best - 1 <= int(chosen.correct.sum()) <= best


def test_equal_confidence_never_breaks_the_cap():
    level = [uniform(0, [1, 1, 1, 0], [0.5] * 4), PASSES[1]]
    chosen = choose_cascade(level, COSTS, LOW + HIGH / 2)
    assert run_cascade(level, chosen).computation(COSTS).mean().item() <= LOW + HIGH / 2


def test_one_option_makes_a_cascade_of_itself():
    lone = CostTable(options=BitOptions((8,)), layer_macs=(600, 400))
    chosen = choose_cascade(PASSES[:1], lone, 6.25)
    assert run_cascade(PASSES[:1], chosen).computation(lone).tolist() == pytest.approx([6.25] * 4)


def test_below_the_cheapest_pass_there_is_none():
    assert choose_cascade(PASSES, COSTS, LOW - 0.01) is None
    assert choose_cascade(PASSES, COSTS, LOW) is not None


def test_no_image_pays_for_a_pass_that_decides_nothing():
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        sure = [torch.rand(97, generator=generator).double() for _ in range(2)]
        passes = [uniform(0, [1] * 97, sure[0].tolist()), uniform(1, [0] * 97, sure[1].tolist())]
        chosen = choose_cascade(passes, COSTS, 1000.0)  # the dearer one is always right
        assert (chosen.first, chosen.threshold) == (1, 0.0)


def test_a_threshold_lies_between_two_images():
    chosen = choose_cascade(PASSES, COSTS, LOW + HIGH / 2)
    gaps = (PASSES[0].confidence - chosen.threshold).abs()
    assert gaps.min().item() == pytest.approx(0.1)
