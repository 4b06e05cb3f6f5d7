"""Operators of users' models: attention in all forms, and what has no quantized form."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.errors import ConfigError
from dfs_rl.training.calibration import calibrate_scales
from tests.helpers.models import (
    CLASSES,
    SIDE,
    Extended,
    SmallViT,
    converted,
    examples,
    lived_in,
    names_of,
    pictures,
)


def maps(net, x):
    return net.blocks(functional.relu(net.stem(x)))


class Written(nn.Module):
    """What ``torch.nn.MultiheadAttention`` computes, written out."""

    def __init__(self, torchs: nn.MultiheadAttention, *, fused: bool) -> None:
        super().__init__()
        width = torchs.embed_dim
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fused = fused
        with torch.no_grad():
            self.inward.weight.copy_(torchs.in_proj_weight)
            self.inward.bias.copy_(torchs.in_proj_bias)
            self.outward.load_state_dict(torchs.out_proj.state_dict())

    def forward(self, x, *_, need_weights):
        q, k, v = self.inward(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            out = functional.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return (self.outward(out.transpose(1, 2).flatten(2)),)


class Asking(nn.Module):
    """``torch.nn.MultiheadAttention`` that returns its weights too, by another operator."""

    def __init__(self, torchs: nn.MultiheadAttention) -> None:
        super().__init__()
        self.torchs = torchs

    def forward(self, *tokens, need_weights):
        return self.torchs(*tokens, need_weights=not need_weights)


@torch.no_grad()
def test_attention_costs_the_same_in_all_forms():
    written, fused = (functools.partial(Written, fused=fused) for fused in (False, True))
    made = []
    for way in (nn.Identity, Asking, written, fused):
        model = lived_in(SmallViT)
        model.encoder = model.encoder[:1]
        if way is not nn.Identity:
            model.encoder[0].attention = way(model.encoder[0].attention)
        made.append(fractionalize(model, examples(), bits=(0, 32)))
    tokens, width = 17, 16
    macs = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 2 * width
    for backbone in made:
        assert backbone.costs.layer_macs == (macs,)
        assert backbone.costs.fixed == made[0].costs.fixed
        torch.testing.assert_close(backbone(pictures()), made[0](pictures()), rtol=1e-4, atol=1e-5)


class Torch(SmallViT):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_torchs_own_encoder_layer_is_taken_apart():
    assert len(fractionalize(Torch(), examples()).layers) == 2


class Three(nn.Module):
    """Three residual blocks; what the middle one runs is a subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.first(x).relu()
        x = x + self.odd(x)
        x = x + self.last(x).relu()
        return self.head(x.mean(1))


class Causal(Three):
    def odd(self, x):
        x = self.middle(x).unflatten(2, (4, 4)).transpose(1, 2)
        first, last = x[:, :2], x[:, 2:]
        x = functional.scaled_dot_product_attention(x, first, last, is_causal=True, enable_gqa=True)
        return x.transpose(1, 2).flatten(2)


class WeightNormed(Three):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.middle)

    def odd(self, x):
        return self.middle(x)


def test_causal_grouped_attention_is_gated():
    model, backbone = converted(Causal, bits=(0, 16, 32))
    calibrate_scales(backbone, pictures(), parts=[backbone])
    assert len(backbone.layers) == 3
    assert backbone.costs.layer_macs[1] == 16 * 16 * 16 + 2 * 16 * 16 * 16
    with torch.no_grad():
        expected = model(pictures() / 255.0)
        torch.testing.assert_close(backbone(pictures(), 16), expected, rtol=1e-2, atol=1e-2)


# --- operators without a quantized form ----------------------------------------------------------


def test_computed_weights_stay_in_full_precision():
    backbone = fractionalize(WeightNormed().eval(), examples())
    assert names_of(backbone) == ["first", "last"]
    assert any("computed while it runs" in why for _, why in backbone.report.left_alone)
    assert backbone.costs.layer_macs == (16 * 16 * 16, 16 * 16 * 16)
    assert {p.name: p.macs for p in backbone.costs.fixed}["mandatory"] == 16 * 16 * 16


def upsampled(net, x):  # with a bias that is joined from two parts, as in BEiT and Swin V2
    x = maps(net, x)
    bias = torch.cat([net.bias, net.bias[:1] * 2])
    return functional.linear((x + net.odd(x)).mean((2, 3)), net.fc.weight, bias)


