import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.gating.execution import run_head, run_layer, run_stem
from tests.helpers.toy_backbone import (
    BITS,
    MACS,
    RISES_AT,
    ToyBackbone,
    ToyLayer,
    run_alone,
    toy_images,
)

option_rows = st.lists(
    st.lists(st.integers(0, len(BITS) - 1), min_size=4, max_size=4), min_size=1, max_size=12
)


def run_layers(backbone, images, options, *, reuse):
    state = run_stem(backbone, images)
    for layer in range(len(MACS)):
        state = run_layer(backbone, state, options[:, layer], reuse=reuse)
    return state


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@settings(max_examples=30)
@given(rows=option_rows)
def test_batch_equals_each_image_alone(rows, reuse, grad, channels_last):
    if reuse and grad:
        return
    backbone = ToyBackbone()
    images = toy_images(len(rows))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad):
        state = run_layers(backbone, images, torch.tensor(rows), reuse=reuse)
        logits = run_head(backbone, state)
    expected = torch.stack(
        [run_alone(backbone, image, row) for image, row in zip(images, rows, strict=True)]
    )
    assert torch.equal(state.hidden, expected)
    assert torch.equal(logits, backbone.head(expected))
    assert state.options.tolist() == rows
    assert state.layer == len(MACS)
    for row, spent in zip(rows, state.spent.tolist(), strict=True):
        by_hand = sum(m * (BITS[o] / 32) ** 2 for m, o in zip(MACS, row, strict=True)) / sum(MACS)
        assert spent == pytest.approx(by_hand, abs=1e-15)


@torch.no_grad()
def test_each_group_runs_once():
    backbone = ToyBackbone()
    state = run_stem(backbone, toy_images(6))
    options = torch.tensor([3, 0, 1, 0, 3, 3])
    for layer in range(4):
        state = run_layer(backbone, state, options)
        shortcut_alone = [(0, 2)] if layer == RISES_AT else []  # skipped samples stay elsewhere
        assert sorted(backbone.layers[layer].seen) == [*shortcut_alone, (2, 1), (8, 3)]


@pytest.mark.parametrize("reuse", [False, True])
@torch.no_grad()
def test_layer_with_a_mandatory_part_runs_at_0_bit(reuse):
    class Adaptive(ToyLayer):
        runs_when_skipped = True

        def __call__(self, hidden, bits):
            return super().__call__(hidden, bits) + (10 if bits == 0 else 1)

    backbone = ToyBackbone()
    backbone.layers = [Adaptive(layer.weight, rises=layer.rises) for layer in backbone.layers]
    rows = [[0, 1, 2, 0], [3, 0, 0, 0], [0, 0, 3, 1], [1, 2, 0, 3]]
    state = run_layers(backbone, toy_images(4), torch.tensor(rows), reuse=reuse)
    alone = [run_alone(backbone, i, row) for i, row in zip(toy_images(4), rows, strict=True)]
    assert torch.equal(state.hidden, torch.stack(alone))


@torch.no_grad()
def test_reuse_overwrites_the_earlier_state():
    backbone = ToyBackbone()
    state = run_stem(backbone, toy_images(5))
    before = state.hidden.clone()
    options = torch.tensor([0, 1, 2, 3, 1])
    kept = run_layer(backbone, state, options)
    assert torch.equal(state.hidden, before)
    assert state.options.eq(0).all()
    overwritten = run_layer(backbone, state, options, reuse=True)
    assert torch.equal(kept.hidden, overwritten.hidden)
    assert overwritten.hidden.data_ptr() == state.hidden.data_ptr()


@torch.no_grad()
def test_images_stay_unchanged():
    class Transparent(ToyBackbone):
        def stem(self, images):
            return images

    images = toy_images(4).float()
    before = images.clone()
    options = torch.tensor([[0, 1, 2, 3]] * 2 + [[3, 2, 1, 0]] * 2)
    run_layers(Transparent(), images, options, reuse=True)
    assert torch.equal(images, before)


def test_gradients_equal_each_image_alone():
    rows = [[0, 1, 2, 3], [3, 3, 0, 1], [2, 0, 3, 0], [1, 1, 1, 1]]
    images = toy_images(len(rows))
    grouped, alone = ToyBackbone(), ToyBackbone()
    state = run_layers(grouped, images, torch.tensor(rows), reuse=False)
    run_head(grouped, state).square().sum().backward()
    for image, row in zip(images, rows, strict=True):
        alone.head(run_alone(alone, image, row)[None]).square().sum().backward()
    for ours, theirs in zip(grouped.weights, alone.weights, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=0)
