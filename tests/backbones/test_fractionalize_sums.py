"""Residual blocks of several branches: all summands are gated together, in any order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones import Fractionalized
from dfs_rl.errors import ConfigError
from tests.helpers.models import CLASSES, SmallViT, conv_norm, examples, lived_in, pictures

Sum = Callable[[Tensor, Tensor, Tensor], Tensor]
SUMS: dict[str, Sum] = {
    "shortcut first": lambda x, left, right: x + left + right,
    "shortcut last": lambda x, left, right: left + (right + x),
    "shortcut between": lambda x, left, right: (left + x) + right,
    "branches first": lambda x, left, right: x + (left + right),
}


class Beside(nn.Module):
    """Two branches beside one shortcut."""

    def __init__(self, adds: Sum, shortcut: nn.Module) -> None:
        super().__init__()
        self.left = nn.Sequential(conv_norm(8, 8), nn.ReLU(), conv_norm(8, 8))
        self.right = nn.Sequential(conv_norm(8, 8, kernel=5), nn.ReLU(), conv_norm(8, 8, kernel=1))
        self.shortcut = shortcut
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        return self.adds(self.shortcut(x), self.left(x), self.right(x))


class TwoBranches(nn.Module):
    def __init__(self, adds: Sum, shortcut: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.blocks = nn.Sequential(*(Beside(adds, shortcut()) for _ in range(2)))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


def made(adds: Sum, shortcut: Callable[[], nn.Module]) -> tuple[TwoBranches, Fractionalized]:
    torch.manual_seed(0)
    model = lived_in(lambda: TwoBranches(adds, shortcut)).eval()
    return model, fractionalize(model, examples())


@pytest.mark.parametrize("adds", SUMS.values(), ids=SUMS)
@torch.no_grad()
def test_both_branches_are_one_layer(adds):
    model, backbone = made(adds, nn.Identity)
    images = pictures()
    assert [layer.name for layer in backbone.report.gated] == ["blocks.0", "blocks.1"]
    assert backbone.costs.layer_macs == (256 * 8 * 8 * (9 + 9 + 25 + 1),) * 2
    hidden = backbone.stem(images)
    assert backbone.layers[0](hidden, 0) is hidden
    torch.testing.assert_close(backbone(images, 32), model(images / 255.0), rtol=1e-4, atol=1e-4)
    expected = model.head(model.blocks[1](model.stem(images / 255.0)).mean([2, 3]))
    torch.testing.assert_close(backbone(images, (0, 32)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_cheapest_path_is_the_shortcut_where_all_run_something():
    model, backbone = made(SUMS["shortcut between"], lambda: conv_norm(8, 8, kernel=1))
    hidden = backbone.stem(pictures())
    torch.testing.assert_close(
        backbone.layers[0](hidden, 0), model.blocks[0].shortcut(hidden), rtol=1e-4, atol=1e-4
    )
    assert backbone.costs.layer_macs == (256 * 8 * 8 * (9 + 9 + 25 + 1),) * 2


def test_paths_of_equal_work_are_left_alone():
    with pytest.raises(ConfigError, match=r"blocks.0.*none of its 3 paths is plainly the shortcut"):
        made(SUMS["shortcut first"], lambda: nn.Sequential(conv_norm(8, 8), conv_norm(8, 8)))


def pooled(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1)


FREE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "twice": (lambda x, f: x + x + f, lambda x: x + x),
    "twice apart": (lambda x, f: x + (f + x), lambda x: x + x),
    "pooled beside": (lambda x, f: (x + f) + pooled(x), lambda x: x + pooled(x)),
    "pooled first": (lambda x, f: pooled(x) + (x + f), lambda x: x + pooled(x)),
    "no identity": (lambda x, f: pooled(x) + x.relu() + f, lambda x: pooled(x) + x.relu()),
}


@pytest.mark.parametrize(("adds", "left"), FREE.values(), ids=FREE)
@torch.no_grad()
def test_what_multiplies_nothing_is_left_at_0_bit(adds, left):
    model, backbone = made(lambda x, a, b: adds(x, a + b), nn.Identity)
    assert len(backbone.layers) == 2
    hidden = backbone.stem(pictures())
    torch.testing.assert_close(backbone.layers[0](hidden, 0), left(hidden), rtol=1e-5, atol=1e-5)
    frozen = backbone.to_inference()
    torch.testing.assert_close(frozen.layers[0](hidden, 0), left(hidden), rtol=1e-5, atol=1e-5)
    expected = model(pictures() / 255.0)
    torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_residual_block_on_one_path_stays_whole():
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut, self.first = conv_norm(8, 8, kernel=1), conv_norm(8, 8)
            self.second = conv_norm(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.shortcut(x) + (y + self.second(y))

    torch.manual_seed(0)
    model = nn.Sequential(conv_norm(3, 8), Down(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = fractionalize(model.eval(), examples())
    assert len(backbone.layers) == 1
    hidden = backbone.stem(pictures())
    torch.testing.assert_close(backbone.layers[0](hidden, 0), model[1].shortcut(hidden))


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
def test_attention_and_mlp_side_by_side_are_skipped_together():
    torch.manual_seed(0)
    model = SmallViT()
    model.encoder = nn.Sequential(ParallelEncoder(16), ParallelEncoder(16))
    backbone = fractionalize(model.eval(), examples())
    assert [layer.name for layer in backbone.report.gated] == ["encoder.0", "encoder.1"]
    hidden = backbone.stem(pictures())
    assert backbone.layers[0](hidden, 0) is hidden
    torch.testing.assert_close(backbone.layers[0](hidden, 32), model.encoder[0](hidden))


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


def with_body(body: nn.Module, width: int = 8, out: int = 8) -> nn.Sequential:
    residual = Beside(SUMS["shortcut first"], nn.Identity())
    stem, ends = conv_norm(3, width), (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if out != 8:
        return nn.Sequential(stem, body, *ends, nn.Linear(out, CLASSES))
    return nn.Sequential(stem, body, residual, *ends, nn.Linear(8, CLASSES))


def with_head(head: nn.Module) -> nn.Sequential:
    return nn.Sequential(*with_body(nn.ReLU())[:-1], head)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))


MLP = 8 * 32 + 32 * CLASSES
# Where the sum stands, the sum, and what its paths take: MACs at 16 x 16, or of a head.
NO_BLOCKS: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[], nn.Module], int]] = {
    "adapted convolution": (with_body, adapted_conv, 256 * (9 * 64 + 16 + 16)),
    "adapted head": (with_head, adapted_head, 8 * CLASSES + 8 + CLASSES),
    "linear head and MLP": (
        with_head,
        lambda: Added(nn.Linear(8, CLASSES), mlp()),
        8 * CLASSES + MLP,
    ),
    "logarithm of two heads": (
        lambda head: nn.Sequential(with_head(head), nn.LogSoftmax(1)),
        lambda: Added(nn.Linear(8, CLASSES), mlp()),
        8 * CLASSES + MLP,
    ),
    "uneven heads": (
        with_head,
        lambda: Added(mlp(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), mlp())),
        2 * MLP + 64,
    ),
    "paths of an Inception block": (
        with_body,
        lambda: Added(nn.Sequential(conv_norm(8, 8, 1), nn.ReLU()), reduced(3), reduced(5)),
        256 * (64 + 2 * 32 + 9 * 32 + 25 * 32),
    ),
    "a path as cheap": (with_body, lambda: Added(conv_norm(8, 8, 1), between(4)), 256 * 128),
}


@pytest.mark.parametrize(("around", "adds", "macs"), NO_BLOCKS.values(), ids=NO_BLOCKS)
@torch.no_grad()
def test_paths_that_are_no_residual_block_always_run_and_are_reported(around, adds, macs):
    torch.manual_seed(0)
    model = lived_in(lambda: around(adds())).eval()
    backbone = fractionalize(model, examples())
    (layer,) = backbone.costs.layer_macs
    assert layer == 256 * 64 * (9 + 9 + 25 + 1)
    rest = 256 * 27 * 8 + (8 * CLASSES if around is with_body else 0)
    assert backbone.report.fixed_macs == rest + macs
    (name,) = (n for n, m in model.named_modules() if type(m) in (Added, Adapted))
    (why,) = (why for n, why in backbone.report.left_alone if n in (name, f"{name}.paths"))
    assert "paths" in why
    expected = model(pictures() / 255.0)
    torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-4, atol=1e-5)


def bottleneck(i: int, width: int, o: int, groups: int = 1) -> nn.Sequential:
    """Return a bottleneck whose first convolution strides, which leaves it the fewest MACs."""
    return nn.Sequential(
        conv_norm(i, width, 1, 2),
        nn.ReLU(),
        conv_norm(width, width, groups=groups),
        nn.ReLU(),
        conv_norm(width, o, 1),
    )


def ghost_shortcut() -> nn.Sequential:
    return nn.Sequential(conv_norm(16, 16, 3, 2, groups=16), conv_norm(16, 32, 1))


def pooled_shortcut() -> nn.Sequential:
    return nn.Sequential(nn.MaxPool2d(2), conv_norm(16, 32, 1))


# A projection, a branch, and the branch's MACs at 8 x 8.
DOWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int]] = {
    "ResNet": (
        lambda: conv_norm(16, 32, 1, 2),
        lambda: bottleneck(16, 8, 32),
        64 * (16 * 8 + 9 * 64 + 8 * 32),
    ),
    "ResNeXt": (
        lambda: conv_norm(16, 32, 1, 2),
        lambda: bottleneck(16, 16, 32, groups=8),
        64 * (256 + 9 * 2 * 16 + 512),
    ),
    "GhostNet": (ghost_shortcut, lambda: bottleneck(16, 24, 32), 64 * (384 + 9 * 576 + 768)),
    "CoAtNet": (pooled_shortcut, lambda: bottleneck(16, 24, 32), 64 * (384 + 9 * 576 + 768)),
}


@pytest.mark.parametrize(("projection", "branch", "macs"), DOWN.values(), ids=DOWN)
@torch.no_grad()
def test_a_projection_is_the_shortcut_of_published_blocks(projection, branch, macs):
    torch.manual_seed(0)
    added = Added(projection(), branch())
    model = lived_in(lambda: with_body(added, 16, 32)).eval()
    backbone = fractionalize(model, examples())
    assert backbone.costs.layer_macs == (macs,)
    hidden = backbone.stem(pictures())
    torch.testing.assert_close(backbone.layers[0](hidden, 0), added.paths[0](hidden))


@pytest.mark.parametrize(("expansion", "n_layers"), [(4, 1), (5, 2)])
def test_a_projection_is_a_shortcut_where_the_branch_takes_a_quarter_more(expansion, n_layers):
    model = with_body(Added(conv_norm(8, 8, 1), between(expansion)))
    assert len(fractionalize(model.eval(), examples()).layers) == n_layers


def test_an_adapter_within_a_branch_is_gated_with_it():
    block = Added(nn.Identity(), nn.Sequential(adapted_conv(), nn.ReLU(), adapted_conv()))
    backbone = fractionalize(with_body(block).eval(), examples())
    assert backbone.costs.layer_macs[0] == 2 * 256 * (9 * 64 + 16 + 16)
    assert backbone.report.gated[0].shortcut == "identity"
    assert len(backbone.layers[0].ops) == 6
