"""Rollouts and the deployed model on the toy backbone."""

import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.execution import run_layer, run_stem
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.observation import observe
from dfs_rl.gating.rollout import rollout
from tests.helpers.random_gate import RandomGate
from tests.helpers.toy_backbone import (
    BITS,
    CHANNELS,
    IMAGE_SHAPE,
    MACS,
    ToyBackbone,
    run_alone_with_exits,
    toy_images,
)


def learned(*, kind=MLPGate, **settings):
    """Return a gate that chooses different options for different images."""
    torch.manual_seed(0)
    gate = kind(CHANNELS, BitOptions(BITS), **{"hidden": 4, **settings})
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(4.0)
    return gate


def test_table_equals_each_image_alone():
    backbone, images, table = ToyBackbone(), toy_images(5), [3, 0, 2, 1]
    result = rollout(backbone, TableGate(table), images)
    expected = [run_alone_with_exits(backbone, image, table).logits for image in images]
    assert torch.equal(result.logits, torch.stack(expected))
    assert result.options.tolist() == [table] * 5
    assert result.earlier is None


def test_learned_gate_equals_plain_loop():
    backbone, gate, images = ToyBackbone(), learned(), toy_images(16)
    together = rollout(backbone, gate, images)
    assert len(together.options.unique(dim=0)) > 1
    for i in range(16):
        state = run_stem(backbone, images[i : i + 1])
        for layer in range(4):
            seen = observe(backbone, state, budget=None)
            state = run_layer(backbone, state, gate.decide(seen.features, layer, seen.context))
        assert torch.equal(state.options[0], together.options[i])


@pytest.mark.parametrize("kind", [LSTMGate, OneShotGate])
def test_rollouts_do_not_share_the_memory_of_a_gate(kind):
    """As threads may interrupt each other, another one runs inside the first layer."""
    backbone, gate, images = ToyBackbone(), learned(kind=kind), toy_images(16)
    expected = rollout(backbone, gate, images).options
    layer, inner = backbone.layers[0], []

    def interrupted(hidden, bits):
        if not inner:
            inner.append(None)
            inner.append(rollout(backbone, gate, images[:5]).options)
        return layer(hidden, bits)

    backbone.layers[0] = interrupted
    assert torch.equal(rollout(backbone, gate, images).options, expected)
    assert torch.equal(inner[1], expected[:5])


@pytest.mark.parametrize("bits", [(0, 2, 4, 8), (2, 4, 8)])
@pytest.mark.parametrize("after", [(), (1, 2)])
def test_budget_bounds_every_image(bits, after):
    backbone, images = ToyBackbone(bits, exits=after), toy_images(64)
    gate = RandomGate(backbone.costs.n_actions, seed=1)
    free, bound = (
        backbone.costs.computation(rollout(backbone, gate, images, budget=budget).options).max()
        for budget in (None, 3.1)
    )
    assert free > 3.1 >= bound > 0.8 * 3.1


def test_budget_counts_the_gate():
    backbone, images = ToyBackbone(), toy_images(64)
    model = GatedModel(backbone, learned(), budget=30.0)
    assert float(model(images)[1].computation.max()) <= 30.0
    with pytest.raises(ConfigError, match="budget is 2 %"):
        GatedModel(backbone, learned(), budget=2.0)(images)


def test_budget_masks_logits_and_clamps_tables():
    backbone, images = ToyBackbone(), toy_images(3)
    gate = learned(hidden=1)
    with torch.no_grad():
        for network in gate.networks:
            network[2].weight.zero_()
            network[2].bias.copy_(torch.tensor([1.0, 2.0, 0.0, 3.0]))  # 8 bit, then 2, then 0
    # Each budget suffices for 8 bit in the first layers and for 4 bit in the last.
    for each, last in ((gate, 1), (TableGate([3, 3, 3, 3]), 2)):
        options = torch.tensor([[3, 3, 3, 2]])
        budget = float(backbone.costs.computation(options, gate_macs=each.macs))
        result = rollout(backbone, each, images, budget=budget)
        assert result.options.tolist() == [[3, 3, 3, last]] * 3


def test_trace_counts_everything():
    gate = learned()
    logits, trace = GatedModel(ToyBackbone(), gate)(toy_images(7))
    assert logits.shape == (7, 3)
    assert trace.bits.dtype == torch.int64
    assert trace.bits.tolist() == [[BITS[o] for o in row] for row in trace.options.tolist()]
    layers = torch.tensor(MACS) * (trace.bits / 32) ** 2
    macs = layers.sum(dim=1) + 160 * (8 / 32) ** 2 + 16 + gate.macs
    assert trace.computation.tolist() == pytest.approx((100 * macs / sum(MACS)).tolist())


def test_floats_in_0_1_equal_bytes():
    model, images = GatedModel(ToyBackbone(), learned()).eval(), toy_images(4)
    assert torch.equal(model(images)[0], model(images.float() / 255)[0])


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (MLPGate(CHANNELS, BitOptions((0, 2, 4))), r"chooses from \[0, 2, 4\] bit"),
        (MLPGate((2, 2, 4), BitOptions(BITS)), r"reads \[2, 2, 4\] features"),
        (TableGate([0, 0, 0, 0], options=BitOptions((0, 2, 4))), r"chooses from \[0, 2, 4\] bit"),
        (TableGate([0, 0, 0]), "needs 4 options"),
        (TableGate([0, 0, 0, 4]), "from 0 to 3"),
    ],
)
def test_gate_of_another_network(gate, message):
    with pytest.raises(CheckpointError, match=message):
        GatedModel(ToyBackbone(), gate)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, *IMAGE_SHAPE), r"\[0, 2, 4, 4\].*\[batch, 2, 4, 4\] with at least one"),
        (torch.zeros(*IMAGE_SHAPE), r"\[2, 4, 4\].*\[batch, 2, 4, 4\]"),
        (torch.zeros(2, *IMAGE_SHAPE)[..., :-1], r"\[2, 2, 4, 3\].*\[batch, 2, 4, 4\]"),
        (torch.zeros(2, *IMAGE_SHAPE, device="meta"), "on meta.*on cpu"),
        (torch.full((2, *IMAGE_SHAPE), 255.0), r"255 to 255; .*divide by 255 or pass uint8"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(DataError, match=message):
        GatedModel(ToyBackbone(), TableGate((0,) * 4))(images)
