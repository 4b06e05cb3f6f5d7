"""Gates that take exits: decisions, MACs and storage."""

import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import ExitInfo, LSTMGate, MLPGate, exit_info
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import BITS, CHANNELS, MACS, ToyBackbone, toy_images

EXIT = len(BITS)
kinds = pytest.mark.parametrize("kind", [MLPGate, LSTMGate])


def test_rollout_ends_when_all_have_left():
    backbone = ToyBackbone(exits=(2,))
    result = rollout(backbone, TableGate([1, 2, EXIT, 3]), toy_images(6))
    assert result.options.tolist() == [[1, 2, EXIT, EXIT]] * 6
    assert [len(layer.seen) for layer in backbone.layers] == [1, 1, 0, 0]


def learned(kind, after):
    """Return a backbone and a gate that takes every action for some images."""
    torch.manual_seed({MLPGate: 1, LSTMGate: 7}[kind])
    backbone = ToyBackbone(exits=after)
    gate = kind(CHANNELS, BitOptions(BITS), hidden=4, feature_macs=6.0, exits=exit_info(backbone))
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 0.0)
    return backbone, gate


@kinds
@pytest.mark.parametrize("budget", [None, 72.0])
def test_learned_gate_decides_the_same_in_any_batch(kind, budget):
    backbone, gate = learned(kind, (1, 2, 3))
    images = toy_images(40)
    together = rollout(backbone, gate, images, budget=budget)
    assert len(together.options.unique(dim=0)) > 2
    assert 0 < int((together.options == EXIT).any(dim=1).sum()) < 40
    for i in range(40):
        alone = rollout(backbone, gate, images[i : i + 1], budget=budget)
        assert torch.equal(alone.options[0], together.options[i])
        assert torch.equal(alone.logits[0], together.logits[i])


@kinds
def test_gate_macs_count_until_the_exit(kind):
    backbone, gate = learned(kind, (1, 2, 3))
    own, features = gate.layer_macs, backbone.layer_feature_macs
    by_hand = [
        sum(own[:2]) + sum(features[:1]),  # two decisions; the exit's head belongs to the exit
        sum(own[:4]) + sum(features[:3]),
        sum(own) + sum(features),
    ]
    assert gate.macs_taken(torch.tensor([1, 3, 4])).tolist() == pytest.approx(by_hand)
    assert gate.least_macs == pytest.approx(by_hand[0])
    costs, trace = backbone.costs, GatedModel(backbone, gate)(toy_images(9))[1]
    macs = gate.macs_taken(costs.n_layers_run(trace.options))
    assert torch.equal(trace.computation, costs.computation(trace.options, gate_macs=macs))
    ran = [[o for o in row if o < EXIT] for row in trace.options.tolist()]
    assert trace.n_layers_run.tolist() == [len(row) for row in ran]
    bits = [[BITS[o] for o in row] + [0] * (4 - len(row)) for row in ran]
    assert trace.bits.tolist() == bits


@pytest.mark.parametrize("budget", [None, 50.0])
def test_exit_action_without_exit_is_cheapest(budget):
    backbone, gate = learned(MLPGate, (3,))
    with torch.no_grad():
        for network in gate.networks:
            network[2].weight.zero_()
            network[2].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]))
    result = rollout(backbone, gate, toy_images(3), budget=budget)
    assert result.options.tolist() == [[0, 0, 0, EXIT]] * 3


@kinds
def test_stored_gate_keeps_its_exits(kind, tmp_path):
    backbone, gate = learned(kind, (1, 3))
    save_gate(gate, tmp_path)
    again, images = load_gate(tmp_path), toy_images(20)
    known = ExitInfo(after=(1, 3), layer_feature_macs=backbone.layer_feature_macs)
    assert again.exits == gate.exits == known
    options = [rollout(backbone, each, images).options for each in (gate, again)]
    assert torch.equal(*options)
    with pytest.raises(CheckpointError, match=r"exits after \[1, 3\] gated layers"):
        GatedModel(ToyBackbone(exits=(1, 2)), gate)


def test_exit_of_a_network_without_exits():
    with pytest.raises(ConfigError, match="0 to 3"):
        TableGate([1, EXIT, 0, 0], options=BitOptions(BITS))
    with pytest.raises(CheckpointError, match="from 0 to 3"):
        GatedModel(ToyBackbone(), TableGate([1, EXIT, 0, 0]))


def test_exits_exclude_choices():
    known = ExitInfo(after=(1,), layer_feature_macs=(0.0,) * len(MACS))
    with pytest.raises(ConfigError, match=r"choices are \[0, 3\], but a gate with exits"):
        MLPGate(CHANNELS, BitOptions(BITS), choices=(0, 3), exits=known)
