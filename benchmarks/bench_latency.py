"""Latency of exported networks on one thread, against plain networks in onnxruntime.

    python benchmarks/bench_latency.py
    python benchmarks/bench_latency.py --depth 38
    python benchmarks/bench_latency.py --format onnx
    python benchmarks/bench_latency.py --network mobilenetv2 --rounds 30
    python benchmarks/bench_latency.py --runtime torch

Networks have random weights, which change no timing. The gated ones have a branch for each of 0, 8
and 32 bit at every layer:

- table: no gate and no branches, all layers at 8 bit;
- gated rule: all layers at 8 bit, then a branch that would run them again where the answer is not
  sure, as tuned rules do; it never is unsure;
- gated 8, gated 32, gated 0: a gate that always chooses this option;
- gated skips, gated exit: at 8 bit, but two of three layers skipped, or all after the first third
  left out by an exit.

They are divided by two plain networks of the same shape: fp32, and int8 of onnxruntime's own static
quantization of everything, sums included, with unsigned activations, its fastest form. "Saved" is
the time that skipped or exited layers save of gated 8, over the time that they take in int8.

The networks take turns at batch 1. A turn is eight calls, of which the fastest counts: the first
ones find the caches full of other networks, and other processes only add time. Each ratio is the
median over the rounds of two neighbouring turns, with its quartiles; of savings, over groups of
rounds. Batches are of images that a random gate treats differently: run by ``OnnxModel`` together,
over one by one.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
import tyro
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

import dfs_rl
from dfs_rl.backbones import Backbone
from dfs_rl.backbones.registry import network_of
from dfs_rl.data import ChannelStatistics
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate, exit_info
from dfs_rl.gating.rules import cascade
from dfs_rl.runtime import OnnxModel
from dfs_rl.training.calibration import calibrate_scales

BITS = (0, 8, 32)
SKIP, INT8, FULL, EXIT = range(4)
CALLS = 8
GROUPS = 20
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        runtime: Library that runs the gated networks; ``"torch"`` runs ``latency_torch.py``.
        format: Format in which the gated networks are exported.
        network: ``"cifar"`` is a ResNet on 32 x 32 pixels; the others are of adaptive depth, on
            224 x 224 pixels with 1,000 classes.
        depth: Depth of the CIFAR ResNet.
        rounds: Number of turns of each network.
        batches: Sizes of batches, with ``cifar`` alone.
    """

    runtime: Literal["onnx", "torch"] = "onnx"
    format: Literal["onnx", "onnx-int8"] = "onnx-int8"
    network: Literal["cifar", "resnet50", "mobilenetv2"] = "cifar"
    depth: int = 20
    rounds: int = 100
    batches: tuple[int, ...] = (64, 256)


