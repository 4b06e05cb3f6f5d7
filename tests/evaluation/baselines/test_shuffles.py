from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.evaluation.baselines import BASELINES
from dfs_rl.evaluation.baselines.shuffles import (
    ReplayGate,
    decisions_of,
    passes_run,
    shuffle_decisions,
    shuffle_options,
    shuffle_patterns,
)
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.gating.rules import Rule, RuleGate
from tests.evaluation.conftest import IMAGES, NETWORK, PASSES, MixBackbone, make_setup

GATE = RuleGate(
    [Rule(passes=PASSES, thresholds=(0.9, 0.75))],
    answer="mean",
    options=NETWORK.options,
    exits=(2,),
)


@pytest.fixture(scope="module")
def several():
    """Records of a gate whose images have one, two or three passes."""
    records = evaluate_gate(NETWORK, GATE, IMAGES)
    assert set(records.earlier.n_passes.tolist()) == {1, 2, 3}
    return records


def rows(decisions):
    """Return the decisions of each image, sorted."""
    options, mirrored = decisions
    return sorted(torch.cat([options, mirrored.long()[:, :, None]], dim=2).flatten(1).tolist())


@pytest.mark.parametrize("costs", [MixBackbone((0, 2, 32)).costs, NETWORK.costs])
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40))
def test_shuffling_keeps_marginals_exits_and_cost(costs, seed, n):
    generator = torch.Generator().manual_seed(seed)
    options = costs.canonicalize(torch.randint(0, costs.n_actions, (n, 4), generator=generator))
    shuffled = shuffle_options(options, generator, costs.exit_action)
    assert torch.equal(shuffled.sort(dim=0).values, options.sort(dim=0).values)
    assert torch.equal(costs.canonicalize(shuffled), shuffled)
    means = [float(costs.fractions(each).mean()) for each in (options, shuffled)]
    assert means[0] == pytest.approx(means[1])


def test_shuffling_makes_options_independent():
    # Each layer agrees with the image's half; afterwards neither holds.
    options = torch.arange(2).repeat_interleave(2000)[:, None].expand(-1, 2).contiguous()
    shuffled = shuffle_options(options, torch.Generator().manual_seed(0), 2).double()
    for other in (options[:, 0].double(), shuffled[:, 1]):
        # Agreement of independent halves is one half, with a standard error of 0.8 %.
        agreement = (shuffled[:, 0] == other).double().mean().item()
        assert agreement == pytest.approx(0.5, abs=0.03)


def test_replay_equals_the_gate(several):
    decisions = decisions_of(several)
    assert torch.equal(passes_run(decisions[0]).sum(dim=1), several.earlier.n_passes)
    gate = ReplayGate(decisions, answer="mean", name="replay")
    again = evaluate_gate(NETWORK, gate, IMAGES, batch_size=20)
    for field in ("predictions", "options", "log_likelihood", "confidence"):
        assert torch.equal(getattr(again, field), getattr(several, field))
    for field in ("options", "ran", "mirrored"):
        assert torch.equal(getattr(again.earlier, field), getattr(several.earlier, field))


def test_shuffled_patterns_stay_whole(several):
    decisions = decisions_of(several)
    shuffled = shuffle_patterns(decisions, torch.Generator().manual_seed(1), NETWORK.costs)
    assert rows(shuffled) == rows(decisions)
    assert not torch.equal(shuffled[0], decisions[0])


def test_shuffled_decisions_keep_marginals_of_every_pass():
    generator = torch.Generator().manual_seed(2)
    ran = torch.rand(200, 3, generator=generator).argsort(dim=1).cummax(dim=1).values < 2
    ran[:, 0] = True
    options = torch.randint(0, 3, (200, 3, 4), generator=generator)
    options = options.masked_fill(~ran[:, :, None], -1)
    mirrored = (torch.rand(200, 3, generator=generator) < 0.5) & ran
    assert torch.equal(passes_run(options), ran)
    costs = MixBackbone((0, 2, 32)).costs
    shuffled, views = shuffle_decisions((options, mirrored), generator, costs)
    assert not torch.equal(passes_run(shuffled), ran)
    assert torch.equal(
        shuffled.flatten(1).sort(dim=0).values, options.flatten(1).sort(dim=0).values
    )
    assert torch.equal(views.sum(dim=0), mirrored.sum(dim=0))


@pytest.mark.parametrize("key", ["random", "patterns"])
def test_draws_of_gates_with_passes(several, key):
    setup = replace(make_setup(NETWORK, IMAGES, IMAGES, several, several), passes=GATE.passes)
    (found,) = BASELINES[key](setup)
    spent = several.computation(NETWORK.costs).mean().item()
    for draw in found.records:
        assert draw.computation(NETWORK.costs).mean().item() == pytest.approx(spent)
        assert draw.mean_passes == several.mean_passes
        assert not torch.equal(draw.predictions, several.predictions)
