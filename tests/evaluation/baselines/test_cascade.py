import itertools
import math

import pytest
import torch

from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.evaluation.baselines.cascade import Cascade, choose_cascade, run_cascade
from dfs_rl.evaluation.records import GateRecords

COSTS = CostTable(
    options=BitOptions((8, 16)),
    layer_macs=(600, 400),
    fixed=(FixedCost(name="stem", macs=100, bits=16), FixedCost(name="head", macs=5, bits=32)),
)
LOW, HIGH = 6.25 + 3.0, 25.0 + 3.0
"""Percent of one pass, stem (2.5 %) and head (0.5 %) included."""


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


PASSES = [
    uniform(0, [0, 1, 1, 0], [0.9, 0.5, 0.6, 0.8]),  # wrong where it is unsure
    uniform(1, [0, 0, 0, 1], [0.9, 0.8, 0.9, 0.7]),
]


def mean_cost(records, costs=COSTS):
    return records.computation(costs).mean().item()


def test_unsure_images_pay_for_two_passes():
    records = run_cascade(PASSES, Cascade(0, 1, 0.7))
    assert records.predictions.tolist() == [0, 0, 0, 0]
    assert records.options.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert records.confidence.tolist() == [0.9, 0.8, 0.9, 0.8]
    expected = [LOW, LOW + HIGH, LOW + HIGH, LOW]
    assert records.computation(COSTS).tolist() == pytest.approx(expected)
    gated = [6.25, 31.25, 31.25, 6.25]
    assert records.computation(COSTS, "dfs").tolist() == pytest.approx(gated)


def test_confidence_at_the_threshold_is_enough():
    earlier = run_cascade(PASSES, Cascade(0, 1, 0.6)).earlier
    assert earlier.ran[:, 0].tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [
        (LOW, 0.0),  # no image has a second pass
        (LOW + HIGH / 4, 0.55),  # one of four may, halfway between two confidences
        (LOW + HIGH / 2 - 0.01, 0.55),
        (LOW + HIGH / 2, 0.7),
        (1000.0, 0.7),  # more would not help
    ],
)
def test_choice_within_a_budget(budget, threshold):
    assert choose_cascade(PASSES, COSTS, budget) == pytest.approx(Cascade(0, 1, threshold))


def test_choice_is_the_best_of_all(look_setup):
    costs = look_setup.backbone.costs
    passes = [method.selection for method in look_setup.uniform]
    for budget in (5.0, 20.0, 60.0, 104.0, 150.0):
        chosen = run_cascade(passes, choose_cascade(passes, costs, budget))
        assert mean_cost(chosen, costs) <= budget + 1e-9
        best = 0
        for a, b in itertools.combinations(range(3), 2):
            for threshold in (*passes[a].confidence.tolist(), math.inf):
                other = run_cascade(passes, Cascade(a, b, threshold))
                if mean_cost(other, costs) <= budget:
                    best = max(best, int(other.correct.sum()))
        # Thresholds are tried in steps of 1 % of the 157 images: every second one.
        assert best - 1 <= int(chosen.correct.sum()) <= best


def test_equal_confidences_keep_the_budget():
    level = [uniform(0, [1, 1, 1, 0], [0.5] * 4), PASSES[1]]
    chosen = choose_cascade(level, COSTS, LOW + HIGH / 2)
    assert mean_cost(run_cascade(level, chosen)) <= LOW + HIGH / 2


def test_one_option_is_a_cascade_of_itself():
    lone = CostTable(options=BitOptions((8,)), layer_macs=(600, 400))
    chosen = choose_cascade(PASSES[:1], lone, 6.25)
    assert run_cascade(PASSES[:1], chosen).computation(lone).tolist() == pytest.approx([6.25] * 4)


def test_budget_below_the_cheapest_pass_has_none():
    assert choose_cascade(PASSES, COSTS, LOW - 0.01) is None


def test_second_pass_for_all_images_is_never_chosen():
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        sure = [torch.rand(97, generator=generator).double() for _ in range(2)]
        passes = [uniform(0, [1] * 97, sure[0].tolist()), uniform(1, [0] * 97, sure[1].tolist())]
        chosen = choose_cascade(passes, COSTS, 1000.0)  # the expensive one is always correct
        assert (chosen.first, chosen.threshold) == (1, 0.0)
