"""Beginning at uniform options: what they are worth by hand, and a gate that chooses them before it has learned anything."""

import json
import math

import pytest
import torch

from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.hyperparameters import BuiltKind
from dfs_rl.agents.pretraining import (
    UniformOptionRewards,
    behavior_cloning,
    best_uniform_at_cost_weight,
    best_uniform_within_budget,
    evaluate_uniform_options,
    pretraining_images,
    target_probabilities,
)
from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.data import ImageSet
from dfs_rl.envs.task import Task
from dfs_rl.gating.budget_conditioning import BudgetConditioning, CostWeightRange
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.gating.rollout import rollout
from dfs_rl.train_agent import main
from dfs_rl.train_gumbel import main as train_gumbel
from tests.agents.conftest import MENU, PlantedBackbone

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.5, cost=0.9)
# Of the nine combinations of needs, as many are met by the option at index 0, 1 and 2; logits are 3 and -3.
RIGHT = (1 / 9, 4 / 9, 1.0)
LIKELIHOOD = math.log1p(math.exp(-6.0)) / 3
FREE = [p * (1.0 - 0.5 * LIKELIHOOD) - (1.0 - p) * 0.5 for p in RIGHT]
SPENT = [(bits / 32) ** 2 for bits in MENU]


POSITIONS = torch.linspace(0.0, 1.0, 101)


def make_task(
    images, *, budget: float | None = None, cost_weight_range: CostWeightRange | None = None
) -> Task:
    return Task(
        backbone=PlantedBackbone(),
        images=images,
        reward=WEIGHTS,
        budget=budget,
        class_names=("no", "yes"),
        cost_weight_range=cost_weight_range,
    )


def begin(gate: LearnedGate, task: Task, *, seed: int) -> None:
    behavior_cloning(gate, task.backbone, task.images, best_uniform_at_cost_weight(task), seed=seed)


def test_worth_is_that_of_hand_counted_answers(planted_images):
    worth = evaluate_uniform_options(PlantedBackbone(), planted_images, WEIGHTS)
    assert worth.rewards.tolist() == pytest.approx(FREE)
    assert worth.spent.tolist() == pytest.approx(SPENT)
    for price in (0.0, 0.5, 0.9, 1.5, 3.0, 10.0):
        by_hand = [free - price * spent for free, spent in zip(FREE, SPENT, strict=True)]
        best = worth.best_at(torch.tensor([price], dtype=torch.float64))
        assert best.tolist() == [by_hand.index(max(by_hand))]


def test_no_option_above_a_hard_budget_is_wanted(planted_images):
    free = torch.zeros(1, dtype=torch.float64)
    bounded = evaluate_uniform_options(PlantedBackbone(), planted_images, WEIGHTS, budget=60.0)
    assert bounded.best_at(free).tolist() == [1]
    with_gate = evaluate_uniform_options(
        PlantedBackbone(), planted_images, WEIGHTS, budget=60.0, gate_macs=80.0
    )
    assert with_gate.best_at(free).tolist() == [0]
    unbounded = evaluate_uniform_options(PlantedBackbone(), planted_images, WEIGHTS)
    assert unbounded.best_at(free).tolist() == [2]


