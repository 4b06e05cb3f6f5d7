"""Users' own models: the same in full precision, gated at every option, in both forms."""

import copy
import functools

import pytest
import torch
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones import Fractionalized, GatedBackbone
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.costs.mac_counter import count_macs
from dfs_rl.gating.execution import run_head, run_layer, run_stem
from tests.helpers.models import (
    CLASSES,
    NETS,
    BasicResNet,
    Dense,
    Flat,
    SmallViT,
    converted,
    examples,
    lived_in,
    names_of,
    pictures,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@functools.cache
def _made(name: str, **settings: object) -> Fractionalized:
    return fractionalize(lived_in(NETS[name]), examples(), mean=MEAN, std=STD, **settings)


def gated(name: str, **settings: object) -> Fractionalized:
    return copy.deepcopy(_made(name, **settings))


def at(net: GatedBackbone, images: torch.Tensor, bits: int | list[int]) -> torch.Tensor:
    mix = [bits] * len(net.layers) if isinstance(bits, int) else bits
    return net.head(run_layers(net, net.stem(images), mix))


@pytest.fixture(scope="module", params=NETS)
def name(request):
    return request.param


# --- computation ---------------------------------------------------------------------------------


@torch.no_grad()
def test_full_precision_is_the_model(name):
    backbone = gated(name)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    expected = lived_in(NETS[name]).eval()((pictures() / 255.0 - mean) / std)
    for ours in (at(backbone, pictures(), 32), at(backbone.to_inference(), pictures(), 32)):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    one = pictures(1)
    torch.testing.assert_close(backbone(one, 32), expected[:1], rtol=1e-5, atol=1e-5)
    halved = backbone.to_inference(torch.bfloat16)
    assert halved.layers[0](halved.stem(one), 32).dtype == torch.bfloat16
    assert at(halved, one, 32).dtype == torch.float32


@torch.no_grad()
def test_each_image_runs_at_its_own_options(name):
    frozen = gated(name).to_inference()
    assert isinstance(frozen, GatedBackbone)
    n, n_layers, n_options = 16, len(frozen.layers), len(frozen.options)
    options = torch.randint(n_options, (n, n_layers), generator=torch.Generator().manual_seed(3))
    state = run_stem(frozen, pictures(n))
    for layer in range(n_layers):
        feature = frozen.feature(state.hidden, layer)
        assert feature.shape == (n, frozen.feature_sizes[layer])
        assert bool(feature.isfinite().all())
        state = run_layer(frozen, state, options[:, layer], reuse=True)
    logits = run_head(frozen, state)
    for i, row in enumerate(options.tolist()):
        alone = at(frozen, pictures(n)[i : i + 1], [frozen.options[o] for o in row])
        # A sum on the edge between two codes may round to either of them.
        assert (logits[i] - alone[0]).abs().max() <= 0.02 * logits.abs().max()


@torch.no_grad()
def test_inference_form_computes_the_training_form(name):
    backbone = gated(name)
    frozen = backbone.to_inference()
    for bits in backbone.options:
        ours, theirs = at(frozen, pictures(), bits), backbone(pictures(), bits)
        close = (ours - theirs).abs() <= 1e-3 * theirs.abs().max()
        # A sum on the edge between two codes may round to either of them.
        assert close.float().mean() > 0.8, bits


@torch.no_grad()
def test_gated_and_fixed_macs_add_up_to_the_models(name):
    # In training, torch's attention is no single operator that the counter would pass over.
    model, backbone = lived_in(NETS[name]).train(), gated(name)
    fixed = sum(part.macs for part in backbone.costs.fixed)
    assert backbone.costs.total_macs + fixed == count_macs(lambda: model(examples(2))) // 2
    assert count_macs(lambda: backbone(pictures(1), 0)) == fixed


def test_low_bits_learn(name):
    backbone = gated(name).train()
    functional.cross_entropy(backbone(pictures(), 4), torch.arange(16) % CLASSES).backward()
    for part, parameter in backbone.blocks.named_parameters():
        if parameter.numel() and part.endswith((".weight", "_log_scale")):
            assert parameter.grad is not None, part
            assert bool(parameter.grad.isfinite().all()), part


def test_the_users_model_stays_as_it_was():
    model = lived_in(BasicResNet).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    backbone = fractionalize(model, examples())
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# --- what is gated, and what it costs ------------------------------------------------------------


def test_a_resnet_is_reported():
    report = gated("resnet").report
    assert [(layer.name, layer.shortcut) for layer in report.gated] == [
        ("blocks.0", "identity"),
        ("blocks.1", "blocks.1.down.0"),
        ("blocks.2", "identity"),
    ]
    left = dict(report.left_alone)
    assert set(left) == {"stem.0", "blocks.1.down.0", "fc"}
    assert "shortcut of blocks.1" in left["blocks.1.down.0"]
    assert "blocks.1" in str(report)


def test_what_has_no_shortcut_runs_with_the_next_layer():
    backbone = gated("mobilenet")
    assert names_of(backbone) == ["features.2.conv", "features.4.conv"]
    assert "features.4.conv" in dict(backbone.report.left_alone)["features.3.conv.0.0"]
    mandatory = {part.name: part for part in backbone.costs.fixed}["mandatory"]
    # 1 x 1 from 8 to 16 at 16 x 16, depthwise 3 x 3 with stride 2, 1 x 1 from 16 to 12 at 8 x 8.
    macs = 256 * 8 * 16 + 64 * 16 * 9 + 64 * 16 * 12
    assert (mandatory.layer, mandatory.macs) == (1, macs)


def test_attention_and_mlp_are_gated_together_or_apart():
    assert names_of(gated("vit")) == ["encoder.0", "encoder.1"]
    apart = [f"encoder.{i}.{part}" for i in (0, 1) for part in ("attention", "mlp")]
    assert names_of(gated("vit", granularity="branch")) == apart


def test_named_modules_alone_are_gated():
    backbone = gated("resnet", layers=("blocks.2", "blocks.0"), stem_bits=8)
    assert names_of(backbone) == ["blocks.0", "blocks.2"]
    report = fractionalize(Dense(), examples(), layers=["one", "two"], bits=(4, 32)).report
    assert [layer.name for layer in report.gated] == ["one", "two"]
    assert dict(report.left_alone) == {"head": "runs after the last gated layer"}


def test_without_a_skip_option_no_shortcut_is_needed():
    _, backbone = converted(NETS["mobilenet"], layers=("features.3", "features.4"), bits=(4, 32))
    assert [layer.shortcut for layer in backbone.report.gated] == [None, None]
    assert not torch.equal(backbone(pictures(), [4, 32]), backbone(pictures(), 32))


def test_parts_that_always_run_can_have_fewer_bits():
    backbone, full = gated("resnet", layers=("blocks.2", "blocks.0"), stem_bits=8), gated("resnet")
    assert {part.bits for part in backbone.costs.fixed} == {8}
    with torch.no_grad():
        gap = (backbone(pictures()) - full(pictures())).abs().max()
    assert 0 < gap < 0.1 * full(pictures()).abs().max()


def test_inputs_behind_a_relu_are_unsigned():
    block = gated("resnet").layers[0]
    assert [op.quantizers.signed_input for op in block.ops.values()] == [False, False]
    ops = gated("vit").layers[0].ops.values()
    attention = next(op for op in ops if hasattr(op, "scores"))
    assert attention.scores.quantizers.signed_input
    assert not attention.mix.quantizers.signed_input  # probabilities


# --- skipped layers and features -----------------------------------------------------------------


@torch.no_grad()
def test_gates_see_class_token_and_mean_of_others():
    backbone = gated("vit")
    hidden = backbone.stem(pictures())
    assert backbone.layers[0](hidden, 0) is hidden
    parts = backbone.parts(hidden)
    assert torch.equal(parts[:, :, 0], hidden[:, 0])
    torch.testing.assert_close(parts[:, :, 1], hidden[:, 1:].mean(1))
    assert gated("mixer").parts(hidden).shape == (16, 16, 1)


@torch.no_grad()
def test_channels_last_maps_are_pooled_over_positions():
    backbone = gated("windows")
    hidden = backbone.stem(pictures())
    assert hidden.shape == (16, 8, 8, 8)
    torch.testing.assert_close(backbone.parts(hidden).mean(2), hidden.mean((1, 2)))


@torch.no_grad()
def test_a_relu_behind_the_sum_runs_after_a_skip():
    backbone = gated("preactivation")
    frozen = backbone.to_inference()
    hidden = frozen.stem(pictures())
    assert bool((hidden < 0).any())
    state = run_layer(frozen, run_stem(frozen, pictures()), torch.tensor([0, 4] * 8))
    torch.testing.assert_close(state.hidden[::2], hidden[::2].relu())
    assert backbone.layers[1](state.hidden, 0) is state.hidden


class FirstToken(SmallViT):
    """Its head reads the first token, without a norm before it."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.encoder(x)[:, 0])


@pytest.mark.parametrize(("make", "n_layers"), [(Flat, 3), (FirstToken, 2)])
def test_a_view_may_lead_to_the_head(make, n_layers):
    _, backbone = converted(make)
    assert len(backbone.layers) == n_layers
    backbone(pictures(), 4).sum().backward()
    assert any(p.grad is not None for p in backbone.layers[0].parameters())
