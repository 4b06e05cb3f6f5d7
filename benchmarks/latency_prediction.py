"""Latency of gates as a profile predicts it, against their measured latency.

    python benchmarks/latency_prediction.py
    python benchmarks/latency_prediction.py --runtime onnx

The network is a CIFAR ResNet on 32 x 32 pixels with random weights, which change no timing. It is
profiled at batch 1. Then learned gates with random weights, which lean to options of their own, run
images one by one, all gates in turn. The prediction is that of the cost model ``latency`` for the
options that a gate chose; the measured time of an image is the median over its calls.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from torch import Tensor

import dfs_rl
from dfs_rl.backbones import InferenceBackbone, ResNet, ResNetConfig
from dfs_rl.costs.latency_profile import LatencyProfile, Runtime
from dfs_rl.data import ChannelStatistics
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.experiments.gate_training import make_gate
from dfs_rl.gating.model import GatedModel, macs_taken
from dfs_rl.gating.networks import LearnedGate, MLPGate
from dfs_rl.runtime import OnnxModel
from dfs_rl.training.calibration import calibrate_scales


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        runtime: Library that runs the networks.
        depth: Depth of the ResNet.
        bits: Bit options.
        gates: Number of gates.
        images: Number of images of each gate.
        repeats: Calls of each gate for each image.
        calls: See ``dfs_rl.profile``.
    """

    runtime: Runtime = "torch"
    depth: int = 20
    bits: tuple[int, ...] = (0, 8, 32)
    gates: int = 20
    images: int = 200
    repeats: int = 5
    calls: int = 200


def network(settings: Settings) -> ResNet:
    """Return a calibrated ResNet with random weights."""
    torch.manual_seed(0)
    config = ResNetConfig(depth=settings.depth, bits=settings.bits, stem_bits=8)
    net = ResNet(config, ChannelStatistics(mean=(0.5,) * 3, std=(0.25,) * 3))
    calibrate_scales(net, torch.rand(16, 3, 32, 32), parts=[net])
    return net.eval()


def random_gate(backbone: InferenceBackbone, seed: int) -> LearnedGate:
    """Return the default gate of ``train_agent`` with random weights."""
    torch.manual_seed(seed)
    gate = make_gate(TrainAgentConfig(), backbone)
    assert isinstance(gate, MLPGate)
    lean = 2.0 * torch.randn(gate.n_actions)
    with torch.no_grad():
        for layer in gate.networks:
            layer[2].weight.mul_(4.0)
            layer[2].bias.add_(lean + torch.randn(gate.n_actions))
    return gate.eval()


def calls_of(model: GatedModel, runtime: Runtime, images: Tensor) -> list[Callable[[], object]]:
    """Return the calls that classify the images one by one."""
    if runtime == "torch":
        return [lambda image=image: model(image[None]) for image in images]
    with TemporaryDirectory() as folder:
        onnx = OnnxModel(dfs_rl.export(model, Path(folder, "gate.onnx")))
    floats = images.float().div(255).numpy()
    return [lambda image=image: onnx(image[None]) for image in floats]


def predict(model: GatedModel, profile: LatencyProfile, images: Tensor) -> float:
    """Return the mean milliseconds per image by the cost model ``latency``."""
    _, trace = model(images)
    costs = model.backbone.costs.with_cost_model("latency", profile)
    gate_macs = macs_taken(model.gate, trace.n_layers_run)
    shares = costs.computation(trace.options, gate_macs=gate_macs) / 100.0
    return float(shares.mean()) * costs.total_cost


def main(settings: Settings) -> None:
    """Measure and print the errors."""
    torch.set_num_threads(1)
    backbone = network(settings).to_inference()
    models = [
        GatedModel(backbone, random_gate(backbone, seed)).eval() for seed in range(settings.gates)
    ]
    torch.manual_seed(1)
    contrast = torch.rand(settings.images, 3, 1, 1)
    noise = torch.rand(settings.images, 3, 32, 32)
    images = ((contrast * noise + torch.rand_like(contrast) * (1 - contrast)) * 255).byte()
    profile = dfs_rl.profile(
        models[0], runtime=settings.runtime, batch_sizes=[1], calls=settings.calls
    )
    calls = [calls_of(model, settings.runtime, images) for model in models]
    seconds = np.zeros((settings.repeats, settings.gates, settings.images))
    for repeat in range(-1, settings.repeats):  # the first one warms up
        for i, gate in np.ndindex(settings.images, settings.gates):
            start = time.perf_counter()
            calls[gate][i]()
            seconds[repeat, gate, i] = time.perf_counter() - start
    measured = 1e3 * np.median(seconds, axis=0).mean(axis=1)
    predicted = np.array([predict(model, profile, images) for model in models])
    errors = 100.0 * (predicted / measured - 1.0)
    print(
        json.dumps(
            {
                "machine": profile.machine,
                "versions": profile.versions,
                "gates": settings.gates,
                "images": settings.images,
                "measured_ms": [round(float(f(measured)), 3) for f in (np.min, np.max)],
                "profile_error_percent": round(profile.error, 2),
            }
        )
    )
    for ms, error in sorted(zip(measured, errors, strict=True)):
        print(f"{ms:8.3f} ms measured, predicted {error:+6.2f} %")
    sizes = np.abs(errors)
    low, middle, high = np.quantile(sizes, [0.25, 0.5, 0.75])
    print(
        f"mean absolute error {sizes.mean():.2f} % over {settings.gates} gates, median {middle:.2f} "
        f"({low:.2f} to {high:.2f}), largest {sizes.max():.2f}, mean error {errors.mean():+.2f}"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
