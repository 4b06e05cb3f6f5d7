"""Swin transformers of adaptive depth: counts, both forms against attention over all tokens at once, walks, storage, training."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveSwin,
    AdaptiveSwinConfig,
    BackboneInfo,
    load_backbone,
    save_backbone,
)
from dfs_rl.backbones.adaptive_swin import window_of
from dfs_rl.data import ChannelStatistics, Dataset, channel_statistics
from dfs_rl.errors import ConfigError
from dfs_rl.gating import execution
from dfs_rl.training.bit_sampling import uniform
from dfs_rl.training.calibration import calibrate_steps
from dfs_rl.training.supernet import SupernetConfig, SupernetTrainer, accuracy_of

GREY = ChannelStatistics((0.4,), (0.3,))
SIDE = (8, 12)
SMALL: dict[str, object] = {
    "blocks": (3, 2),
    "width": 8,
    "heads": 2,
    "in_channels": 1,
    "n_classes": 3,
    "image_size": SIDE,
    "patch": 1,
}


def swin(**changes: object) -> AdaptiveSwin:
    torch.manual_seed(0)
    config = AdaptiveSwinConfig(**(SMALL | {"bits": (0, 4, 32)} | changes))  # type: ignore[arg-type]
    net = AdaptiveSwin(config, GREY)
    calibrate_steps(net, pictures(), parts=[net])
    with torch.no_grad():  # values that matter
        for name, parameter in net.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.uniform_(0.5, 1.5)
    return net.eval()


def pictures(n: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, 1, *SIDE), dtype=torch.uint8, generator=generator)


def run(net, images: Tensor, setting: tuple[int, ...]) -> Tensor:
    hidden = net.stem(images)
    for layer, bits in zip(net.layers, setting, strict=True):
        hidden = layer(hidden, bits)
    return net.head(hidden)


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
    for setting in product((0, 32), repeat=2):
        pixels = ((images / 255.0 - 0.4) / 0.3).permute(0, 2, 3, 1)
        tokens = functional.linear(pixels, net.embedding.weight, net.embedding.bias)
        tokens = normal(net.first_norm, tokens)
        for stage, bits, window in zip(net.blocks, setting, (4, 2), strict=True):
            blocks = [*stage.mandatory, *(stage.path if bits else [])]
            for n, block in enumerate(blocks):
                row = int(bits == 0) if n < len(stage.mandatory) else 0
                shift = window // 2 if n % 2 else 0
                tokens = in_float(block, tokens, row=row, window=window, shift=shift)
        mean = normal(net.norm, tokens).mean(dim=(1, 2))
        expected = functional.linear(mean, net.classifier.weight, net.classifier.bias)
        torch.testing.assert_close(net(images, setting), expected, rtol=1e-4, atol=1e-4)
        frozen = run(net.prepare(), images, setting)
        torch.testing.assert_close(frozen, expected, rtol=1e-4, atol=1e-4)


def test_it_has_the_published_size_and_costs():
    with torch.device("meta"):
        config = AdaptiveSwinConfig(
            n_classes=1000, image_size=(224, 224), bits=(0, 32), stem_bits=32
        )
        net = AdaptiveSwin(config, ChannelStatistics((0.4,) * 3, (0.3,) * 3))
    sizes = [
        # What always runs has two sets of norms, of which one is counted.
        p.numel() // (len(p) if "mandatory" in n and "norm.norm_" in n else 1)
        for n, p in net.named_parameters()
        if p.requires_grad and "step" not in n
    ]
    assert config.patch_size == 4
    assert [window_of(size) for size in config.map_sizes] == [7] * 4
    keys = 2 * 96 + 2 * 192 + 6 * 384 + 2 * 768  # have no bias here
    # Table 7 of the paper: 29 million and 4.5 billion; torchvision's swin_t has 28,288,354 parameters.
    assert sum(sizes) == 28_288_354 - keys
    macs = sum(net.costs.layer_macs) + sum(part.macs for part in net.costs.fixed)
    assert round(macs / 1e9, 1) == 4.5


@pytest.mark.parametrize("net", [swin(), swin(granularity="block", per_channel=True)])
@torch.no_grad()
def test_frozen_and_trained_forms_agree_and_samples_do_not_meet(net):
    images, n = pictures(), len(net.layers)
    frozen = net.prepare()
    for bits in (*net.options, None):
        setting = tuple(net.options[i % 3] for i in range(n)) if bits is None else (bits,) * n
        expected = run(net, images, setting)
        torch.testing.assert_close(run(frozen, images, setting), expected, rtol=1e-3, atol=1e-3)
        alone = torch.cat([run(frozen, image[None], setting) for image in images])
        torch.testing.assert_close(run(frozen, images, setting), alone, rtol=1e-4, atol=1e-4)
    halved = run(net.prepare(torch.bfloat16), images, (32,) * n)
    torch.testing.assert_close(halved, run(net, images, (32,) * n), rtol=0.1, atol=0.2)


@torch.no_grad()
def test_the_walk_runs_it_and_gates_see_each_stages_mean():
    net = swin().prepare()
    options = torch.randint(0, 3, (8, 2), generator=torch.Generator().manual_seed(0))
    state = execution.start(net, pictures())
    for layer in range(2):
        state = execution.step(net, state, options[:, layer], reuse=True)
    alone = [
        run(net, picture[None], tuple(net.options[o] for o in row))
        for picture, row in zip(pictures(), options.tolist(), strict=True)
    ]
    torch.testing.assert_close(execution.finish(net, state), torch.cat(alone), rtol=1e-4, atol=1e-4)
    hidden = net.stem(pictures())
    assert net.feature_sizes == (3 + 8, 3 + 8)
    torch.testing.assert_close(net.feature(hidden, 0)[:, 3:], hidden.mean(dim=(1, 2)))
    quarters = net.parts(hidden, grid=2)
    torch.testing.assert_close(quarters[:, :, 1], hidden[:, :4, 6:].mean(dim=(1, 2)))


@torch.no_grad()
def test_stored_ones_come_back_the_same(tmp_path):
    net = swin(per_channel=True)
    net.set_exits((1,))
    info = BackboneInfo(dataset="d", fingerprint="f", class_names=("a", "b", "c"))
    save_backbone(net, info, tmp_path / "net")
    again = load_backbone(tmp_path / "net")
    assert type(again) is AdaptiveSwin
    assert again.config == net.config
    assert again.costs == net.costs
    for bits in net.options:
        assert torch.equal(again(pictures(), bits), net(pictures(), bits))


def test_every_uniform_setting_works_after_training_and_none_before(halves: Dataset):
    torch.manual_seed(0)
    shape = SMALL | {"n_classes": 2, "image_size": (8, 8), "blocks": (2, 2), "bits": (0, 4, 32)}
    net = AdaptiveSwin(
        AdaptiveSwinConfig(**shape),  # type: ignore[arg-type]
        channel_statistics(halves.train.images),
    )
    training = SupernetTrainer(
        net,
        halves,
        SupernetConfig(batch_size=16, pad=0, precision="float32", lr=0.002),
        epochs=20,
        seed=1,
        device=torch.device("cpu"),
        recipe="adn",
    )
    assert isinstance(training.optimizer, torch.optim.AdamW)
    before = [accuracy_of(training.snapshot(), halves.val, uniform(b, 2)) for b in net.options]
    assert max(before) < 80.0  # 50 is chance
    for _ in range(20):
        list(training.train_epoch())
    backbone = training.finish()
    for bits in net.options:
        assert accuracy_of(backbone, halves.val, uniform(bits, 2)) > 95.0


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (3, 1)}, "a stage needs at least 2"),
        ({"bits": (4, 32)}, "add 0"),
        ({"blocks": ()}, "a stage needs at least 2"),
        ({"image_size": (9, 12)}, "no patch makes maps of tokens that 2 stages can halve"),
        ({"image_size": (23, 23)}, "into windows of 2 to 7 along a side; multiples of 8 do"),
        (
            {"image_size": (8, 8), "patch": 8},
            r"patch is 8, which .* 8 x 8 pixels; allowed are \[1, 2, 4\]",
        ),
        ({"heads": 3}, "the width 8 must be a multiple"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveSwinConfig(**(SMALL | {"bits": (0, 4, 32)} | changes))  # type: ignore[arg-type]