class Noise(CalibrationDataReader):
    """Random images for onnxruntime's calibration."""

    def __init__(self, shape: Sequence[int]) -> None:
        generator = np.random.default_rng(0)
        images = generator.random((4, 1, *shape), dtype=np.float32)
        self._feeds = iter([{"images": image} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image."""
        return next(self._feeds, None)


def make_network(settings: Settings, stem_bits: int) -> Backbone:
    """Return a calibrated network with random weights and an exit after a third of its layers."""
    torch.manual_seed(0)
    if settings.network == "cifar":
        source = network_of(f"cifar_resnet{settings.depth}")
        shape = {}
    else:
        source = network_of(settings.network, "adn")
        stem = {"stem": "imagenet"} if "stem" in source.settings else {}
        shape = {"image_size": (224, 224), "n_classes": 1000, **stem}
    statistics = ChannelStatistics(mean=(0.5,) * 3, std=(0.25,) * 3)
    net = source.make(statistics, bits=BITS, stem_bits=stem_bits, **shape)
    images = torch.rand(4, *net.image_shape)
    calibrate_scales(net, images, parts=[net])
    net.set_exits((max(1, len(net.blocks) // 3),))
    for classifier in [*net.probes, *net.exit_heads.heads]:
        inputs = torch.rand(64, classifier.weight.shape[1])
        classifier.quantizers.calibrate(inputs, classifier.weight)
    return net.eval()


def steady_gate(net: Backbone, actions: Sequence[int]) -> MLPGate:
    """Return a gate that always takes the same action at each layer."""
    gate = MLPGate(net.feature_sizes, net.options, exits=exit_info(net)).eval()
    with torch.no_grad():
        for layer, action in zip(gate.networks, actions, strict=True):
            layer[2].bias[action] = 1e6
    return gate


def make_sessions(
    settings: Settings, folder: Path
) -> tuple[dict[str, onnxruntime.InferenceSession], Sequence[int]]:
    """Return a session for each network, and the shape of its images."""
    gated, plain = make_network(settings, 8), make_network(settings, 32)
    n, exit_ = len(gated.blocks), gated.costs.exits_after[0]
    skips = [SKIP if layer % 3 or n < 2 * 3 else INT8 for layer in range(n)]
    left = [FULL] * exit_ + [EXIT] * (n - exit_)
    tables = {"fp32": [FULL] * n, "int8": [FULL] * n}
    tables |= {"int8 skips": [FULL if s == INT8 else SKIP for s in skips], "int8 exit": left}
    models = {
        name: GatedModel(plain.to_inference(), TableGate(table)) for name, table in tables.items()
    }
    models["table"] = GatedModel(gated.to_inference(), TableGate([INT8] * n))
    rule = cascade([INT8] * n, [INT8] * n, threshold=0.0, options=gated.options)
    models["gated rule"] = GatedModel(gated.to_inference(), rule)
    choices = {"8": [INT8] * n, "32": [FULL] * n, "0": [SKIP] * n, "skips": skips}
    choices["exit"] = [INT8] * exit_ + [EXIT] * (n - exit_)
    for name, actions in choices.items():
        gate = steady_gate(gated, actions)
        models[f"gated {name}"] = GatedModel(gated.to_inference(), gate)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {}
    for name, model in models.items():
        ours = name.startswith(("gated", "table"))
        path = dfs_rl.export(
            model, folder / f"{name}.onnx", format=settings.format if ours else "onnx"
        )
        if name.startswith("int8"):
            images = Noise(gated.image_shape)
            quantize_static(path, path, images, activation_type=QuantType.QUInt8)
        sessions[name] = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    return sessions, gated.image_shape


def measure(
    sessions: dict[str, onnxruntime.InferenceSession], shape: Sequence[int], rounds: int
) -> dict[str, np.ndarray]:
    """Return the milliseconds of every turn."""
    image = {"images": np.random.default_rng(1).random((1, *shape), dtype=np.float32)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds + rounds // 10):
        for name, session in sessions.items():
            calls = []
            for _ in range(CALLS):
                start = time.perf_counter()
                session.run(None, image)
                calls.append(1e3 * (time.perf_counter() - start))
            times[name].append(min(calls))
    return {name: np.array(values[rounds // 10 :]) for name, values in times.items()}


def savings(times: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return the time that left out layers save, over what they take in int8, by groups."""
    full, less, plain, plain_less = (
        np.array([np.median(group) for group in np.array_split(times[key], GROUPS)])
        for key in ("gated 8", f"gated {name}", "int8", f"int8 {name}")
    )
    return (full - less) / (plain - plain_less)


def batch_ratios(settings: Settings, folder: Path) -> dict[str, np.ndarray]:
    """Return the time of batches over that of their images one by one."""
    net = make_network(settings, 8)
    gate = MLPGate(net.feature_sizes, net.options).eval()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(3.0)
    gated = GatedModel(net.to_inference(), gate)
    model = OnnxModel(dfs_rl.export(gated, folder / "batch.onnx", format=settings.format))
    generator = np.random.default_rng(2)
    ratios = {}
    for n in settings.batches:
        images = generator.random((n, *net.image_shape), dtype=np.float32)
        images *= generator.random((n, 1, 1, 1), dtype=np.float32)
        pairs = []
        for _ in range(GROUPS // 2):
            start = time.perf_counter()
            result = model(images)
            middle = time.perf_counter()
            for image in images:
                model(image[None])
            pairs.append((middle - start) / (time.perf_counter() - middle))
        settings_seen = len(np.unique(result.options, axis=0))
        ratios[f"batch {n}, {settings_seen} mixes"] = np.array(pairs[1:])
    return ratios


def main(settings: Settings) -> None:
    """Measure and print the ratios."""
    if settings.runtime == "torch":
        import latency_torch  # beside this file

        latency_torch.main(latency_torch.Settings(depth=settings.depth, rounds=settings.rounds))
        return
    with tempfile.TemporaryDirectory() as name:
        sessions, shape = make_sessions(settings, Path(name))
        times = measure(sessions, shape, settings.rounds)
        gated = [name for name in sessions if name.startswith(("gated", "table"))]
        ratios = {
            f"{name} / {base}": times[name] / times[base]
            for name in gated
            for base in ("fp32", "int8")
        }
        ratios |= {f"saved by {name}": savings(times, name) for name in ("skips", "exit")}
        if settings.network == "cifar":
            ratios |= batch_ratios(settings, Path(name))
    medians = {name: round(float(np.median(values)), 3) for name, values in times.items()}
    print(json.dumps({"n": settings.rounds, "milliseconds": medians}))
    for name, values in ratios.items():
        low, middle, high = np.quantile(values, QUARTILES)
        print(f"{name:24} {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(tyro.cli(Settings))
