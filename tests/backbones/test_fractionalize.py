"""Users' own models: the same in full precision, walkable at every option, frozen alike."""

import copy
import functools
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones import Fractionalized, WalkableBackbone
from dfs_rl.costs.mac_counter import count_macs
from dfs_rl.errors import ConfigError
from dfs_rl.gating.execution import run_head, run_layer, run_stem
from dfs_rl.training.calibration import calibrate_scales
from tests.helpers.models import (
    CLASSES,
    NETS,
    SIDE,
    BasicBlock,
    BasicResNet,
    Dense,
    Flat,
    SmallViT,
    examples,
    lived_in,
    pictures,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@functools.cache
def _made(name: str, **settings: object) -> Fractionalized:
    return fractionalize(lived_in(NETS[name]), examples(), mean=MEAN, std=STD, **settings)


def gated(name: str, **settings: object) -> Fractionalized:
    return copy.deepcopy(_made(name, **settings))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def at(net: WalkableBackbone, images: torch.Tensor, mix: list[int]) -> torch.Tensor:
    hidden = net.stem(images)
    for layer, bits in zip(net.layers, mix, strict=True):
        hidden = layer(hidden, bits)
    return net.head(hidden)


@pytest.fixture(scope="module", params=NETS)
def name(request):
    return request.param


@torch.no_grad()
def test_full_precision_is_the_model(name):
    model = lived_in(NETS[name]).eval()
    backbone = gated(name)
    expected = model(normalised(pictures()))
    torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-5, atol=1e-5)
    frozen = backbone.to_inference()
    mix = [32] * len(frozen.layers)
    torch.testing.assert_close(at(frozen, pictures(), mix), expected, rtol=1e-5, atol=1e-5)
    one = pictures(1)
    torch.testing.assert_close(backbone(one, 32), expected[:1], rtol=1e-5, atol=1e-5)
    halved = backbone.to_inference(torch.bfloat16)
    assert halved.layers[0](halved.stem(one), 32).dtype == torch.bfloat16
    assert at(halved, one, mix).dtype == torch.float32


