"""Latency of gates as a profile predicts it, against their measured latency.

    python benchmarks/latency_prediction.py
    python benchmarks/latency_prediction.py --runtime onnx

The network is a CIFAR ResNet on 32 x 32 pixels with random weights, which change no timing. Learned
gates with random weights, which lean to options of their own, run images one by one. The
prediction is that of the cost model ``latency`` for the options that a gate chose. Profiles and
gates take turns too, so that both see the same load of the machine: the error of a gate is the
median over the turns of predicted over measured time, each the mean over the images of the median
over the calls. A call that another process interrupted is repeated.
"""

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

import dfs_rl
from dfs_rl.backbones import InferenceBackbone, ResNet, ResNetConfig
from dfs_rl.costs.latency_profile import LatencyProfile, Runtime
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.gate_training import make_gate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate, MLPGate, macs_taken
from dfs_rl.runtime.onnx_session import OnnxSession
from dfs_rl.training.calibration import calibrate_scales, measure_features

ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        runtime: Library that runs the networks.
        depth: Depth of the ResNet.
        bits: Bit options.
        gates: Number of gates.
        images: Number of images of each gate.
        turns: Number of profiles.
        repeats: Calls of each gate for each image in a turn.
        calls: See ``dfs_rl.profile``.
    """

    runtime: Runtime = "torch"
    depth: int = 20
    bits: tuple[int, ...] = (0, 8, 32)
    gates: int = 20
    images: int = 200
    turns: int = 5
    repeats: int = 3
    calls: int = 60


def random_images(n: int) -> Tensor:
    """Return noise of various contrasts and means."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n, 3, 32, 32, generator=generator)
    contrast, mean = torch.rand(2, n, 1, 1, 1, generator=generator)
    return (255 * (contrast * noise + (1 - contrast) * mean)).byte()


def network(settings: Settings, images: Tensor) -> InferenceBackbone:
    """Return a ResNet with random weights, calibrated on the images."""
    torch.manual_seed(0)
    config = ResNetConfig(depth=settings.depth, bits=settings.bits, stem_bits=8)
    net = ResNet(config, ChannelStatistics(mean=(0.5,) * 3, std=(0.25,) * 3))
    calibrate_scales(net, images[:16].float() / 255, parts=[net])
    labels = torch.arange(len(images)) % net.n_classes
    measure_features(net, [ImageSet(images, labels)], torch.Generator().manual_seed(0))
    return net.eval().to_inference()


def random_gate(backbone: InferenceBackbone, seed: int) -> LearnedGate:
    """Return the default gate of ``train_agent`` with random weights."""
    torch.manual_seed(seed)
    gate = make_gate(TrainAgentConfig(), backbone)
    assert isinstance(gate, MLPGate)
    lean = torch.randn(gate.n_actions)
    with torch.no_grad():
        for layer in gate.networks:
            layer[2].weight.mul_(4.0)
            layer[2].bias.add_(lean + 2.0 * torch.randn(gate.n_actions))
    return gate.eval()


def calls_of(model: GatedModel, runtime: Runtime, images: Tensor) -> list[Callable[[], object]]:
    """Return the calls that classify the images one by one."""
    if runtime == "torch":
        return [partial(model, image[None]) for image in images]
    with TemporaryDirectory() as folder:
        content = dfs_rl.export(model, Path(folder, "gate.onnx"), format=runtime).read_bytes()
    session = OnnxSession(content, threads=1)
    preference = {"preference": np.array([model.gate.preference], np.float32)}
    floats = images.float().div(255).numpy()
    return [partial(session.run, {"images": image[None], **preference}) for image in floats]


def predict(model: GatedModel, profile: LatencyProfile, images: Tensor) -> float:
    """Return the mean milliseconds per image by the cost model ``latency``."""
    _, trace = model(images)
    costs = model.backbone.costs.with_cost_model("latency", profile)
    gate_macs = macs_taken(model.gate, trace.n_layers_run, costs)
    shares = costs.computation(trace.options, gate_macs=gate_macs) / 100.0
    return float(shares.mean()) * costs.total_cost


def undisturbed_seconds(call: Callable[[], object]) -> float:
    """Return the time of a call that no other process interrupted, or of the last of a few."""
    for _ in range(ATTEMPTS):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw == before:
            break
    return seconds


def measure(calls: Sequence[Sequence[Callable[[], object]]], repeats: int) -> NDArray[np.float64]:
    """Return the mean milliseconds per image of each gate, one after the other.

    Gates of the runtime onnx have a network each, and would displace each other from the caches.
    """
    seconds = [
        [[undisturbed_seconds(call) for call in of_gate] for _ in range(repeats)]
        for of_gate in calls
    ]
    mean: NDArray[np.float64] = 1e3 * np.median(seconds, axis=1).mean(axis=1)
    return mean


def main(settings: Settings) -> None:
    """Measure and print the errors."""
    torch.set_num_threads(1)
    images = random_images(settings.images)
    backbone = network(settings, images)
    models = [
        GatedModel(backbone, random_gate(backbone, seed)).eval() for seed in range(settings.gates)
    ]
    calls = [calls_of(model, settings.runtime, images) for model in models]
    ratios, measured = [], []
    for _ in range(settings.turns):
        profile = dfs_rl.profile(
            models[0], runtime=settings.runtime, batch_sizes=[1], calls=settings.calls
        )
        measured.append(measure(calls, settings.repeats))
        ratios.append([predict(model, profile, images) for model in models] / measured[-1])
    milliseconds = np.median(measured, axis=0)
    errors = 100.0 * (np.median(ratios, axis=0) - 1.0)
    patterns = [len(model(images)[1].options.unique(dim=0)) for model in models]
    print(f"different settings per gate: {min(patterns)} to {max(patterns)}")
    facts = {"machine": profile.machine, "versions": profile.versions}
    print(json.dumps({**vars(settings), **facts}))
    for ms, error in sorted(zip(milliseconds, errors, strict=True)):
        print(f"{ms:8.3f} ms measured, predicted {error:+6.2f} %")
    sizes = np.abs(errors)
    low, middle, high = np.quantile(sizes, [0.25, 0.5, 0.75])
    print(
        f"mean absolute error {sizes.mean():.2f} % (n {len(sizes)} gates, quartiles {low:.2f}, "
        f"{middle:.2f} and {high:.2f} %, largest {sizes.max():.2f} %), mean error "
        f"{errors.mean():+.2f} %"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
