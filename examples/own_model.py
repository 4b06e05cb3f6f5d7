"""Gate a network of your own: convert it, calibrate few bits from images, train a gate.

The network is plain PyTorch and first learns the digits in full precision. `constructor` names the
function that makes it again when a run is loaded.

Prints which layers can be gated, then accuracy and computation of the gate and of uniform bits.
Writes the run folder `runs/own`.
"""

import argparse

import torch
from torch import nn

import dfs_rl


class Block(nn.Module):
    """Residual block; at 0 bit only its shortcut remains."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.shortcut = nn.Identity() if i == o else nn.Conv2d(i, o, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + self.shortcut(x)).relu()


def make() -> nn.Module:
    """Return the network, untrained."""
    blocks = [Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1), Block(16, 32, 2)]
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *blocks, *end)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--timesteps", type=int, default=50_000)
    args = parser.parse_args()
    torch.manual_seed(0)
    data, model = dfs_rl.load_dataset("digits"), make()
    images, labels = data.train.images / 255, data.train.labels
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for rows in [r for _ in range(args.epochs) for r in torch.randperm(len(images)).split(64)]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    settings = {"bits": (0, 2, 4, 8, 32), "stem_bits": 8, "constructor": "own_model:make"}
    backbone = dfs_rl.fractionalize(model, images, **settings)
    dfs_rl.calibrate(backbone, data.train.images)
    print(backbone.report)
    gate = dfs_rl.train_gate(
        backbone, data, budget=3.0, timesteps=args.timesteps, run_dir="runs/own"
    )
    table = dfs_rl.evaluate(gate, data, baselines=["uniform"]).to_frame()
    print(table[["label", "accuracy", "computation"]].round(2).to_string(index=False))
