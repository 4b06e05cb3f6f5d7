"""Swin transformers of adaptive depth against attention over all tokens, storage, training."""

import functools
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones import AdaptiveSwin, AdaptiveSwinConfig
from dfs_rl.backbones.swin import window_of
from tests.helpers.networks import network, pictures_for, run

swin = functools.partial(network, AdaptiveSwin)
pictures = functools.partial(pictures_for, AdaptiveSwin)


def normal(norm, tokens: Tensor, row: int = 0) -> Tensor:
    weight, bias = norm.norm_weight[row], norm.norm_bias[row]
    return functional.layer_norm(tokens, weight.shape, weight, bias, 1e-6)


def attended(body, tokens: Tensor, *, window: int, shift: int) -> Tensor:
    """Let all tokens of a map look at each other under a mask, made pair by pair."""
    rows, columns = tokens.shape[1:3]
    places = list(product(range(rows), range(columns)))
    bias = torch.full((body.heads, len(places), len(places)), float("-inf"))
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            together = (y - shift) % rows // window == (v - shift) % rows // window
            together &= (x - shift) % columns // window == (u - shift) % columns // window
            if together and abs(y - v) < window and abs(x - u) < window:
                at = (y - v + window - 1) * (2 * window - 1) + x - u + window - 1
                bias[:, i, j] = body.position_bias[:, at]
    none = torch.zeros_like(body.query_bias)
    together = functional.linear(
        tokens.flatten(1, 2),
        body.queries_keys_values.weight,
        torch.cat([body.query_bias, none, body.value_bias]),
    )
    query, key, value = (
        torch.stack(part.chunk(body.heads, dim=2), dim=1) for part in together.chunk(3, dim=2)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    out = torch.cat(mixed.unbind(dim=1), dim=2).reshape(tokens.shape)
    return functional.linear(out, body.out.weight, body.out.bias)


def in_float(block, tokens: Tensor, *, row: int, window: int, shift: int) -> Tensor:
    """Run a block at 32 bit with the norms of a row."""
    *merging, attention, mlp = block.branches
    for each in merging:
        # Rows before columns, as the paper's code does not; its order is one of the weights'.
        corners = [tokens[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
        tokens = normal(each.norm, torch.cat(corners, dim=3)) @ each.reduce.weight.T
    tokens = tokens + attended(
        attention.body, normal(attention.norm, tokens, row), window=window, shift=shift
    )
    inside = functional.linear(
        normal(mlp.norm, tokens, row), mlp.body.widen.weight, mlp.body.widen.bias
    )
    return tokens + functional.linear(
        functional.gelu(inside), mlp.body.narrow.weight, mlp.body.narrow.bias
    )


@torch.no_grad()
def test_at_32_bit_windows_are_a_mask_over_all_tokens():
    # 8 x 12 tokens in windows of 4, then 4 x 6 in windows of 2.
    net = swin(stem_bits=32, bits=(0, 32))
    images = pictures(3)
    for mix in product((0, 32), repeat=2):
        pixels = ((images / 255.0 - 0.4) / 0.3).permute(0, 2, 3, 1)
        tokens = functional.linear(pixels, net.embedding.weight, net.embedding.bias)
        tokens = normal(net.first_norm, tokens)
        for stage, bits, window in zip(net.blocks, mix, (4, 2), strict=True):
            blocks = [*stage.mandatory, *(stage.path if bits else [])]
            for n, block in enumerate(blocks):
                row = int(bits == 0) if n < len(stage.mandatory) else 0
                shift = window // 2 if n % 2 else 0
                tokens = in_float(block, tokens, row=row, window=window, shift=shift)
        mean = normal(net.norm, tokens).mean(dim=(1, 2))
        expected = functional.linear(mean, net.classifier.weight, net.classifier.bias)
        torch.testing.assert_close(net(images, mix), expected, rtol=1e-4, atol=1e-4)
        frozen = run(net.to_inference(), images, mix)
        torch.testing.assert_close(frozen, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "patch", "windows"),
    [
        ((8, 8), 1, [4, 4, 2, 1]),
        ((32, 32), 2, [4, 4, 4, 2]),
        ((64, 64), 4, [4, 4, 4, 2]),
        ((224, 224), 4, [7, 7, 7, 7]),
        ((32, 64), 2, [4, 4, 4, 2]),
        ((64, 32), 2, [4, 4, 4, 2]),
        ((48, 32), 1, [4, 4, 4, 2]),
        ((40, 40), 1, [5, 5, 5, 5]),
        ((72, 72), 3, [6, 6, 6, 3]),
    ],
)
def test_patches_and_windows_fit_the_images(size, patch, windows):
    config = AdaptiveSwinConfig(image_size=size)
    assert config.patch_size == patch
    assert [window_of(size) for size in config.map_sizes] == windows