class FirstToken(SmallViT):
    """Its head reads the first token, without a norm before it."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.encoder(x)[:, 0])


@pytest.mark.parametrize("make", [Flat, FirstToken])
def test_a_view_may_lead_from_the_last_block_to_the_head(make):
    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    assert len(backbone.layers) == len(model.blocks if make is Flat else model.encoder)
    with torch.no_grad():
        expected = model(pictures().float() / 255)
    torch.testing.assert_close(backbone(pictures()), expected, rtol=1e-5, atol=1e-5)
    backbone(pictures(), 4).sum().backward()
    assert any(p.grad is not None for p in backbone.layers[0].parameters())


@torch.no_grad()
def test_walks_take_every_image_at_its_own_options(name):
    backbone = gated(name)
    frozen = backbone.to_inference()
    assert isinstance(frozen, WalkableBackbone)
    n, n_layers, n_options = 16, len(backbone.layers), len(backbone.options)
    options = torch.randint(n_options, (n, n_layers), generator=torch.Generator().manual_seed(3))
    state = run_stem(frozen, pictures(n))
    for layer in range(n_layers):
        feature = frozen.feature(state.hidden, layer)
        assert feature.shape == (n, frozen.feature_sizes[layer])
        assert bool(feature.isfinite().all())
        state = run_layer(frozen, state, options[:, layer], reuse=True)
    logits = run_head(frozen, state)
    for i, row in enumerate(options.tolist()):
        alone = at(frozen, pictures(n)[i : i + 1], [backbone.options[o] for o in row])
        # A sum on the edge between two codes may round to either of them.
        assert (logits[i] - alone[0]).abs().max() <= 0.02 * logits.abs().max()


@torch.no_grad()
def test_the_frozen_form_computes_what_the_training_form_does(name):
    backbone = gated(name)
    frozen = backbone.to_inference()
    for bits in backbone.options:
        ours = at(frozen, pictures(), [bits] * len(frozen.layers))
        theirs = backbone(pictures(), bits)
        close = (ours - theirs).abs() <= 1e-3 * theirs.abs().max()
        # A sum on the edge between two codes may round to either of them.
        assert close.float().mean() > 0.8, bits


@torch.no_grad()
def test_gated_and_fixed_macs_add_up_to_the_models(name):
    # In training, torch's attention is no single operator that the counter would pass over.
    model, backbone = lived_in(NETS[name]).train(), gated(name)
    expected = count_macs(lambda: model(examples(2))) // 2
    assert backbone.costs.total_macs + sum(p.macs for p in backbone.costs.fixed) == expected
    skipped = count_macs(lambda: backbone(pictures(1), 0))
    assert skipped == sum(part.macs for part in backbone.costs.fixed)


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
def test_attention_costs_the_same_however_it_is_written():
    written, fused = (functools.partial(Written, fused=fused) for fused in (False, True))
    made = []
    for way in (None, Asking, written, fused):
        model = lived_in(SmallViT)
        for block in model.encoder:
            if way is not None:
                block.attention = way(block.attention)
        made.append(fractionalize(model, examples(), bits=(0, 32)))
    tokens, width = 17, 16
    macs = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 2 * width
    for backbone in made:
        assert backbone.costs.layer_macs == (macs, macs)
        assert backbone.costs.total_macs == made[0].costs.total_macs
        torch.testing.assert_close(backbone(pictures()), made[0](pictures()), rtol=1e-4, atol=1e-5)


def test_low_bits_learn(name):
    backbone = gated(name).train()
    functional.cross_entropy(backbone(pictures(), 4), torch.arange(16) % CLASSES).backward()
    for part, parameter in backbone.blocks.named_parameters():
        if parameter.numel() and part.endswith((".weight", "_log_scale")):
            assert parameter.grad is not None, part
            assert bool(parameter.grad.isfinite().all()), part


def test_the_users_model_is_left_as_it_was():
    model = lived_in(BasicResNet).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    backbone = fractionalize(model, examples())
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_resnet_is_reported():
    report = gated("resnet").report
    assert [layer.name for layer in report.gated] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [layer.shortcut for layer in report.gated] == ["identity", "blocks.1.down.0", "identity"]
    left = dict(report.left_alone)
    assert set(left) == {"stem.0", "blocks.1.down.0", "fc"}
    assert "shortcut of blocks.1" in left["blocks.1.down.0"]
    assert "blocks.1" in str(report)


def test_what_has_no_shortcut_runs_with_the_next_layer():
    backbone = gated("mobilenet")
    assert [layer.name for layer in backbone.report.gated] == ["features.2.conv", "features.4.conv"]
    left = dict(backbone.report.left_alone)
    assert "features.4.conv" in left["features.3.conv.0.0"]
    fixed = {part.name: part for part in backbone.costs.fixed}
    # 1 x 1 from 8 to 16 at 16 x 16, depthwise 3 x 3 with stride 2, 1 x 1 from 16 to 12 at 8 x 8.
    assert fixed["mandatory"].layer == 1
    assert fixed["mandatory"].macs == 256 * 8 * 16 + 64 * 16 * 9 + 64 * 16 * 12


@pytest.mark.parametrize(("granularity", "n"), [("block", 2), ("branch", 4)])
def test_attention_and_mlp_are_gated_together_or_apart(granularity, n):
    backbone = gated("vit", granularity=granularity)
    assert len(backbone.layers) == n
    names = [layer.name for layer in backbone.report.gated]
    expected = (
        ["encoder.0", "encoder.1"]
        if n == 2
        else [f"encoder.{i}.{part}" for i in (0, 1) for part in ("attention", "mlp")]
    )
    assert names == expected


@torch.no_grad()
def test_a_skipped_transformer_block_leaves_its_tokens_alone():
    backbone = gated("vit")
    hidden = backbone.stem(pictures())
    assert backbone.layers[0](hidden, 0) is hidden


@torch.no_grad()
def test_gates_see_the_class_token_and_the_mean_of_the_others():
    backbone = gated("vit")
    hidden = backbone.stem(pictures())
    parts = backbone.parts(hidden)
    assert torch.equal(parts[:, :, 0], hidden[:, 0])
    torch.testing.assert_close(parts[:, :, 1], hidden[:, 1:].mean(1))
    assert gated("mixer").parts(hidden).shape == (16, 16, 1)


@torch.no_grad()
def test_maps_with_channels_last_are_pooled_over_positions():
    backbone = gated("windows")
    hidden = backbone.stem(pictures())
    assert hidden.shape == (16, 8, 8, 8)
    torch.testing.assert_close(backbone.parts(hidden).mean(2), hidden.mean((1, 2)))


@torch.no_grad()
def test_a_relu_behind_the_sum_runs_where_a_layer_is_skipped():
    backbone = gated("preactivation")
    frozen = backbone.to_inference()
    hidden = frozen.stem(pictures())
    assert bool((hidden < 0).any())
    state = run_layer(frozen, run_stem(frozen, pictures()), torch.tensor([0, 4] * 8))
    torch.testing.assert_close(state.hidden[::2], hidden[::2].relu())
    skipped_twice = backbone.layers[1](state.hidden, 0)
    assert skipped_twice is state.hidden


def test_inputs_behind_a_relu_are_unsigned():
    backbone = gated("resnet")
    block = backbone.layers[0]
    assert [op.quantizers.signed_input for op in block.ops.values()] == [False, False]
    vit = gated("vit")
    attention = next(op for name, op in vit.layers[0].ops.items() if hasattr(op, "scores"))
    assert attention.scores.quantizers.signed_input
    assert not attention.mix.quantizers.signed_input  # probabilities


def test_named_modules_alone_are_gated():
    backbone = gated("resnet", layers=("blocks.2", "blocks.0"))
    assert [layer.name for layer in backbone.report.gated] == ["blocks.0", "blocks.2"]


def test_a_module_without_shortcut_can_be_gated_where_nothing_is_skipped():
    backbone = gated("mobilenet", layers=("features.3", "features.4"), bits=(4, 32))
    assert [layer.shortcut for layer in backbone.report.gated] == [None, None]
    model = lived_in(NETS["mobilenet"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(pictures(), 32), model(normalised(pictures())), rtol=1e-5, atol=1e-5
        )
        assert not torch.equal(backbone(pictures(), [4, 32]), backbone(pictures(), 32))


def test_what_is_gated_by_name_is_not_reported_as_left_alone():
    report = fractionalize(Dense(), examples(), layers=["one", "two"], bits=(4, 32)).report
    assert [layer.name for layer in report.gated] == ["one", "two"]
    assert dict(report.left_alone) == {"head": "runs after the last gated layer"}


def test_what_no_gate_decides_about_can_run_at_fewer_bits():
    backbone = gated("resnet", stem_bits=8)
    assert {part.bits for part in backbone.costs.fixed} == {8}
    full = gated("resnet")
    with torch.no_grad():
        gap = (backbone(pictures()) - full(pictures())).abs().max()
    assert 0 < gap < 0.1 * full(pictures()).abs().max()


def test_blocks_whose_operators_have_no_low_bits_are_left_alone():
    class Upsampling(BasicResNet):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.ConvTranspose2d(16, 16, 3, padding=1)

        def forward(self, x):
            x = self.blocks(functional.relu(self.stem(x)))
            x = x + self.odd(x)
            return self.fc(x.mean((2, 3)))

    report = fractionalize(Upsampling(), examples()).report
    assert len(report.gated) == 3
    assert "no conv_transpose2d at fewer bits" in dict(report.left_alone)["odd"]


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


def test_causal_attention_whose_heads_share_keys_is_gated():
    torch.manual_seed(0)
    model = Causal().eval()
    backbone = fractionalize(model, examples(), bits=(0, 16, 32))
    calibrate_scales(backbone, pictures(), parts=[backbone])
    assert len(backbone.layers) == 3
    assert backbone.costs.layer_macs[1] == 16 * 16 * 16 + 2 * 16 * 16 * 16
    with torch.no_grad():
        torch.testing.assert_close(backbone(pictures(), 32), model(pictures() / 255.0))
        torch.testing.assert_close(
            backbone(pictures(), 16), model(pictures() / 255.0), rtol=1e-2, atol=1e-2
        )


def test_what_would_run_in_full_precision_is_not_priced_at_fewer_bits():
    backbone = fractionalize(WeightNormed().eval(), examples())
    assert [layer.name for layer in backbone.report.gated] == ["first", "last"]
    assert any("computed while it runs" in why for _, why in backbone.report.left_alone)
    assert backbone.costs.layer_macs == (16 * 16 * 16, 16 * 16 * 16)
    assert {p.name: p.macs for p in backbone.costs.fixed}["mandatory"] == 16 * 16 * 16


def test_torchs_own_encoder_layer_is_taken_apart():
    class Torch(SmallViT):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    assert len(fractionalize(Torch(), examples()).layers) == 2


def test_activations_without_a_row_for_each_image_cannot_be_gated_and_are_told_of():
    class TokensFirst(SmallViT):
        def forward(self, x):
            x = self.patches(x).flatten(2).permute(2, 0, 1)
            for block in self.encoder:
                x = x + block.mlp(x)
            return self.head(x.mean(0))

    with pytest.raises(ConfigError, match="mlp': its activations do not have one row for each"):
        fractionalize(TokensFirst(), examples())


@pytest.mark.parametrize("seed", range(6))
def test_random_nets_are_the_same_in_full_precision(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def make() -> nn.Module:
        widths = [4 + 4 * draw(2) for _ in range(4)]
        blocks = [BasicBlock(i, o, 1 + draw(2)) for i, o in pairwise(widths)]
        between = [(nn.Identity(), nn.MaxPool2d(2), nn.GELU())[draw(3)] for _ in blocks]
        chain = [m for pair in zip(blocks, between, strict=True) for m in pair]
        return nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1),
            *chain,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], CLASSES),
        )

    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    assert len(backbone.layers) == 3
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.to_inference().head(_run(backbone.to_inference(), pictures())),
            model(pictures().float() / 255),
            rtol=1e-4,
            atol=1e-5,
        )
    assert backbone.image_shape == (3, SIDE, SIDE)


def _run(net: WalkableBackbone, images: torch.Tensor) -> torch.Tensor:
    hidden = net.stem(images)
    for layer in net.layers:
        hidden = layer(hidden, 32)
    return hidden


class Prototypes(BasicResNet):
    """Compares its features with rows of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(2, CLASSES, 16))

    def forward(self, x):
        x = self.blocks(functional.relu(self.stem(x))).mean((2, 3))
        return x @ self.rows[1].T


