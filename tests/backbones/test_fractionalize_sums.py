"""Residual blocks of more than one branch: what is added to the shortcut is gated together, in whatever order it is added."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones import Fractionalized
from dfs_rl.errors import ConfigError
from tests.backbones.nets import CLASSES, SmallViT, conv_norm, examples, lived_in, pictures

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
    frozen = backbone.prepare()
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
