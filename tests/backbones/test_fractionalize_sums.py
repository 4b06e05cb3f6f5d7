"""Residual blocks of several branches: all summands are gated together, in any order."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.errors import ConfigError
from tests.helpers.models import (
    CLASSES,
    chain,
    conv_norm,
    converted,
    examples,
    names_of,
    pictures,
    with_encoder,
)

BRANCHES = 256 * 8 * 8 * (9 + 9 + 25 + 1)  # MACs of both branches of a ``Beside``


class Beside(nn.Module):
    """Two branches beside one shortcut, added up by ``adds(shortcut, left, right)``."""

    def __init__(self, adds, shortcut: nn.Module) -> None:
        super().__init__()
        self.left = nn.Sequential(conv_norm(8, 8), nn.ReLU(), conv_norm(8, 8))
        self.right = nn.Sequential(conv_norm(8, 8, kernel=5), nn.ReLU(), conv_norm(8, 8, kernel=1))
        self.shortcut = shortcut
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        return self.adds(self.shortcut(x), self.left(x), self.right(x))


def shortcut_first(x, left, right):
    return x + left + right


SUMS = [
    shortcut_first,
    lambda x, left, right: left + (right + x),
    lambda x, left, right: (left + x) + right,
    lambda x, left, right: x + (left + right),
]


@torch.no_grad()
def test_both_branches_are_one_layer_in_any_order():
    model, backbone = converted(lambda: chain(*(Beside(adds, nn.Identity()) for adds in SUMS)))
    assert names_of(backbone) == ["1", "2", "3", "4"]
    assert backbone.costs.layer_macs == (BRANCHES,) * 4
    hidden = backbone.stem(pictures())
    for n, layer in enumerate(backbone.layers):
        assert layer(hidden, 0) is hidden
        expected = nn.Sequential(*model[: n + 1], *model[n + 2 :])(pictures() / 255.0)
        mix = [0 if i == n else 32 for i in range(4)]
        torch.testing.assert_close(backbone(pictures(), mix), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_cheapest_path_is_the_shortcut():
    model, backbone = converted(lambda: chain(Beside(SUMS[2], conv_norm(8, 8, kernel=1))))
    hidden = backbone.stem(pictures())
    expected = model[1].shortcut(hidden)
    torch.testing.assert_close(backbone.layers[0](hidden, 0), expected, rtol=1e-4, atol=1e-4)
    assert backbone.costs.layer_macs == (BRANCHES,)


def test_paths_of_equal_work_are_left_alone():
    shortcut = nn.Sequential(conv_norm(8, 8), conv_norm(8, 8))
    with pytest.raises(ConfigError, match=r"'1'.*none of its 3 paths is plainly the shortcut"):
        fractionalize(chain(Beside(shortcut_first, shortcut)), examples())


def pooled(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1)


# Sums of the input and a branch, and what they leave of it without the branch.
FREE = [
    (lambda x, f: x + x + f, lambda x: x + x),
    (lambda x, f: x + (f + x), lambda x: x + x),
    (lambda x, f: (x + f) + pooled(x), lambda x: x + pooled(x)),
    (lambda x, f: pooled(x) + (x + f), lambda x: x + pooled(x)),
    (lambda x, f: pooled(x) + x.relu() + f, lambda x: pooled(x) + x.relu()),
]


@torch.no_grad()
def test_paths_without_products_remain_at_0_bit():
    def beside(adds) -> nn.Module:
        return Beside(lambda x, a, b: adds(x, a + b), nn.Identity())

    _, backbone = converted(lambda: chain(*(beside(adds) for adds, _ in FREE)))
    hidden = backbone.stem(pictures())
    for form in (backbone, backbone.to_inference()):
        for layer, (_, left) in zip(form.layers, FREE, strict=True):
            torch.testing.assert_close(layer(hidden, 0), left(hidden), rtol=1e-5, atol=1e-5)


class Down(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.first = conv_norm(8, 8, kernel=1), conv_norm(8, 8)
        self.second = conv_norm(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.shortcut(x) + (y + self.second(y))


@torch.no_grad()
def test_a_residual_block_on_one_path_stays_whole():
    model, backbone = converted(lambda: chain(Down()))
    assert len(backbone.layers) == 1
    hidden = backbone.stem(pictures())
    expected = model[1].shortcut(hidden)
    torch.testing.assert_close(backbone.layers[0](hidden, 0), expected, rtol=1e-5, atol=1e-5)


class ParallelEncoder(nn.Module):
    """Attention and MLP side by side, as in ViT-22B (Dehghani et al., ICML 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0] + self.mlp(y)


@torch.no_grad()
def test_parallel_attention_and_mlp_are_one_layer():
    _, backbone = converted(lambda: with_encoder(ParallelEncoder(16), ParallelEncoder(16)))
    assert names_of(backbone) == ["encoder.0", "encoder.1"]
    hidden = backbone.stem(pictures())
    assert backbone.layers[0](hidden, 0) is hidden


class Added(nn.Module):
    """A plain sum of what some paths compute."""

    def __init__(self, *paths: nn.Module) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (path(x) for path in self.paths)
        return sum(others, first)


