"""The point of a gate for all budgets that is shown in training is that which ships."""

import pytest

from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.session import RunSession, shipped_point

CURVE = [(0.5, 80.0), (1.0, 90.0), (2.0, 94.0), (4.0, 95.0)]  # costs double in equal steps


@pytest.mark.parametrize(
    ("settings", "computation", "accuracy"),
    [
        ({"budget": 1.0}, 1.0, 90.0),
        ({"budget": 2.0**0.5}, 2.0**0.5, 92.0),  # halfway in log cost
        ({"budget": 9.0}, 4.0, 95.0),
        ({"budget": 0.1}, 0.5, 80.0),  # not within reach: the cheapest
        ({"max_accuracy_drop": 2.0}, 2.0, 94.0),
        ({"max_accuracy_drop": 0.1}, 4.0, 95.0),  # not within reach: the most accurate
        ({}, 2.0, 94.0),  # at the preference of the cost weight
    ],
)
def test_shown_point_is_that_of_the_aim(settings, computation, accuracy):
    config = TrainAgentConfig(**settings)
    point = shipped_point(config, CURVE, preference=2 / 3, full_precision_accuracy=95.5)
    assert point == pytest.approx({"computation": computation, "accuracy": accuracy})


def test_validations_report_the_budget_and_store_means(tmp_path, monkeypatch):
    """The reported computation is within the budget, which the mean over all budgets is not."""
    import dfs_rl

    reported, stored = [], []
    create = RunSession.__init__

    def listen(self, run, state_type, *, report):
        create(self, run, state_type, report=lambda steps, record: reported.append(dict(record)))

    monkeypatch.setattr(RunSession, "__init__", listen)
    config = TrainGumbelConfig()
    lowest = 0.9
    dfs_rl.train_gate(
        None,
        "digits",
        method=config.method,
        timesteps=600,
        eval_every=300,
        budgets=[0.8, 8.0],
        budget=lowest,
        callback=lambda record: stored.append(dict(record)),
        run_dir=tmp_path / "run",
    )
    assert len(reported) == len(stored) >= 3
    for shown, kept in zip(reported, stored, strict=True):
        least = min(cost for cost, _ in kept["points"])
        assert shown["computation"] == pytest.approx(max(lowest, least))
        assert shown["computation"] < kept["computation"]
        assert shown["reward"] == kept["reward"]
