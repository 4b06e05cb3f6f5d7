"""Time of a loaded gate in torch, against the same layers without a gate and plain networks.

    python benchmarks/latency_torch.py
    python benchmarks/latency_torch.py --depth 38 --bits 0 8 32

Every network has the shape of a CIFAR ResNet on 32 x 32 pixels with random weights, which change no
timing. The gated ones are what ``dfs_rl.load`` returns, on one thread:

- steady: a gate that reads and decides at every layer, and always chooses 8 bit;
- mixed: a gate that chooses different options below 32 bit for different images.

At batch 1 the ratios are time over that of the same layers at the same bits without a gate, and
over that of a plain fp32 network, convolutions with folded norms. At the large batch they are
images per second over those of torch's own static int8 network (x86 engine), divided by the share
of the layers that ran. The networks take turns; each figure is the median over the rounds of the
ratio of neighbouring calls, with its quartiles.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.ao.nn.quantized as quantized
import torch.ao.quantization as ao
import tyro
from torch import Tensor, nn
from torch.nn import functional

import dfs_rl
from dfs_rl.backbones import BackboneInfo, ResNet, ResNetConfig, save_backbone
from dfs_rl.data import ChannelStatistics
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.storage import save_gate
from dfs_rl.training.calibration import calibrate_scales

EIGHT, FULL = 8, 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        depth: Depth of the ResNet.
        bits: Bit options; 8 is needed.
        batch_size: Size of the large batch.
        rounds: Number of calls of each network at batch 1; a twentieth at the large batch.
        compiled: Whether to measure layers compiled by ``torch.compile`` as well, which takes a C++
            compiler and a minute.
    """

    depth: int = 20
    bits: tuple[int, ...] = (0, 2, 3, 4, 8, 32)
    batch_size: int = 256
    rounds: int = 400
    compiled: bool = False