class Adapted(nn.Module):
    """A weight with a low-rank adapter, as in LoRA (Hu et al., ICLR 2022)."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


def adapted_conv() -> Adapted:
    return Adapted(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1))


def adapted_head() -> Adapted:
    return Adapted(nn.Linear(8, CLASSES), nn.Linear(8, 1, bias=False), nn.Linear(1, CLASSES))


def between(expansion: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, expansion, 1), nn.ReLU(), nn.Conv2d(expansion, 8, 1))


def reduced(kernel: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(8, 4, 1), nn.ReLU(), conv_norm(4, 8, kernel), nn.ReLU())


def body(*added: nn.Module) -> nn.Sequential:
    return chain(*added, Beside(shortcut_first, nn.Identity()))


def head(added: nn.Module) -> nn.Sequential:
    return nn.Sequential(*body(nn.ReLU())[:-1], added)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def linear_and_mlp() -> Added:
    return Added(nn.Linear(8, CLASSES), mlp())


def inception() -> Added:
    return Added(nn.Sequential(conv_norm(8, 8, 1), nn.ReLU()), reduced(3), reduced(5))


MLP, LINEAR = 8 * 32 + 32 * CLASSES, 8 * CLASSES
# A network with sums, and what their paths and the head take: MACs at 16 x 16, and of a head.
NO_BLOCKS = {
    "adapted convolution, Inception block, a path as cheap": (
        lambda: body(adapted_conv(), inception(), Added(conv_norm(8, 8, 1), between(4))),
        256 * (9 * 64 + 16 + 16 + 64 + 2 * 32 + 9 * 32 + 25 * 32 + 128) + LINEAR,
    ),
    "adapted head": (lambda: head(adapted_head()), LINEAR + 8 + CLASSES),
    "linear head and MLP": (lambda: head(linear_and_mlp()), LINEAR + MLP),
    "logarithm of two heads": (
        lambda: nn.Sequential(head(linear_and_mlp()), nn.LogSoftmax(1)),
        LINEAR + MLP,
    ),
    "uneven heads": (
        lambda: head(Added(mlp(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), mlp()))),
        2 * MLP + 64,
    ),
}


@pytest.mark.parametrize(("make", "macs"), NO_BLOCKS.values(), ids=NO_BLOCKS)
def test_paths_that_are_no_residual_block_always_run(make, macs):
    model, backbone = converted(make)
    assert backbone.costs.layer_macs == (BRANCHES,)
    assert backbone.report.fixed_macs == 256 * 27 * 8 + macs
    for name in (n for n, m in model.named_modules() if type(m) in (Added, Adapted)):
        (why,) = (why for n, why in backbone.report.left_alone if n in (name, f"{name}.paths"))
        assert "paths" in why


def bottleneck(i: int, width: int, o: int, groups: int = 1) -> nn.Sequential:
    """Return a bottleneck whose first convolution strides, which leaves it the fewest MACs."""
    return nn.Sequential(
        conv_norm(i, width, 1, 2),
        nn.ReLU(),
        conv_norm(width, width, groups=groups),
        nn.ReLU(),
        conv_norm(width, o, 1),
    )


def published() -> list[Added]:
    """Return blocks of ResNet, ResNeXt, GhostNet and CoAtNet: a projection beside a branch."""
    depthwise = nn.Sequential(conv_norm(8, 8, 3, 2, groups=8), conv_norm(8, 32, 1))
    pooling = nn.Sequential(nn.MaxPool2d(2), conv_norm(8, 32, 1))
    return [
        Added(conv_norm(8, 32, 1, 2), bottleneck(8, 8, 32)),
        Added(conv_norm(8, 32, 1, 2), bottleneck(8, 16, 32, groups=8)),
        Added(depthwise, bottleneck(8, 24, 32)),
        Added(pooling, bottleneck(8, 24, 32)),
    ]


@torch.no_grad()
def test_projections_are_shortcuts_of_published_blocks():
    def restored(block: nn.Module) -> nn.Sequential:
        return nn.Sequential(block, nn.Conv2d(32, 8, 1), nn.Upsample(scale_factor=2))

    model, backbone = converted(lambda: chain(*map(restored, published())))
    macs = (64 + 9 * 64 + 256, 128 + 9 * 2 * 16 + 512, *[192 + 9 * 576 + 768] * 2)  # at 8 x 8
    assert backbone.costs.layer_macs == tuple(64 * each for each in macs)
    x = hidden = backbone.stem(pictures())
    for layer, (block, *restoring) in zip(backbone.layers, model[1:5], strict=True):
        hidden = layer(hidden, 0)
        torch.testing.assert_close(hidden, block.paths[0](x))
        x = nn.Sequential(*restoring)(hidden)


def test_a_projection_costs_a_fifth_less_than_others():
    model = body(Added(conv_norm(8, 8, 1), between(5)))  # with 4 it is no shortcut, see above
    assert len(fractionalize(model.eval(), examples()).layers) == 2


def test_an_adapter_within_a_branch_is_gated_with_it():
    block = Added(nn.Identity(), nn.Sequential(adapted_conv(), nn.ReLU(), adapted_conv()))
    backbone = fractionalize(body(block).eval(), examples())
    assert backbone.costs.layer_macs[0] == 2 * 256 * (9 * 64 + 16 + 16)
    assert backbone.report.gated[0].shortcut == "identity"
    assert len(backbone.layers[0].ops) == 6
