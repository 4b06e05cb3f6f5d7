"""A gate that may choose a part of the menu alone never chooses anything else, in memory, on disk and within a hard budget."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import CHANNELS

MENU = BitOptions((0, 2, 4, 8))
KINDS = [MLPGate, LSTMGate, OneShotGate]
CHOICES = [(0,), (3,), (0, 3), (1, 2), (0, 1, 3)]


def make_gate(
    kind: type[LearnedGate], choices: tuple[int, ...] | None, *, seed: int = 0
) -> LearnedGate:
    torch.manual_seed(seed)
    gate = kind(CHANNELS, MENU, hidden=5, choices=choices)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(5.0)
    return gate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choices", CHOICES)
def test_nothing_else_is_ever_chosen(kind: type[LearnedGate], choices: tuple[int, ...]) -> None:
    others = [option for option in range(len(MENU)) if option not in choices]
    seen = set()
    for seed in range(5):
        gate = make_gate(kind, choices, seed=seed)
        gate.reset(64)
        for layer in range(len(CHANNELS)):
            features, context = 9 * torch.randn(64, max(CHANNELS)), torch.rand(64, 3)
            logits = gate(features, layer, context)
            assert logits[:, others].eq(-torch.inf).all()
            assert logits[:, list(choices)].isfinite().all()
            seen |= set(gate.decide(features, layer, context).tolist())
            # Masks of a hard budget allow the cheapest options up to some point.
            dearest = torch.randint(len(MENU), (64, 1))
            allowed = torch.arange(len(MENU)) <= dearest
            within = gate.decide(features, layer, context, allowed)
            assert set(within.tolist()) <= set(choices)
            assert bool((within[:, None] <= dearest.clamp(min=choices[0])).all())
    assert seen == set(choices)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_what_may_not_be_chosen_are_zero_and_not_nan(kind: type[LearnedGate]) -> None:
    gate = make_gate(kind, (0, 3))
    gate.reset(6)
    logits = gate(torch.randn(6, max(CHANNELS)), 0, torch.rand(6, 3))
    chances = logits.softmax(dim=1)
    assert chances[:, [1, 2]].eq(0).all()
    (chances[:, 0].log() + chances @ torch.arange(4.0)).sum().backward()
    gradients = [p.grad for p in gate.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_scores_of_what_may_be_chosen_cost_anything(kind: type[LearnedGate]) -> None:
    gate, features, context = (
        make_gate(kind, (0, 3)),
        torch.randn(1, max(CHANNELS)),
        torch.rand(1, 3),
    )
    with FlopCounterMode(display=False) as counter:
        for layer in range(len(CHANNELS)):
            gate.decide(features, layer, context)
    assert gate.macs == counter.get_total_flops() / 2
    assert make_gate(kind, None).macs - gate.macs == len(CHANNELS) * 5 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_gate_may_still_choose_the_same_alone(
    kind: type[LearnedGate], tmp_path: Path
) -> None:
    gate = make_gate(kind, (0, 3))
    save_gate(gate, tmp_path)
    again = load_gate(tmp_path)
    assert not isinstance(again, TableGate)
    assert (again.choices, again.options) == ((0, 3), MENU)
    features, context = torch.randn(9, max(CHANNELS)), torch.rand(9, 3)
    for layer in range(len(CHANNELS)):
        assert torch.equal(gate(features, layer, context), again(features, layer, context))
    record = json.loads((tmp_path / "gate.json").read_text())
    for damage in ([], [0, 4], [3, 0], [0, 0], ["0"], [-1], 3, [1, 2, 3]):
        (tmp_path / "gate.json").write_text(json.dumps(record | {"choices": damage}))
        with pytest.raises(CheckpointError, match=r"gate\.(json|safetensors)"):
            load_gate(tmp_path)


def test_a_gate_for_the_whole_menu_is_stored_as_ever(tmp_path: Path) -> None:
    gate = make_gate(MLPGate, (0, 1, 2, 3))
    save_gate(gate, tmp_path)
    assert "choices" not in json.loads((tmp_path / "gate.json").read_text())
    again = load_gate(tmp_path)
    assert not isinstance(again, TableGate)
    assert again.choices == (0, 1, 2, 3)


@pytest.mark.parametrize("choices", [(), (0, 4), (2, 1), (1, 1), (-1, 0)])
def test_choices_that_are_not_on_the_menu_are_refused(choices: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"choices are \[.*from 0 to 3"):
        MLPGate(CHANNELS, MENU, choices=choices)