class Queried(BasicResNet):
    """Pools by attention of a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x):
        x = self.blocks(functional.relu(self.stem(x))).flatten(2).mT
        query = self.query.expand(x.shape[0], -1, -1)
        return self.fc(functional.scaled_dot_product_attention(query, x, x)[:, 0])


class Mixed(BasicResNet):
    """Mixes two convolutions for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(2, 8, 3, 3, 3))
        self.route = nn.Linear(3, 2)

    def forward(self, x):
        share = self.route(x.mean((2, 3))).sigmoid()  # [batch, kernels]
        kernels = (share @ self.kernels.flatten(1)).view(-1, 8, 27)
        patches = functional.unfold(x, 3, padding=1)  # [batch, 27, places]
        x = (kernels @ patches).view(-1, 8, SIDE, SIDE)
        return self.fc(self.blocks(x.relu()).mean((2, 3)))


# Its blocks halve both sides once; what is left of them is 8 x 8 places.
STEM, HEAD = SIDE * SIDE * 8 * 27, 16 * CLASSES


@pytest.mark.parametrize(
    ("make", "stem", "head"),
    [
        (Prototypes, STEM, HEAD),
        (Queried, STEM, 2 * 64 * 16 + HEAD),
        (Mixed, 3 * 2 + 2 * 8 * 27 + STEM, HEAD),
    ],
)
@torch.no_grad()
def test_products_with_views_of_parameters_are_counted_and_told_of(make, stem, head):
    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    macs = {part.name: part.macs for part in backbone.costs.fixed}
    assert (macs["stem"], macs["head"]) == (stem, head)
    assert len(backbone.layers) == 3
    assert "" in {name for name, _ in backbone.report.left_alone}
    expected = model(pictures().float() / 255)
    torch.testing.assert_close(backbone(pictures()), expected, rtol=1e-5, atol=1e-5)


