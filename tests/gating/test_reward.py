import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.errors import ConfigError
from dfs_rl.gating.reward import (
    REWARD_TERMS,
    RewardWeights,
    reward_weights,
    score_predictions,
    step_cost,
    terminal_reward,
)

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-50.0, 50.0]])
LABELS = torch.tensor([0, 1, 0])
P_FIRST = 1 / (1 + math.exp(-2.0))


def test_scores_closed_form():
    scores = score_predictions(LOGITS, LABELS)
    assert scores.prediction.tolist() == [0, 0, 1]
    assert scores.correct.tolist() == [True, False, False]
    assert scores.log_likelihood.tolist() == pytest.approx(
        [math.log(P_FIRST), math.log(0.5), -100.0]
    )


def test_terminal_reward_closed_form():
    weights = RewardWeights(
        accuracy=0.7, log_likelihood=0.4, log_likelihood_floor=-2.0, cost=3.0, overshoot=5.0
    )
    spent = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    reward = terminal_reward(weights, score_predictions(LOGITS, LABELS), spent, gated_budget=0.15)
    expected = [
        0.7 + 0.4 * math.log(P_FIRST) / 2.0,
        0.4 * math.log(0.5) / 2.0 - 5.0 * 0.05,
        -0.4 - 5.0 * 0.15,
    ]
    assert reward.tolist() == pytest.approx(expected)
    free = terminal_reward(weights, score_predictions(LOGITS, LABELS), spent, gated_budget=None)
    overshoot = torch.tensor([0.0, 0.05, 0.15]).double()
    torch.testing.assert_close(free - reward, 5.0 * overshoot)


@given(costs=st.lists(st.floats(0, 0.3), min_size=3, max_size=3), weight=st.floats(0, 100))
def test_return_does_not_depend_on_cost_timing(costs, weight):
    spent = torch.tensor([sum(costs)] * 3, dtype=torch.float64)
    returns = []
    for timing in ("step", "terminal"):
        weights = RewardWeights(cost=weight, cost_timing=timing)
        steps = sum(-step_cost(weights, torch.tensor([c] * 3, dtype=torch.float64)) for c in costs)
        returns.append(
            steps
            + terminal_reward(weights, score_predictions(LOGITS, LABELS), spent, gated_budget=None)
        )
    torch.testing.assert_close(returns[0], returns[1])


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=2),
    accuracy=st.floats(0, 2),
    likelihood=st.floats(0, 2),
    spent=st.floats(0, 1),
)
def test_return_is_in_the_documented_range(logits, accuracy, likelihood, spent):
    weights = RewardWeights(
        accuracy=accuracy,
        log_likelihood=likelihood,
        cost=10.0,
        overshoot=2.0,
        cost_timing="terminal",
    )
    scores = score_predictions(torch.tensor([logits]), torch.tensor([0]))
    reward = float(
        terminal_reward(
            weights, scores, torch.tensor([spent], dtype=torch.float64), gated_budget=0.0
        )
    )
    assert -(likelihood + 10.0 + 2.0) - 1e-9 <= reward <= accuracy + 1e-9


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("accuracy", -0.1),
        ("log_likelihood", math.nan),
        ("cost", math.inf),
        ("cost", "x"),
        ("cost", None),
        ("cost", True),
        ("overshoot", -1.0),
        ("log_likelihood_floor", 0.0),
        ("cost_timing", "later"),
    ],
)
def test_values_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is"):
        RewardWeights(**{setting: value})


def test_numpy_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RewardWeights(cost=np.float32(5.0))
    with pytest.raises(ConfigError, match="cost is"):
        RewardWeights(cost=10**400)


def test_registered_terms_count_by_their_weights(monkeypatch):
    monkeypatch.setitem(
        REWARD_TERMS.data, "thrift", lambda scores, spent: scores.correct.double() * (1 - spent)
    )
    scores = score_predictions(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    spent = torch.tensor([0.25, 0.5], dtype=torch.float64)
    plain, weighted = (
        terminal_reward(RewardWeights(terms=terms), scores, spent, gated_budget=None)
        for terms in ((), (("thrift", 0.4),))
    )
    assert (weighted - plain).tolist() == pytest.approx([0.4 * 0.75, 0.0])
    assert reward_weights({"terms": {"thrift": 0.4}}).terms == (("thrift", 0.4),)
    with pytest.raises(ConfigError, match="novelty"):
        RewardWeights(terms=(("novelty", 1.0),))
