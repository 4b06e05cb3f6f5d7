"""Layers and exits: each image as if it ran alone, and nothing runs for skips and leavers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.gating import execution
from dfs_rl.gating.execution import advance, run_layer, run_stem
from tests.helpers.toy_backbone import (
    BITS,
    RISES_AT,
    ToyBackbone,
    ToyLayer,
    run_alone,
    run_alone_with_exits,
    toy_images,
)

EXIT = len(BITS)
action_rows = st.lists(
    st.lists(st.integers(0, EXIT), min_size=4, max_size=4), min_size=1, max_size=12
)
exits = st.lists(st.integers(0, 3), max_size=4, unique=True).map(sorted)


def run(backbone, images, actions, *, reuse=False):
    """Return logits, options and costs of a batch at given actions, in order."""
    state, finished = run_stem(backbone, images), []
    while state.layer < 4 and len(state.spent):
        chosen = actions[:, state.layer]
        chosen = chosen if state.rows is None else chosen[state.rows]
        state, ended = advance(backbone, state, chosen, reuse=reuse)
        finished += ended
    rows = [torch.arange(len(images)) if s.rows is None else s.rows for s, _ in finished]
    values = zip(*((logits, s.options, s.spent) for s, logits in finished), strict=True)
    return tuple(torch.cat(parts)[torch.cat(rows).argsort()] for parts in values)


@pytest.mark.parametrize(("reuse", "grad"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("channels_last", [False, True])
@settings(max_examples=40)
@given(rows=action_rows, after=exits)
def test_batch_equals_each_image_alone(rows, after, reuse, grad, channels_last):
    backbone, images = ToyBackbone(exits=after), toy_images(len(rows))
    rows = [[min(action, backbone.costs.n_actions - 1) for action in row] for row in rows]
    actions = torch.tensor(rows)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.set_grad_enabled(grad):
        logits, options, spent = run(backbone, images, actions, reuse=reuse)
    alone = [run_alone_with_exits(backbone, i, row) for i, row in zip(images, rows, strict=True)]
    assert torch.equal(logits, torch.stack([one.logits for one in alone]))
    assert options.tolist() == [one.options for one in alone]
    assert torch.equal(options, backbone.costs.canonicalize(actions))
    assert spent.tolist() == pytest.approx(backbone.costs.fractions(options).tolist(), abs=1e-15)
    computation = backbone.costs.computation(options)
    assert computation.tolist() == pytest.approx([one.macs / 10 for one in alone])
    assert torch.equal(images, before)


@torch.no_grad()
def test_each_group_runs_once():
    backbone, options = ToyBackbone(), torch.tensor([3, 0, 1, 0, 3, 3])
    run(backbone, toy_images(6), options[:, None].expand(6, 4))
    for layer in range(4):
        shortcut_alone = [(0, 2)] if layer == RISES_AT else []  # skipped samples stay elsewhere
        assert sorted(backbone.layers[layer].seen) == [*shortcut_alone, (2, 1), (8, 3)]


@torch.no_grad()
def test_nothing_runs_for_images_that_have_left():
    backbone = ToyBackbone(exits=(1, 2))
    rows = [[3, EXIT, 3, 3], [3, 3, EXIT, 3], [3, EXIT, 3, 3], [3, 3, 3, 3], [3, 3, EXIT, 3]]
    run(backbone, toy_images(5), torch.tensor(rows), reuse=True)
    assert [layer.seen for layer in backbone.layers] == [[(8, 5)], [(8, 3)], [(8, 1)], [(8, 1)]]
    assert backbone.answered == [(1, 2), (2, 2)]


@pytest.mark.parametrize("reuse", [False, True])
@torch.no_grad()
def test_layer_with_a_mandatory_part_runs_at_0_bit(reuse):
    class Adaptive(ToyLayer):
        runs_when_skipped = True

        def __call__(self, hidden, bits):
            return super().__call__(hidden, bits) + (10 if bits == 0 else 1)

    backbone, images = ToyBackbone(), toy_images(4)
    backbone.layers = [Adaptive(layer.weight, rises=layer.rises) for layer in backbone.layers]
    rows = [[0, 1, 2, 0], [3, 0, 0, 0], [0, 0, 3, 1], [1, 2, 0, 3]]
    logits = run(backbone, images, torch.tensor(rows), reuse=reuse)[0]
    alone = [run_alone(backbone, image, row) for image, row in zip(images, rows, strict=True)]
    assert torch.equal(logits, backbone.head(torch.stack(alone)))


@torch.no_grad()
def test_reuse_overwrites_the_earlier_state():
    backbone, options = ToyBackbone(), torch.tensor([0, 1, 2, 3, 1])
    state = run_stem(backbone, toy_images(5))
    before = state.hidden.clone()
    kept = run_layer(backbone, state, options)
    assert torch.equal(state.hidden, before)
    assert state.options.eq(0).all()
    overwritten = run_layer(backbone, state, options, reuse=True)
    assert torch.equal(kept.hidden, overwritten.hidden)
    assert overwritten.hidden.data_ptr() == state.hidden.data_ptr()


@pytest.mark.parametrize("reuse", [False, True])
@torch.no_grad()
def test_large_groups_run_in_slabs(reuse, monkeypatch):
    monkeypatch.setattr(execution, "_SLAB_BYTES", 2**12)
    backbone, large = ToyBackbone(), torch.rand(20, 2, 16, 16)  # 2 KiB each
    for layer in range(3):
        for options in (torch.full((20,), 2), torch.tensor([3, 0, 3, 3, 1] * 4)):
            state = run_stem(backbone, large)._replace(hidden=large.clone(), layer=layer)
            hidden = run_layer(backbone, state, options, reuse=reuse).hidden
            alone = [
                backbone.layers[layer](image[None], BITS[option])[0]
                for image, option in zip(large, options.tolist(), strict=True)
            ]
            assert torch.equal(hidden, torch.stack(alone))
    assert max(n for layer in backbone.layers for _, n in layer.seen) == 8


@torch.no_grad()
def test_images_stay_unchanged():
    class Transparent(ToyBackbone):
        def stem(self, images):
            return images

    images = toy_images(4).float()
    before = images.clone()
    actions = torch.tensor([[0, 1, 2, 3]] * 2 + [[3, 2, 1, 0]] * 2)
    run(Transparent(), images, actions, reuse=True)
    assert torch.equal(images, before)


def test_gradients_equal_each_image_alone():
    rows = [[0, 1, 2, 3], [3, 3, 0, 1], [2, 0, 3, 0], [1, 1, 1, 1]]
    images = toy_images(len(rows))
    grouped, alone = ToyBackbone(), ToyBackbone()
    run(grouped, images, torch.tensor(rows))[0].square().sum().backward()
    for image, row in zip(images, rows, strict=True):
        alone.head(run_alone(alone, image, row)[None]).square().sum().backward()
    for ours, theirs in zip(grouped.weights, alone.weights, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=0)
