"""Small models in plain PyTorch, as users write them, with non-trivial norms."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones import Fractionalized, fractionalize

SIDE = 16
CLASSES = 5


def conv_norm(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)
    )


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_norm(i, o, stride=stride), conv_norm(o, o)
        self.act = nn.ReLU(inplace=True)
        self.down = conv_norm(i, o, 1, stride) if (i, stride) != (o, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.down is None else self.down(x)
        out = self.second(self.act(self.first(x)))
        out += shortcut
        return self.act(out)


class BasicResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.blocks = nn.Sequential(
            BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1)
        )
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.stem(x)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Extended(BasicResNet):
    """A ResNet with further parts and another ``run(net, images)``."""

    def __init__(self, run: Callable[..., object], **parts: object) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)  # type: ignore[return-value]


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.keeps = i == o and stride == 1
        self.conv = nn.Sequential(
            conv_norm(i, 2 * i, 1),
            nn.ReLU6(inplace=True),
            conv_norm(2 * i, 2 * i, 3, stride, groups=2 * i),
            nn.ReLU6(inplace=True),
            conv_norm(2 * i, o, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.keeps else self.conv(x)


class SmallMobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 8),
            nn.ReLU6(inplace=True),
            Inverted(8, 8, 1),
            Inverted(8, 12, 2),
            Inverted(12, 12, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.encoder = nn.Sequential(Encoder(width), Encoder(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])


class Mix(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_tokens, self.over_channels = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + functional.gelu(self.over_tokens(self.norm1(x).transpose(1, 2))).transpose(1, 2)
        return x + functional.gelu(self.over_channels(self.norm2(x)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.blocks = nn.ModuleList(Mix(16, 12) for _ in range(2))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class ShiftedWindows(nn.Module):
    """Windowed attention by matrix products on channels-last maps, with a patch merging."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in (width, 2 * width))
        self.qkv = nn.ModuleList(nn.Linear(w, 3 * w) for w in (width, 2 * width))
        self.out = nn.ModuleList(nn.Linear(w, w) for w in (width, 2 * width))
        self.merge = nn.Linear(4 * width, 2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def attend(self, x: Tensor, i: int) -> Tensor:
        b, h, w, c = x.shape
        x = self.norms[i](x).roll((-1, -1), dims=(1, 2))
        x = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv[i](x).chunk(3, dim=-1)
        mask = torch.zeros(16, 16)
        mask[:8, 8:] = -4.0
        x = ((q @ k.transpose(-2, -1)) * c**-0.5 + mask).softmax(-1) @ v
        x = self.out[i](x).reshape(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(b, h, w, c).roll((1, 1), dims=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = x + self.attend(x, 0)
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1)
        x = self.merge(x)
        x = x + self.attend(x, 1)
        return self.head(x.mean((1, 2)))


class PreActivation(nn.Module):
    """Pre-activation blocks with scaled branches, squeeze and excitation, and a ReLU after the sum.

    The input of the first block has negative values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.norms = nn.ModuleList(nn.BatchNorm2d(8, eps=1e-3) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=2, dilation=2) for _ in range(2))
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(functional.relu(norm(x)))
            y = y * self.squeeze(y.mean((2, 3), keepdim=True)).sigmoid()
            x = functional.relu(x + self.scale * y)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Network with concatenation instead of addition, so that no block can be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.one(x).relu()], dim=1)
        return self.head(self.two(x).relu().mean((2, 3)))


class Odd(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Flat(BasicResNet):
    """ResNet whose head reads every position of the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16 * 8 * 8, CLASSES)

    def forward(self, x):
        return self.fc(torch.flatten(self.blocks(self.stem(x).relu()), 1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": BasicResNet,
    "mobilenet": SmallMobileNet,
    "vit": SmallViT,
    "mixer": Mixer,
    "windows": ShiftedWindows,
    "preactivation": PreActivation,
}


def lived_in(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose norms and biases differ from their initial values."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def examples(n: int = 16) -> Tensor:
    """Return normally distributed images, float32 ``[n, 3, 16, 16]``."""
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def pictures(n: int = 16) -> Tensor:
    """Return random images, uint8 ``[n, 3, 16, 16]``."""
    draws = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)


def converted(
    make: Callable[[], nn.Module], **settings: object
) -> tuple[nn.Module, Fractionalized]:
    """Convert a model, and check that it computes the same in full precision.

    Returns:
        The model in evaluation mode, and the backbone.
    """
    model = lived_in(make).eval()
    backbone = fractionalize(model, examples(), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = model(pictures() / 255.0)
        torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-4, atol=1e-5)
    return model, backbone


def names_of(backbone: Fractionalized) -> list[str]:
    """Return the names of the gated layers."""
    return [layer.name for layer in backbone.report.gated]


def chain(*blocks: nn.Module, width: int = 8) -> nn.Sequential:
    """Return a network of blocks between a convolution of 8 channels and a linear head."""
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *ends)


def with_encoder(*blocks: nn.Module) -> SmallViT:
    """Return a transformer with these blocks."""
    model = SmallViT()
    model.encoder = nn.Sequential(*blocks)
    return model
