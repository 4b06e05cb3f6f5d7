import math

import pytest
import torch

from dfs_rl.gating.execution import run_layer, run_stem
from dfs_rl.gating.observation import cost_scale, observe
from tests.helpers.toy_backbone import CHANNELS, MACS, ToyBackbone, toy_images


def test_features_are_z_scores_padded_with_zeros():
    backbone = ToyBackbone()
    state = run_stem(backbone, toy_images(3))
    seen = observe(backbone, state, budget=None)
    assert seen.layer == 0
    assert seen.features.shape == (3, max(CHANNELS))
    assert seen.features.dtype == torch.float32
    for channel in range(CHANNELS[0]):
        mean = state.hidden[:, channel].reshape(3, -1).sum(dim=1) / 16
        expected = ((mean - channel) / 4.0).clamp(-10, 10)
        torch.testing.assert_close(seen.features[:, channel], expected)
    assert seen.features[:, CHANNELS[0] :].eq(0).all()


@pytest.mark.parametrize("std", [1e-3, 0.0])
def test_features_are_clipped(std):
    backbone = ToyBackbone()
    backbone.feature_std.fill_(std)
    state = run_stem(backbone, toy_images(4))
    for mean, limit in ((-1e3, 10.0), (1e3, -10.0)):
        backbone.feature_mean.fill_(mean)
        assert observe(backbone, state, budget=None).features[:, : CHANNELS[0]].eq(limit).all()


def test_a_constant_channel_is_zero():
    backbone = ToyBackbone()
    state = run_stem(backbone, toy_images(1))
    backbone.feature_mean[0, : CHANNELS[0]] = backbone.feature(state.hidden, 0)[0]
    backbone.feature_std.zero_()
    assert observe(backbone, state, budget=None).features.eq(0).all()


@pytest.mark.parametrize("bits", [0, 2, 4, 8, 32])
def test_cost_scale_is_log_of_uniform_bits(bits):
    fraction = torch.tensor([(bits / 32) ** 2], dtype=torch.float64)
    expected = math.log(1 + bits) / math.log(33)
    assert float(cost_scale(fraction)) == pytest.approx(expected, abs=1e-12)


def test_context_is_spent_budget_and_last_option():
    backbone = ToyBackbone()
    state = run_stem(backbone, toy_images(2))
    fixed = (160 * (8 / 32) ** 2 + 16) / sum(MACS)
    budget = 100 * ((4 / 32) ** 2 + fixed)  # leaves what uniform 4 bit costs
    begin = observe(backbone, state, budget=budget).context
    four_bits = math.log(5) / math.log(33)
    torch.testing.assert_close(begin, torch.tensor([[0.0, four_bits, 0.0]] * 2))

    # With a gate of 40 MACs, a budget that is larger by them leaves the same.
    with_gate = observe(backbone, state, budget=budget + 100 * 40 / sum(MACS), gate_macs=40.0)
    torch.testing.assert_close(with_gate.context, begin)

    state = run_layer(backbone, state, torch.tensor([0, 3]))
    after = observe(backbone, state, budget=None).context
    spent = MACS[0] / sum(MACS) * (8 / 32) ** 2
    expected = math.log2(1 + 32 * math.sqrt(spent)) / math.log2(33)
    torch.testing.assert_close(after, torch.tensor([[0.0, 1.0, 0.0], [expected, 1.0, 1.0]]))


def test_after_the_last_layer_features_are_zero():
    backbone = ToyBackbone()
    state = run_stem(backbone, toy_images(2))
    for layer in range(len(MACS)):
        state = run_layer(backbone, state, torch.tensor([layer, 3 - layer]))
    seen = observe(backbone, state, budget=None)
    assert seen.layer == len(MACS) - 1
    assert seen.features.eq(0).all()
    assert seen.context[:, 2].tolist() == [1.0, 0.0]