class PlainBlock(nn.Module):
    """A residual block with a parameter-free shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.extra = (2 if outputs > inputs else 1), outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.join = quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inputs, h, w]`` to ``[batch, outputs, h / stride, w / stride]``."""
        shortcut = x
        if self.extra:
            small = x[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(small, (0, 0, 0, 0, 0, self.extra))
        joined: Tensor = self.join.add_relu(self.conv2(self.relu(self.conv1(x))), shortcut)
        return joined


class PlainResNet(nn.Module):
    """A CIFAR ResNet without norms, for ``torch.ao.quantization``."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        outputs = [16 << stage for stage in range(3) for _ in range((depth - 2) // 6)]
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.stem, self.relu = nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            *(PlainBlock(i, o) for i, o in zip([16, *outputs], outputs, strict=False))
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map floats ``[batch, 3, 32, 32]`` to logits."""
        hidden = self.blocks(self.relu(self.stem(self.quant(x))))
        logits: Tensor = self.dequant(self.classifier(hidden.mean((2, 3))))
        return logits


def static_int8(net: PlainResNet) -> nn.Module:
    """Return torch's static int8 form of a network."""
    torch.backends.quantized.engine = "x86"
    net.qconfig = ao.get_default_qconfig("x86")
    pairs = [["stem", "relu"]]
    pairs += [[f"blocks.{i}.conv1", f"blocks.{i}.relu"] for i in range(len(net.blocks))]
    prepared = ao.prepare(ao.fuse_modules(net, pairs))
    prepared(torch.rand(16, 3, 32, 32))
    converted: nn.Module = ao.convert(prepared)
    return converted


def gated(settings: Settings, images: Tensor, *, steady: bool) -> GatedModel:
    """Return a loaded gate, steady or mixed."""
    torch.manual_seed(0)
    config = ResNetConfig(depth=settings.depth, bits=settings.bits)
    net = ResNet(config, ChannelStatistics(mean=(0.5,) * 3, std=(0.25,) * 3)).eval()
    calibrate_scales(net, images[:16], parts=[net])
    gate = MLPGate(net.feature_sizes, net.options, feature_macs=net.feature_macs)
    with torch.no_grad():
        for layer in gate.networks:
            if steady:
                layer[2].bias[settings.bits.index(EIGHT)] = 1e6
            else:
                layer[0].weight.mul_(3.0)
                layer[2].weight.mul_(3.0)
                layer[2].bias.zero_()
                if settings.bits[-1] == FULL:
                    layer[2].bias[-1] = -1e6
    with tempfile.TemporaryDirectory() as folder:
        names = tuple("abcdefghij")
        info = BackboneInfo(dataset="noise", fingerprint="0" * 16, class_names=names)
        save_backbone(net, info, Path(folder, "backbone"))
        save_gate(gate, Path(folder, "gate"))
        return dfs_rl.load(folder)


def without_gate(model: GatedModel, image: Tensor) -> Callable[[], Tensor]:
    """Return the layers of one image at the bits that the gate chooses for it."""
    backbone, bits = model.backbone, model(image)[1].bits[0].tolist()

    def run() -> Tensor:
        hidden = backbone.stem(image)
        for layer, own in zip(backbone.layers, bits, strict=True):
            hidden = layer(hidden, own)
        return backbone.head(hidden)

    return run


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of every call, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + max(2, rounds // 10)):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[-rounds:]) for name, values in seconds.items()}


def show(name: str, ratios: np.ndarray) -> None:
    """Print the median of a ratio with its quartiles."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"{name:36} {middle:.2f} ({low:.2f} to {high:.2f}), n {len(ratios)}")


@torch.no_grad()
def main(settings: Settings) -> None:
    """Measure and print the ratios."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    grey = torch.rand(settings.batch_size, 3, 4, 4) * torch.rand(settings.batch_size, 1, 1, 1)
    images = functional.interpolate(grey, size=(32, 32))  # dark and bright, for different choices
    batch = (255 * images).to(torch.uint8)
    models = {
        name: gated(settings, images, steady=name == "steady") for name in ("steady", "mixed")
    }
    plain = PlainResNet(settings.depth).eval().to(memory_format=torch.channels_last)
    floats = torch.rand_like(images).contiguous(memory_format=torch.channels_last)
    one, single = batch[:1], floats[:1].contiguous(memory_format=torch.channels_last)

    calls: dict[str, Callable[[], Any]] = {"fp32": lambda: plain(single)}
    for name, model in models.items():
        calls[name] = lambda model=model: model(one)
        calls[f"{name}, no gate"] = without_gate(model, one)
    if settings.compiled:
        compiled = gated(settings, images, steady=True)
        for layer in compiled.backbone.layers:
            cast("nn.Module", layer).compile()
        calls["compiled"] = without_gate(compiled, one)
    seconds = measure(calls, settings.rounds)
    print(json.dumps({name: round(1e3 * float(np.median(s)), 3) for name, s in seconds.items()}))
    for name in models:
        show(f"batch 1: {name} / no gate", seconds[name] / seconds[f"{name}, no gate"])
        show(f"batch 1: {name} / fp32", seconds[name] / seconds["fp32"])
    if settings.compiled:
        show("batch 1: compiled / no gate", seconds["compiled"] / seconds["steady, no gate"])

    int8 = static_int8(plain)
    calls = {"int8": lambda: int8(floats)}
    calls |= {name: lambda model=model: model(batch) for name, model in models.items()}
    seconds = measure(calls, max(5, settings.rounds // 20))
    print(json.dumps({name: round(1e3 * float(np.median(s)), 1) for name, s in seconds.items()}))
    for name, model in models.items():
        options = model(batch)[1].options
        share, patterns = float((options > 0).double().mean()), len(options.unique(dim=0))
        ratio = seconds["int8"] * share / seconds[name]
        show(f"batch {settings.batch_size}: {name} / int8 x {share:.2f}", ratio)
        print(f"  {patterns} different settings")


if __name__ == "__main__":
    main(tyro.cli(Settings))
