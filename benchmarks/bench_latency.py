"""Latency of exported networks at batch 1 on one thread, against plain networks in onnxruntime.

    python benchmarks/bench_latency.py
    python benchmarks/bench_latency.py --depth 38

Every network has the shape of a CIFAR ResNet on 32 x 32 pixels with random weights, which change no
timing. The gated networks have a branch for each of 0, 8 and 32 bit at every layer:

- table: no gate and no branches, all layers at 8 bit;
- gated 8, gated 32, gated 0: a gate that always chooses this option.

They are divided by two plain networks of the same shape: fp32, and int8 of onnxruntime's own static
quantization. The networks take turns, and each figure is the median over the rounds of the ratio of
two neighbouring calls, with its quartiles.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

import dfs_rl
from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.data import ChannelStatistics
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate
from dfs_rl.training.calibration import calibrate_scales

BITS = (0, 8, 32)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        depth: Depth of the ResNet.
        rounds: Number of calls of each network.
    """

    depth: int = 20
    rounds: int = 400


class Noise(CalibrationDataReader):
    """Random images for onnxruntime's calibration."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        images = generator.random((8, 1, 3, 32, 32), dtype=np.float32)
        self._feeds = iter([{"images": image} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image."""
        return next(self._feeds, None)


def network(depth: int, stem_bits: int) -> ResNet:
    """Return a calibrated ResNet with random weights."""
    torch.manual_seed(0)
    config = ResNetConfig(depth=depth, bits=BITS, stem_bits=stem_bits)
    net = ResNet(config, ChannelStatistics(mean=(0.5,) * 3, std=(0.25,) * 3))
    calibrate_scales(net, torch.rand(16, 3, 32, 32), parts=[net])
    return net.eval()


def steady_gate(net: ResNet, option: int) -> MLPGate:
    """Return a gate that always chooses one option."""
    gate = MLPGate(net.feature_sizes, net.options).eval()
    with torch.no_grad():
        for layer in gate.networks:
            layer[2].bias[option] = 1e6
    return gate


def measure(
    sessions: dict[str, onnxruntime.InferenceSession], rounds: int
) -> dict[str, np.ndarray]:
    """Return the seconds of every call, the sessions taking turns."""
    image = {"images": np.random.default_rng(1).random((1, 3, 32, 32), dtype=np.float32)}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, image)
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[rounds // 10 :]) for name, values in seconds.items()}


def main(settings: Settings) -> None:
    """Measure and print the ratios."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    gated, plain = network(settings.depth, 8), network(settings.depth, 32)
    layers = len(gated.blocks)
    gates: dict[str, tuple[ResNet, Gate]] = {
        "fp32": (plain, TableGate([2] * layers, options=plain.options)),
        "table": (gated, TableGate([1] * layers, options=gated.options)),
        "gated 8": (gated, steady_gate(gated, 1)),
        "gated 32": (gated, steady_gate(gated, 2)),
        "gated 0": (gated, steady_gate(gated, 0)),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.onnx") for name in (*gates, "int8")}
        for name, (net, gate) in gates.items():
            dfs_rl.export(GatedModel(net.to_inference(), gate), paths[name])
        quantize_static(paths["fp32"], paths["int8"], Noise(), quant_format=QuantFormat.QDQ)
        sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in paths.items()
        }
    seconds = measure(sessions, settings.rounds)
    ratios = {
        f"{name} / {base}": np.quantile(seconds[name] / seconds[base], [0.25, 0.5, 0.75]).round(3)
        for name in gates
        for base in ("fp32", "int8")
        if name != base
    }
    milliseconds = {name: round(1e3 * float(np.median(s)), 3) for name, s in seconds.items()}
    print(json.dumps({"n": len(seconds["fp32"]), "milliseconds": milliseconds}))
    for name, (low, middle, high) in ratios.items():
        print(f"{name:18} {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(tyro.cli(Settings))
