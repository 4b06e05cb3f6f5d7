import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.backbones import default_digits
from dfs_rl.envs.descriptors import layer_descriptors, observe_layer, round_to_option
from tests.helpers.toy_backbone import MACS, ToyBackbone


def test_the_toy_network_is_described_by_hand():
    # Layer 2 halves 4 x 4 positions and doubles 2 channels.
    weights = np.array([MACS[0] / 16, MACS[1] / 16, MACS[2] / 4, MACS[3] / 4])
    expected = np.stack(
        [
            np.arange(4) / 3,
            np.array([2, 2, 2, 4]) / 4,
            np.array([2, 2, 4, 4]) / 4,
            np.array([16, 16, 16, 4]) / 16,
            np.array([0, 0, 0.75, 0]),
            np.array(MACS) / max(MACS),
            weights / weights.max(),
            np.array([0, 0, 1, 0]),
        ],
        axis=1,
    )
    np.testing.assert_allclose(layer_descriptors(ToyBackbone()), expected, rtol=1e-6)


def test_weights_are_those_of_the_convolutions():
    backbone = default_digits()
    counts = np.array([b.conv1.weight.numel() + b.conv2.weight.numel() for b in backbone.layers])
    described = layer_descriptors(backbone.to_inference())
    np.testing.assert_allclose(described[:, 6], counts / counts.max(), rtol=1e-6)
    assert described.min() >= 0
    assert described.max() <= 1


def test_what_was_chosen_before_follows_the_layer():
    fixed = layer_descriptors(ToyBackbone())
    seen = observe_layer(fixed, 2, previous=0.25, spent=(8 / 32) ** 2)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen[:8], fixed[2])
    assert seen[8:] == pytest.approx([0.25, np.log2(9) / np.log2(33)])
    np.testing.assert_array_equal(observe_layer(fixed, 4, previous=0, spent=1)[:8], fixed[3])


@given(st.floats(0, 1), st.integers(1, 12))
def test_a_continuous_action_is_rounded_as_by_haq(action, n):
    option = round_to_option(action, n)
    assert 0 <= option < n
    # HAQ rounds action * n - 1/2; at the edges between two options either will do.
    assert abs(action * n - 0.5 - option) <= 0.5 + 1e-9


@given(st.integers(1, 12))
def test_the_middle_of_each_stretch_is_its_option(n):
    assert [round_to_option((option + 0.5) / n, n) for option in range(n)] == list(range(n))
    assert round_to_option(1.0, n) == n - 1
