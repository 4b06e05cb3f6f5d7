"""A gate that decides for all layers before the first: by what it saw there alone, for each image by itself."""

from pathlib import Path

import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import OneShotGate
from dfs_rl.gating.storage import load_gate, save_gate
from tests.gating.test_load import BITS, images, network
from tests.helpers.toy_backbone import CHANNELS

MENU = BitOptions((0, 2, 4, 8))


@pytest.fixture
def gate() -> OneShotGate:
    torch.manual_seed(0)
    made = OneShotGate(CHANNELS, MENU, hidden=5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)
    return made


def test_every_layer_is_told_what_was_decided_before_the_first(gate: OneShotGate) -> None:
    features, context = torch.randn(8, max(CHANNELS)), torch.rand(8, 3)
    seen = torch.cat([features[:, : CHANNELS[0]], context], dim=1)
    expected = gate.network(seen).view(8, len(CHANNELS), len(MENU))
    gate.reset(8)
    for layer in range(len(CHANNELS)):
        assert torch.equal(gate(features, layer, context), expected[:, layer])
        features, context = torch.randn_like(features), torch.rand_like(context)  # nothing to it
    assert len(torch.unique(expected.argmax(dim=2), dim=0)) > 1


def test_images_are_decided_on_by_themselves(gate: OneShotGate) -> None:
    features, context = torch.randn(8, max(CHANNELS)), torch.rand(8, 3)
    gate.reset(8)
    together = [gate.decide(features, layer, context) for layer in range(len(CHANNELS))]
    for image in range(8):
        gate.reset(1)
        one = slice(image, image + 1)
        alone = [gate.decide(features[one], layer, context[one]) for layer in range(len(CHANNELS))]
        assert [int(option) for option in alone] == [int(options[image]) for options in together]


def test_a_walk_that_ended_is_forgotten(gate: OneShotGate) -> None:
    gate.reset(8)
    gate(torch.randn(8, max(CHANNELS)), 0, torch.rand(8, 3))
    gate.reset(3)
    with pytest.raises(AssertionError, match="the first layer is asked first"):
        gate(torch.randn(3, max(CHANNELS)), 1, torch.rand(3, 3))


def test_a_stored_gate_steers_a_network_as_before(tmp_path: Path) -> None:
    backbone = network().to_inference()
    torch.manual_seed(1)
    gate = OneShotGate(backbone.feature_sizes, BitOptions(BITS), hidden=4, budget=60.0)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(6.0)
    save_gate(gate, tmp_path)
    again = load_gate(tmp_path)
    assert isinstance(again, OneShotGate)
    assert again.macs == gate.macs
    for budget in (None, 60.0):
        logits, trace = GatedModel(backbone, gate.eval(), budget=budget)(images())
        same, as_before = GatedModel(backbone, again, budget=budget)(images())
        assert torch.equal(logits, same)
        assert torch.equal(trace.options, as_before.options)
        assert budget is None or float(trace.computation.max()) <= budget