class ComputedBias(BasicResNet):
    """Joins the bias of its last layer from two parts, as BEiT and Swin V2 do."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(CLASSES - 1))

    def forward(self, x):
        x = self.blocks(functional.relu(self.stem(x))).mean((2, 3))
        return functional.linear(x, self.fc.weight, torch.cat([self.bias, self.bias[:1] * 2]))


class ComputedNorm(BasicResNet):
    """Keeps the weights of a batch norm minus one, and gates a block whose bias is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.conv = nn.Parameter(torch.rand(8)), nn.Conv2d(8, 8, 1)
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("variance", torch.rand(8) + 0.5)

    def forward(self, x):
        x = self.stem(x)
        x = x + functional.conv2d(x, self.conv.weight, self.conv.bias * 2)
        x = functional.batch_norm(x, self.mean, self.variance, 1 + self.gain, self.conv.bias)
        return self.fc(self.blocks(x.relu()).mean((2, 3)))


@pytest.mark.parametrize("make", [ComputedBias, ComputedNorm])
@torch.no_grad()
def test_biases_and_norms_that_are_computed_from_parameters_stay_as_they_are(make):
    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    assert len(backbone.layers) == 3
    reasons = dict(backbone.report.left_alone)
    assert make is ComputedBias or "bias of its conv2d is computed" in reasons["conv"]
    expected = model(pictures().float() / 255)
    torch.testing.assert_close(backbone(pictures()), expected, rtol=1e-5, atol=1e-5)