def test_of_options_of_equal_worth_the_cheaper_one_is_wanted():
    equal = torch.ones(3, dtype=torch.float64)
    worth = UniformOptionRewards(equal, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    assert worth.best_at(0.0 * one).tolist() == worth.best_within(one).tolist() == [0]


def test_within_a_target_the_most_that_it_affords_is_wanted_and_else_the_cheapest():
    # The dearest option is worth less than the one before it.
    worth = UniformOptionRewards(
        torch.tensor([-2.3, -0.9, -0.4, -0.5], dtype=torch.float64),
        torch.tensor([0.1, 0.2, 0.4, 1.0], dtype=torch.float64),
    )
    targets = torch.tensor([0.05, 0.1, 0.19, 0.2, 0.39, 0.5, 1.0], dtype=torch.float64)
    assert worth.best_within(targets).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_odds_fall_with_the_square_of_the_distance_and_exits_are_neighbours():
    exits = (ExitCost(after=1, macs=5, bits=32),)
    menu = BitOptions((0, 2, 4, 32))
    plain = CostTable(options=menu, layer_macs=(100, 100))
    leaving = CostTable(options=menu, layer_macs=(100, 100), exits=exits)
    target_options = torch.tensor([0, 2])
    odds = target_probabilities(target_options, plain, 0)
    assert odds.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    relative = (odds / odds.gather(1, target_options[:, None])).log()
    expected = torch.tensor([[0.0, -2.0, -8.0, -18.0], [-8.0, -2.0, 0.0, -2.0]])
    torch.testing.assert_close(relative, expected)
    assert target_probabilities(target_options, leaving, 0)[:, -1].tolist() == [0.0, 0.0]
    at_exit = target_probabilities(target_options, leaving, 1)
    assert (at_exit[:, -1] / at_exit.amax(dim=1)).log().tolist() == pytest.approx([-2.0, -2.0])


@pytest.mark.parametrize("kind", ["ff", "lstm"])
@pytest.mark.parametrize("budget_conditioning", [True, False])
def test_a_gate_begins_at_the_option_that_is_worth_most_at_its_price(
    planted_images, kind, budget_conditioning
):
    cost_weight_range = CostWeightRange(lowest=0.5, highest=8.0)
    task = make_task(
        planted_images, cost_weight_range=cost_weight_range if budget_conditioning else None
    )
    gate = untrained(kind, budget_conditioning=budget_conditioning)
    begin(gate, task, seed=3)
    where = (
        cost_weight_range.at(POSITIONS.double())
        if budget_conditioning
        else torch.tensor([0.9]).double()
    )
    target_options = evaluate_uniform_options(task.backbone, planted_images, WEIGHTS).best_at(where)
    assert len(set(target_options.tolist())) == (3 if budget_conditioning else 1)
    assert share_of_wanted(gate, planted_images, target_options) > 0.95


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_a_gate_begins_at_what_its_budget_affords(planted_images, kind):
    gate = untrained(kind, budget_conditioning=True)
    # Uniform options cost 0, 0.25 and 1: two thirds of the dial afford the second, one third the last as well.
    target_options = best_uniform_within_budget(PlantedBackbone(), lambda at: 0.25 + 1.125 * at)
    behavior_cloning(gate, PlantedBackbone(), planted_images, target_options, seed=3)
    affordable = torch.where(POSITIONS < 2 / 3, 1, 2)
    assert share_of_wanted(gate, planted_images, affordable) > 0.95


def test_the_same_seed_begins_the_same(planted_images):
    def begun(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        gate = untrained_gate(PlantedBackbone(), kind="ff", features="all", hidden=4)
        begin(gate, make_task(planted_images), seed=seed)
        return [p.detach() for p in gate.parameters()]

    first, again, other = begun(1), begun(1), begun(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def untrained(kind: BuiltKind, *, budget_conditioning: bool) -> LearnedGate:
    torch.manual_seed(0)
    return untrained_gate(
        PlantedBackbone(),
        kind=kind,
        features="all",
        hidden=8,
        budget_conditioning=BudgetConditioning() if budget_conditioning else None,
    )


def share_of_wanted(gate: LearnedGate, images: ImageSet, target_options: torch.Tensor) -> float:
    """Return how many choices are the wanted one, which is one for each of ``POSITIONS``, or one alone without a dial."""
    right = []
    for preference, option in zip(
        POSITIONS, target_options.expand(len(POSITIONS)).tolist(), strict=True
    ):
        at = None if gate.budget_conditioning is None else preference.expand(len(images))
        chosen = rollout(PlantedBackbone(), gate, images.images, preferences=at).options
        right.append((chosen == option).double().mean())
    return float(torch.stack(right).mean())


TINY = ["--timesteps", "768", "--num-envs", "64", "--eval-every", "384"]


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent_ppo"])
def test_the_same_seed_gives_the_same_agent(tmp_path, capsys, algorithm):
    weights = []
    for name in ("first", "again"):
        flags = [*TINY, "--algo", algorithm, "--run-dir", str(tmp_path / name)]
        assert main(flags) == 0
        weights.append((tmp_path / name / "gate" / "gate.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_before_the_first_decision_an_agent_does_what_uniform_bits_do(tmp_path, capsys):
    first = {}
    for start in ("uniform", "indifferent"):
        run = tmp_path / start
        assert main([*TINY, "--start", start, "--run-dir", str(run)]) == 0
        first[start] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        seen = json.loads((run / "training.json").read_text())["images_seen"]["gate"]
        began = pretraining_images(
            CostTable(options=BitOptions((0, 2, 3, 4, 8, 32)), layer_macs=(1,))
        )
        assert seen == 128 + (began if start == "uniform" else 0)
    assert first["uniform"]["timesteps"] == first["indifferent"]["timesteps"] == 0
    assert first["uniform"]["accuracy"] > 85.0 > 30.0 > first["indifferent"]["accuracy"]


def test_before_the_first_decision_a_gumbel_gate_keeps_its_budgets(tmp_path, capsys):
    first = {}
    for start in ("uniform", "indifferent"):
        run = tmp_path / start
        flags = ["--timesteps", "768", "--eval-every", "768"]
        assert train_gumbel([*flags, "--start", start, "--run-dir", str(run)]) == 0
        first[start] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        seen = json.loads((run / "training.json").read_text())["images_seen"]["gate"]
        assert seen == 128 + (2048 * 7 if start == "uniform" else 0)
    assert first["uniform"]["timesteps"] == first["indifferent"]["timesteps"] == 0
    assert first["uniform"]["accuracy"] > 85.0
    assert first["uniform"]["computation"] < 5.0 < first["indifferent"]["computation"]


@pytest.mark.parametrize("flags", [["--method", "dfs"], ["--backbone-mode", "co-train"]])
def test_a_gate_of_a_paper_begins_as_the_paper_says(flags, refusal):
    sentence = refusal(train_gumbel, ["--start", "uniform", *flags])
    assert "start is 'uniform'" in sentence
    assert "it takes method 'gumbel' and a frozen backbone" in sentence


@pytest.mark.parametrize(
    "flags", [["--algo", "dqn"], ["--backbone-mode", "co-train"], ["--init-gate", "elsewhere"]]
)
def test_what_cannot_begin_uniform_says_so(flags, refusal):
    sentence = refusal(main, ["--start", "uniform", *flags])
    assert "start is 'uniform'" in sentence
    assert "an algorithm with an actor, a frozen backbone and no gate to go on from" in sentence