def computed_norm(net, x):  # weights of the norm minus one, and a block whose bias is computed
    x = net.stem(x)
    x = x + functional.conv2d(x, net.conv.weight, net.conv.bias * 2)
    x = functional.batch_norm(x, net.mean, net.variance, 1 + net.gain, net.conv.bias)
    return net.fc(net.blocks(x.relu()).mean((2, 3)))


def with_norm() -> Extended:
    gain, conv = nn.Parameter(torch.rand(8)), nn.Conv2d(8, 8, 1)
    net = Extended(computed_norm, gain=gain, conv=conv)
    net.register_buffer("mean", torch.randn(8))
    net.register_buffer("variance", torch.rand(8) + 0.5)
    return net


def with_bias() -> Extended:
    bias, odd = nn.Parameter(torch.randn(CLASSES - 1)), nn.ConvTranspose2d(16, 16, 3, padding=1)
    return Extended(upsampled, bias=bias, odd=odd)


def scored(net, x):  # a weight that is a vector pools the places
    x = maps(net, x).flatten(2).mT
    share = functional.linear(x, net.score).softmax(dim=1)
    return net.fc((x * (1 + share.unsqueeze(2))).mean(1))


def with_vector() -> Extended:
    return Extended(scored, score=nn.Parameter(torch.randn(16)))


def test_a_weight_that_is_a_vector_stays_in_full_precision():
    _, backbone = converted(with_vector)
    assert backbone.costs.fixed[-1].macs == 64 * 16 + 16 * CLASSES


@pytest.mark.parametrize(
    ("make", "module", "reason"),
    [
        (with_bias, "odd", "no conv_transpose2d at fewer bits"),
        (with_norm, "conv", "bias of its conv2d is computed"),
    ],
)
def test_operators_without_low_bits_are_left_alone(make, module, reason):
    _, backbone = converted(make)
    assert len(backbone.layers) == 3
    assert reason in dict(backbone.report.left_alone)[module]


@pytest.mark.parametrize(
    ("make", "operator"), [(with_bias, "conv_transpose2d of module 'odd'"), (with_norm, "conv2d")]
)
def test_what_has_no_low_bits_is_not_said_to_run_at_them(make, operator):
    with pytest.raises(ConfigError, match=f"stem_bits is 8, but {operator}.* at 32 bit alone"):
        fractionalize(lived_in(make), examples(), stem_bits=8)


def prototypes(net, x):  # features are compared with rows of a parameter
    return maps(net, x).mean((2, 3)) @ net.rows[1].T


def mixed(net, x):  # two convolutions are mixed for every image; a learned query pools
    share = net.route(x.mean((2, 3))).sigmoid()  # [batch, kernels]
    kernels = (share @ net.kernels.flatten(1)).view(-1, 8, 27)
    patches = functional.unfold(x, 3, padding=1)  # [batch, 27, places]
    x = (kernels @ patches).view(-1, 8, SIDE, SIDE)
    x = net.blocks(x.relu()).flatten(2).mT
    query = net.query.expand(x.shape[0], -1, -1)
    return net.fc(functional.scaled_dot_product_attention(query, x, x)[:, 0])


# Its blocks halve both sides once; what is left of them is 8 x 8 places.
STEM, HEAD = SIDE * SIDE * 8 * 27, 16 * CLASSES


@pytest.mark.parametrize(
    ("run", "parts", "stem", "head"),
    [
        (prototypes, {"rows": (2, CLASSES, 16)}, STEM, HEAD),
        (
            mixed,
            {"kernels": (2, 8, 3, 3, 3), "query": (1, 1, 16)},
            3 * 2 + 2 * 8 * 27 + STEM,
            2 * 64 * 16 + HEAD,
        ),
    ],
)
def test_products_with_views_of_parameters_are_counted(run, parts, stem, head):
    def make() -> Extended:
        named = {name: nn.Parameter(torch.randn(shape)) for name, shape in parts.items()}
        return Extended(run, route=nn.Linear(3, 2), **named)

    _, backbone = converted(make)
    macs = {part.name: part.macs for part in backbone.costs.fixed}
    assert (macs["stem"], macs["head"], len(backbone.layers)) == (stem, head, 3)
    assert "" in {name for name, _ in backbone.report.left_alone}
