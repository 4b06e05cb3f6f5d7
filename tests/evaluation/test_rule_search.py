"""Search for rules against naive loops over images, sequences and thresholds."""

import itertools
import math

import numpy as np
import pytest
import torch

from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.evaluation.pass_outputs import PassOutputs
from dfs_rl.evaluation.rule_search import best_rule, search_rules, useful_settings
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import GainModel, RulePass

COSTS = CostTable(
    options=BitOptions((8, 16, 32)),
    layer_macs=(600, 400),
    fixed=(FixedCost(name="stem", macs=100, bits=16), FixedCost(name="head", macs=5, bits=32)),
)
LOW, MIDDLE, HIGH = (share + 3.0 for share in (6.25, 25.0, 100.0))
"""Percent of one pass, stem (2.5 %) and head (0.5 %) included."""
PLAIN = PassSettings(limit=2, answer="last")


def tabulate(probabilities, labels, views=(False,)):
    """Return outputs with given probabilities of each option in each view, ``[settings, n, c]``."""
    options = range(len(probabilities) // len(views))
    return PassOutputs(
        settings=tuple(RulePass(options=(o, o), mirrored=m) for m in views for o in options),
        logits=torch.tensor(probabilities, dtype=torch.float64).log().float(),
        labels=torch.tensor(labels),
    )


def drawn(n, *, views=(False, True), seed=0):
    """Return outputs of three options, the dearer the better, on random images of three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    logits = torch.randn(3 * len(views), n, 3, generator=generator)
    strength = torch.tensor([1.0, 1.5, 2.0] * len(views))
    logits[:, torch.arange(n), labels] += strength[:, None]
    return tabulate(logits.softmax(dim=2).tolist(), labels.tolist(), views)


def two_class(confidence, right):
    """Return the probabilities of images of class 0 by confidence and correctness."""
    return [[c, 1 - c] if r else [1 - c, c] for c, r in zip(confidence, right, strict=True)]


# Option 8 is wrong where it is unsure, 16 is right there; 32 is worse than both.
PLANTED = tabulate(
    [
        two_class([0.9, 0.5001, 0.6, 0.8], [True, False, False, True]),
        two_class([0.9, 0.8, 0.9, 0.7], [True, True, True, False]),
        two_class([0.9] * 4, [False] * 4),
    ],
    [0] * 4,
)


def predicted_gain(model, given, seen):
    """Return what a model predicts of an answer, from probabilities of it and of each pass."""
    best = given.index(max(given))
    columns = sorted(given, reverse=True)[:3]
    columns += [0.0] * (3 - len(columns))
    entropy = -sum(share * math.log(share) for share in given) / math.log(len(given))
    certainty = math.log(min(1.0, max(1 - max(given), 1e-6))) / math.log(1e-6)
    agreement = sum(one.index(max(one)) == best for one in seen) / len(seen)
    columns += [entropy, certainty, agreement]
    return sum(a * b for a, b in zip(model.weights, columns, strict=True)) + model.offsets[best]


def naive(outputs, index, thresholds, answer, gains=()):
    """Return mean cost and score of a rule, image by image."""
    probabilities = outputs.logits.double().softmax(dim=2).tolist()
    costs = (LOW, MIDDLE, HIGH)
    spent = score = 0.0
    for image, label in enumerate(outputs.labels.tolist()):
        seen, given = [], [0.0]
        for threshold, setting in zip((math.inf, *thresholds), index, strict=True):
            certainty = max(given)
            if gains and seen:
                gain = predicted_gain(gains[len(seen) - 1], given, seen)
                certainty = min(1.0, max(0.0, 1.0 - gain))
            if not certainty < threshold:
                break
            seen.append(probabilities[setting][image])
            spent += costs[setting % 3]
            if answer == "mean":
                given = [sum(of_class) / len(seen) for of_class in zip(*seen, strict=True)]
            else:
                given = seen[-1] if answer == "last" else max(seen, key=max)
        score += (max(given) == given[label]) + 0.1 * math.log(given[label])
    return spent / len(outputs), score / len(outputs) - 0.001 * (len(index) - 1)


@pytest.mark.parametrize("answer", ["mean", "last", "surest"])
def test_search_finds_the_best_rule_of_all(answer):
    outputs = drawn(9)
    cuts = [0.0, *(0.34 + 0.02 * i for i in range(33)), 2.0]
    budgets = [LOW, 14.0, 25.0, 40.0, 90.0, 400.0]
    best = [-math.inf] * len(budgets)
    # Rules with thresholds from a grid: the search, at every image's confidence, is no worse.
    for size in (1, 2, 3):
        for index in itertools.permutations(range(6), size):
            ascending = all(a % 3 < b % 3 for a, b in itertools.pairwise(index))
            if index[0] > 2 or (answer == "last" and not ascending):
                continue
            for thresholds in itertools.product(cuts[:: 3 * size - 2], repeat=size - 1):
                cost, score = naive(outputs, index, thresholds, answer)
                for i, budget in enumerate(budgets):
                    if cost <= budget + 1e-9:
                        best[i] = max(best[i], score)
    found = search_rules(
        outputs, COSTS, budgets, PassSettings(limit=3, mirrored=True, answer=answer)
    )
    for i, (budget, one) in enumerate(zip(budgets, found, strict=True)):
        index = [outputs.settings.index(each) for each in one.rule.passes]
        cost, score = naive(outputs, index, one.rule.thresholds, answer)
        assert (cost, score) == pytest.approx((one.computation, one.score))
        assert cost <= budget + 1e-9
        assert score >= best[i] - 1e-9


@pytest.mark.parametrize("answer", ["mean", "last", "surest"])
def test_figures_of_rules_that_stop_by_gains(answer):
    outputs, budgets = drawn(200), [LOW, 14.0, 25.0, 60.0, 400.0]
    passes = PassSettings(limit=3, mirrored=True, answer=answer)
    found = search_rules(outputs, COSTS, budgets, passes, stopping="gain")
    assert max(len(one.rule.passes) for one in found) > 1
    for budget, one in zip(budgets, found, strict=True):
        index = [outputs.settings.index(each) for each in one.rule.passes]
        rule = one.rule
        cost, score = naive(outputs, index, rule.thresholds, answer, rule.gains)
        assert (cost, score) == pytest.approx((one.computation, one.score))
        assert cost <= budget + 1e-9


def test_gains_are_a_ridge_regression():
    """The second pass gains what a least squares problem with penalty rows says."""
    outputs, n = drawn(300, views=(False,)), 100
    passes = PassSettings(limit=2, answer="last")
    rule = best_rule(outputs, COSTS, 20.0, passes, n_costed=n, stopping="gain").rule
    first, second = (outputs.settings.index(each) for each in rule.passes)
    probabilities, labels = outputs.probabilities[:, n:], outputs.labels[n:]
    columns = np.array(
        [
            [
                predicted_gain(
                    GainModel(weights=tuple(unit[:6]), offsets=tuple(unit[6:])), given, [given]
                )
                for unit in np.eye(9).tolist()
            ]
            for given in probabilities[first].tolist()
        ]
    )
    criterion = [
        (shares.argmax(1) == labels).double()
        + 0.1 * shares.gather(1, labels[:, None]).log().squeeze(1)
        for shares in (probabilities[first], probabilities[second])
    ]
    penalty = np.eye(9) * (1e-3 * len(columns)) ** 0.5
    target = np.concatenate([(criterion[1] - criterion[0]).numpy(), np.zeros(9)])
    expected = np.linalg.lstsq(np.concatenate([columns, penalty]), target, rcond=None)[0]
    (model,) = rule.gains
    np.testing.assert_allclose([*model.weights, *model.offsets], expected, atol=1e-5)


def test_gains_tell_classes_apart():
    """A second pass corrects what the first one calls class 1, at one confidence for all."""
    n = 400
    first = [[0.6, 0.4] if i % 2 else [0.4, 0.6] for i in range(n)]
    outputs = tabulate([first, [[0.6, 0.4]] * n], [0] * n)
    budget = LOW + MIDDLE / 2
    by_gain = best_rule(outputs, COSTS, budget, PLAIN, stopping="gain")
    assert by_gain.computation == pytest.approx(budget)
    assert outputs.records(by_gain.rule, "last", name="gain").accuracy == 100.0
    by_confidence = best_rule(outputs, COSTS, budget, PLAIN)
    assert outputs.records(by_confidence.rule, "last", name="confidence").accuracy == 50.0


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [
        (LOW, None),  # no image has a second pass
        (LOW + MIDDLE / 4, 0.55),  # one of four may, halfway between two confidences
        (LOW + MIDDLE / 2 - 0.01, 0.55),
        (LOW + MIDDLE / 2, 0.7),
        (1000.0, 0.7),  # more would not help
    ],
)
def test_cascade_within_a_budget(budget, threshold):
    rule = best_rule(PLANTED, COSTS, budget, PLAIN).rule
    options = [each.options[0] for each in rule.passes]
    assert options == ([0] if threshold is None else [0, 1])
    assert rule.thresholds == pytest.approx(() if threshold is None else (threshold,), abs=1e-4)


def test_budget_below_the_cheapest_pass_has_none():
    assert best_rule(PLANTED, COSTS, LOW - 0.01, PLAIN) is None
    assert search_rules(PLANTED, COSTS, [LOW - 1, LOW], PLAIN)[0] is None


def test_equal_confidences_keep_the_budget():
    level = two_class([0.7] * 4, [False, False, False, True])
    outputs = tabulate([level, *PLANTED.probabilities[1:].tolist()], [0] * 4)
    found = best_rule(outputs, COSTS, LOW + MIDDLE / 2, PLAIN)
    assert found.computation <= LOW + MIDDLE / 2


def test_second_pass_for_all_images_is_never_chosen():
    for seed in range(20):
        sure = 0.5 + torch.rand(2, 97, generator=torch.Generator().manual_seed(seed)) / 2
        passes = [two_class(sure[i].tolist(), [bool(i)] * 97) for i in range(2)]
        rule = best_rule(tabulate(passes, [0] * 97), COSTS, 1000.0, PLAIN).rule
        assert [each.options for each in rule.passes] == [(1, 1)]  # it is always correct


def test_budget_may_count_some_of_the_images():
    outputs, first = drawn(60), drawn(60).labels[:20]
    found = best_rule(outputs, COSTS, 20.0, PLAIN, n_costed=20)
    part = PassOutputs(settings=outputs.settings, logits=outputs.logits[:, :20], labels=first)
    spent = part.records(found.rule, "last", name="first").computation(COSTS).mean().item()
    assert spent == pytest.approx(found.computation)
    assert 18.0 < spent <= 20.0
    everywhere = outputs.records(found.rule, "last", name="all")
    score = everywhere.accuracy / 100 + 0.1 * everywhere.log_likelihood.mean().item()
    assert found.score == pytest.approx(score - 0.001 * (len(found.rule.passes) - 1))


@pytest.mark.parametrize(("gain", "n_passes"), [(1, 1), (3, 2)])
def test_another_pass_must_gain_a_tenth_of_a_point(gain, n_passes):
    """A dear pass corrects some of 2,000 images, and changes no confidence of others."""
    unsure = [i >= gain for i in range(2000)]
    cheap = two_class([0.6 if right else 0.51 for right in unsure], unsure)
    dear = two_class([0.6 if right else 0.51 for right in unsure], [True] * 2000)
    outputs = tabulate([cheap, dear], [0] * 2000)
    rule = best_rule(outputs, COSTS, LOW + 1.0, PLAIN).rule
    assert len(rule.passes) == n_passes


def test_more_budget_passes_and_views_never_hurt():
    outputs = drawn(300)
    budgets = [LOW * 1.3**i for i in range(12)]
    scores = [
        [found.score for found in search_rules(outputs, COSTS, budgets, passes)]
        for passes in (
            PassSettings(limit=1),
            PassSettings(limit=2, answer="mean"),
            PassSettings(limit=2, mirrored=True, answer="mean"),
        )
    ]
    for fewer, more in itertools.pairwise(scores):
        assert fewer == sorted(fewer)
        assert all(a <= b + 1e-9 for a, b in zip(fewer, more, strict=True))
    assert scores[0][0] == pytest.approx(scores[2][0])  # the cheapest pass alone
    assert sum(scores[2]) > sum(scores[1]) > sum(scores[0])


def test_useless_settings_are_left_out():
    sure = [0.9] * 200
    shares = [[i < right for i in range(200)] for right in (160, 157, 163, 70, 161, 190)]
    outputs = tabulate([two_class(sure, each) for each in shares], [0] * 200, (False, True))
    # 78.5 % is more than a point below the cheaper 80 %; 35 % less than half of the best.
    assert [each.options[0] for each in useful_settings(outputs, COSTS).settings] == [0, 2, 1, 2]


def test_a_useless_setting_serves_where_nothing_else_fits():
    shares = [[i < right for i in range(100)] for right in (10, 90, 95)]
    outputs = tabulate([two_class([0.9] * 100, each) for each in shares], [0] * 100)
    assert best_rule(outputs, COSTS, LOW, PLAIN).rule.passes[0].options == (0, 0)
    assert best_rule(outputs, COSTS, MIDDLE, PLAIN).rule.passes[0].options == (1, 1)
