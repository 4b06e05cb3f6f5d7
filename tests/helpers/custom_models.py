"""Modules of user-written networks on disk."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.utils import trusted_import

OWN = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.norm(self.conv(x)).{act}()


def make(n_classes={classes}):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d({channels}, 4, 3, padding=1), Block(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n_classes),
    )
    return model


def backbone():
    from dfs_rl import fractionalize

    images = torch.rand(8, {channels}, 8, 8)
    return fractionalize(make(), images, bits={bits}, mean=[0.5], std=[0.25])


def leaving():
    made = backbone()
    made.set_exits((1,))
    return made


def drawn():
    return nn.Sequential(
        nn.Conv2d({channels}, 4, 3, padding=1), Block(), nn.Flatten(), nn.Linear(256, {classes})
    )


def number():
    return 3


class Choosing(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 and len(x) > 1 else -x


def choosing():
    return nn.Sequential(Choosing(), make())


three = 3


def needs(classes):
    return make(classes)


def fails():
    raise ValueError("no\\n  good")


def deep():
    return nn.Conv2d(3, 4, 3, groups=2)


def quits():
    import sys

    sys.exit()


def stopped():
    raise KeyboardInterrupt
"""


def write(
    module: str,
    *,
    act: str = "relu",
    channels: int = 1,
    classes: int = 10,
    bits: tuple[int, ...] = (0, 4, 32),
) -> None:
    sys.modules.pop(module, None)
    text = OWN.format(act=act, channels=channels, classes=classes, bits=bits)
    Path(f"{module}.py").write_text(text, encoding="utf-8")


@contextmanager
def forgotten_trust() -> Iterator[None]:
    """Start the block without trusted constructors, as in a new process."""
    token = trusted_import._trusted.set(frozenset())
    try:
        yield
    finally:
        trusted_import._trusted.reset(token)
