"""Vision transformers against torch's own encoder: counts, both forms, storage, training."""

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones import AdaptiveVisionTransformer, VisionTransformer, VisionTransformerConfig
from dfs_rl.backbones.transformer import Branch, TransformerBlock
from tests.helpers.networks import network, pictures_for, run

vit = functools.partial(network, VisionTransformer)
adaptive = functools.partial(network, AdaptiveVisionTransformer)
pictures = functools.partial(pictures_for, VisionTransformer)


def torchs(block: TransformerBlock, *, row: int = 0) -> nn.TransformerEncoderLayer:
    """Return torch's layer with the weights of a block and the norms of a row."""
    attention, mlp = block.branches
    assert isinstance(attention, Branch)
    assert isinstance(mlp, Branch)
    layer = nn.TransformerEncoderLayer(
        12,
        2,
        dim_feedforward=48,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    together, out = attention.body.queries_keys_values, attention.body.out
    for ours, theirs in (
        (together.weight, layer.self_attn.in_proj_weight),
        (attention.body.query_bias, layer.self_attn.in_proj_bias[:12]),
        (torch.zeros(12), layer.self_attn.in_proj_bias[12:24]),
        (attention.body.value_bias, layer.self_attn.in_proj_bias[24:]),
        (out.weight, layer.self_attn.out_proj.weight),
        (out.bias, layer.self_attn.out_proj.bias),
        (mlp.body.widen.weight, layer.linear1.weight),
        (mlp.body.widen.bias, layer.linear1.bias),
        (mlp.body.narrow.weight, layer.linear2.weight),
        (mlp.body.narrow.bias, layer.linear2.bias),
        (attention.norm.norm_weight[row], layer.norm1.weight),
        (attention.norm.norm_bias[row], layer.norm1.bias),
        (mlp.norm.norm_weight[row], layer.norm2.weight),
        (mlp.norm.norm_bias[row], layer.norm2.bias),
    ):
        theirs.data.copy_(ours)
    return layer


def embedded(net, images: Tensor) -> Tensor:
    """Return the tokens as a convolution makes them, ``[batch, n, width]``."""
    patch, width = net.config.patch_size, net.config.width
    kernel = net.embedding.weight.reshape(width, 1, patch, patch)
    maps = functional.conv2d((images / 255.0 - 0.4) / 0.3, kernel, net.embedding.bias, stride=patch)
    return maps.flatten(2).transpose(1, 2) + net.positions


def answered(net, tokens: Tensor) -> Tensor:
    norm = functional.layer_norm(
        tokens, (12,), net.norm.norm_weight[0], net.norm.norm_bias[0], 1e-6
    )
    return functional.linear(norm.mean(dim=1), net.classifier.weight, net.classifier.bias)


@pytest.mark.parametrize("make", [vit, adaptive])
@torch.no_grad()
def test_at_32_bit_it_is_torchs_encoder(make):
    net = make(bits=(0, 32), stem_bits=32)
    for mix in itertools.product((0, 32), repeat=len(net.blocks)):
        tokens = embedded(net, pictures())
        for layer, bits in zip(net.blocks, mix, strict=True):
            # Mandatory blocks have norms for a path that runs, and others for a skipped one.
            for block in layer.mandatory if make is adaptive else []:
                tokens = torchs(block, row=int(bits == 0))(tokens)
            path = layer.path if make is adaptive else [layer]
            for block in path if bits else []:
                tokens = torchs(block)(tokens)
        expected = answered(net, tokens)
        torch.testing.assert_close(net(pictures(), mix), expected, rtol=1e-4, atol=1e-4)
        frozen = run(net.to_inference(), pictures(), mix)
        torch.testing.assert_close(frozen, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_quantized_attention_rounds_all_factors():
    net = vit(bits=(4, 32))
    attention = net.blocks[0].branches[0].body.attention
    query, key, value = torch.randn(3, 5, 2, 16, 6)

    def rounded(x: Tensor, log_scale: Tensor, lowest: int, highest: int) -> Tensor:
        return (x / log_scale.exp()).round().clamp(lowest, highest) * log_scale.exp()

    quantizers = attention.scores.quantizers
    scores = rounded(query / 6**0.5, quantizers.input_log_scale[0], -8, 7) @ rounded(
        key, quantizers.weight_log_scale[0], -8, 7
    ).transpose(-2, -1)
    quantizers = attention.mix.quantizers
    # Probabilities have no sign, and so no code to spare for one.
    shares = rounded(scores.softmax(dim=-1), quantizers.input_log_scale[0], 0, 15)
    expected = shares @ rounded(value, quantizers.weight_log_scale[0], -8, 7)
    torch.testing.assert_close(attention(query, key, value, 4), expected, rtol=1e-4, atol=1e-5)


def test_branches_are_gated_each_by_itself():
    together, apart = vit(), vit(gate_branches=True)
    assert len(apart.layers) == 2 * len(together.layers) == 6
    attention, mlp = apart.costs.layer_macs[:2]
    assert together.costs.layer_macs[0] == attention + mlp
    tokens = 16
    assert mlp == tokens * 8 * 12**2
    assert attention == tokens * 4 * 12**2 + 2 * tokens**2 * 12


def test_positions_start_as_distinct_waves():
    positions = vit().positions.detach()
    places = [(row, column) for row in range(4) for column in range(4)]
    for token, (row, column) in zip(positions, places, strict=True):
        expected = [
            wave(place / 10_000 ** (i / 2))
            for wave in (math.sin, math.cos)
            for place in (row, column)
            for i in range(3)
        ]
        assert token.tolist() == pytest.approx(expected, abs=1e-6)
    assert len(positions.unique(dim=0)) == 16
    assert vit(width=6, heads=2).positions[:, 4:].abs().max() == 0.0


@pytest.mark.parametrize(
    ("size", "patch"),
    [((32, 32), 4), ((8, 8), 1), ((28, 28), 4), ((16, 24), 2), ((224, 224), 28), ((31, 37), 1)],
)
def test_patches_are_cut_that_fit(size, patch):
    assert VisionTransformerConfig(image_size=size).patch_size == patch
