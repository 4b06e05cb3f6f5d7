"""Speed of the environments in layer-steps per second, on one frozen ResNet and one thread.

    python benchmarks/bench_environment.py
    python benchmarks/bench_environment.py --against ../before

It measures four figures with random bit options:

- single: ``FractionalSkippingEnv``;
- vector: ``FractionalSkippingVectorEnv`` with ``n_vector`` environments;
- sb3: ``SB3GatingVecEnv`` with ``n_envs`` environments;
- forward: uniform forward passes of ``n_envs`` images, every bit option but 0 equally often.

Rounds of the four alternate and each figure is its fastest round, because other load on the machine
only adds time. On one thread of a CPU the clock is the processor time of this process, which equals
the wall clock of an idle machine. The weights are untrained, which changes no timing.

``--against`` runs this file in alternating processes on another checkout and on this one, and
prints the median over the pairs of the ratio of this checkout's speed to the other's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from compare_checkouts import import_root

from dfs_rl.backbones import InferenceBackbone, ResNet, ResNetConfig
from dfs_rl.costs import DEFAULT_BITS, SKIP
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task

N_IMAGES = 2048


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        against: Checkout to compare with; ``None`` measures this one alone.
        pairs: Number of pairs of processes of a comparison.
        depth: Depth of the ResNet.
        bits: Bit options of the gated layers.
        n_envs: Number of environments of ``sb3``, and batch size of ``forward``.
        n_vector: Number of environments of ``vector``.
        rounds: Number of measurements of each figure.
        device: Device to run on.
        as_json: Print the figures as JSON.
    """

    against: Path | None = None
    pairs: int = 8
    depth: int = 20
    bits: tuple[int, ...] = DEFAULT_BITS
    n_envs: int = 256
    n_vector: int = 64
    rounds: int = 6
    device: str = "cpu"
    as_json: bool = False


def frozen_resnet(settings: Settings) -> InferenceBackbone:
    """Return an untrained, frozen ResNet."""
    torch.manual_seed(0)
    statistics_ = ChannelStatistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    network = ResNet(ResNetConfig(depth=settings.depth, bits=settings.bits), statistics_).eval()
    return network.to_inference().to(settings.device)


def random_images() -> ImageSet:
    """Return noise with random labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N_IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, 10, (N_IMAGES,), generator=generator))


@torch.inference_mode()
def forward(backbone: InferenceBackbone, images: torch.Tensor, bits: int) -> None:
    """Run a batch with all layers at the same bits, stem and head included."""
    hidden = backbone.stem(images)
    for layer in backbone.layers:
        hidden = layer(hidden, bits)
    backbone.head(hidden).cpu()


def measure(settings: Settings) -> dict[str, float]:
    """Return the layer-steps per second of each form of the environment."""
    torch.set_num_threads(1)
    clock = time.process_time if settings.device == "cpu" else time.perf_counter

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    backbone = frozen_resnet(settings)
    keywords: dict[str, Any] = {"backbone": backbone, "device": settings.device}
    keywords["dataset"] = random_images()
    task = make_task(**keywords)
    envs = {
        "single": (FractionalSkippingEnv(**keywords), ()),
        "vector": (FractionalSkippingVectorEnv(settings.n_vector, **keywords), settings.n_vector),
        "sb3": (SB3GatingVecEnv(task, settings.n_envs, seed=0), settings.n_envs),
    }
    rng, n_layers = np.random.default_rng(0), backbone.costs.n_layers
    episodes = {"single": 8, "vector": 2, "sb3": 1}

    def play(name: str) -> None:
        env, shape = envs[name]
        for _ in range(episodes[name]):
            env.reset()
            for _ in range(n_layers):
                env.step(rng.integers(len(backbone.options), size=shape))

    pixels = task.images.images[: settings.n_envs]
    best = dict.fromkeys((*envs, "forward"), float("inf"))
    for _ in range(settings.rounds):
        for name in envs:
            best[name] = min(best[name], seconds(lambda name=name: play(name)))  # type: ignore[misc]
        running = [bits for bits in settings.bits if bits != SKIP]
        passes = [seconds(lambda b=bits: forward(backbone, pixels, b)) for bits in running]  # type: ignore[misc]
        best["forward"] = min(best["forward"], statistics.mean(passes))
    steps = {
        "single": episodes["single"],
        "vector": episodes["vector"] * settings.n_vector,
        "sb3": settings.n_envs,
        "forward": settings.n_envs,
    }
    return {name: steps[name] * n_layers / value for name, value in best.items()}


def compare(settings: Settings, other: Path) -> None:
    """Print the median ratio of each figure between this checkout and another one."""
    here, arguments = Path(__file__).resolve(), ["--as-json", "--rounds", str(settings.rounds)]
    figures: list[list[dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        roots = [
            import_root(checkout.resolve(), Path(folder) / str(i))
            for i, checkout in enumerate((other, here.parents[1]))
        ]
        for pair in range(settings.pairs):
            figures.append([{}, {}])
            for i in (0, 1) if pair % 2 else (1, 0):
                environment = os.environ | {"PYTHONPATH": str(roots[i])}
                command = [sys.executable, str(here), *arguments, "--device", settings.device]
                done = subprocess.run(command, env=environment, capture_output=True, check=True)
                figures[-1][i] = json.loads(done.stdout)
    for name in figures[0][0]:
        ratios = [after[name] / before[name] for before, after in figures]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{name:10} {statistics.median(ratios):.3f}  ({spread}, {settings.pairs} pairs)")


def main(settings: Settings) -> None:
    """Measure and print the figures."""
    if settings.against is not None:
        compare(settings, settings.against)
        return
    rates = measure(settings)
    if settings.as_json:
        print(json.dumps(rates))
        return
    for name, value in rates.items():
        print(f"{name:10}{value:12,.0f} layer-steps/s")
    print(f"sb3 / single   {rates['sb3'] / rates['single']:.2f}  (target: at least 8)")
    print(f"sb3 / forward  {rates['sb3'] / rates['forward']:.2f}  (target: at least 0.6)")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
