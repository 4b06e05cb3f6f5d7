"""Speed of the batched environment against single environments and plain forward passes.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bench_environment

It measures three figures, all on one frozen ResNet and on one thread, with random bit options:

- batched: layer-steps per second of ``SB3GatingVecEnv``, observations, rewards and infos included;
- single: layer-steps per second of Stable-Baselines3's ``DummyVecEnv`` over the same number of
  ``FractionalSkippingEnv``;
- forward: layer-steps per second of uniform forward passes, every bit option but 0 equally often.

Rounds of the three alternate and each figure is its fastest round, because other load on the
machine only adds time. On one thread of a CPU the clock is the processor time of this process,
which equals the wall clock of an idle machine. The weights are untrained, which changes no timing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import tyro
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dfs_rl.backbones import ResNet, ResNetConfig, WalkableBackbone
from dfs_rl.costs import DEFAULT_BITS, SKIP
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        depth: Depth of the ResNet.
        bits: Bit options of the gated layers.
        n_envs: Number of environments, and batch size of a plain forward pass.
        rounds: Number of measurements of each figure.
        threads: Number of torch threads.
        dtype: Number format of the frozen network.
        device: Device to run on.
    """

    depth: int = 20
    bits: tuple[int, ...] = DEFAULT_BITS
    n_envs: int = 256
    rounds: int = 10
    threads: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


def frozen_resnet(settings: Settings) -> WalkableBackbone:
    """Return an untrained, frozen ResNet."""
    torch.manual_seed(0)
    statistics_ = ChannelStatistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    network = ResNet(ResNetConfig(depth=settings.depth, bits=settings.bits), statistics_).eval()
    return network.to_inference(getattr(torch, settings.dtype)).to(settings.device)


def random_images(n: int) -> ImageSet:
    """Return noise with random labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, 10, (n,), generator=generator))


def episode(env: VecEnv, n_layers: int, n_options: int, rng: np.random.Generator) -> None:
    """Run one episode in every environment."""
    for _ in range(n_layers):
        env.step(rng.integers(n_options, size=env.num_envs))


@torch.inference_mode()
def forward(backbone: WalkableBackbone, images: torch.Tensor, bits: int) -> None:
    """Run a batch with all layers at the same bits, stem and head included."""
    hidden = backbone.stem(images)
    for layer in backbone.layers:
        hidden = layer(hidden, bits)
    backbone.head(hidden).cpu()


def measure(settings: Settings) -> dict[str, float]:
    """Return the layer-steps per second of each method."""
    torch.set_num_threads(settings.threads)
    one_thread = settings.threads == 1 and settings.device == "cpu"
    clock = time.process_time if one_thread else time.perf_counter

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    backbone, images = frozen_resnet(settings), random_images(2048)
    n_layers, n_options, n = backbone.costs.n_layers, len(backbone.options), settings.n_envs
    task = make_task(backbone=backbone, dataset=images, device=settings.device)
    batched = SB3GatingVecEnv(task, n, seed=0)
    single = DummyVecEnv(
        [
            lambda: FractionalSkippingEnv(
                backbone=backbone, dataset=task.images, device=settings.device
            )
        ]
        * n
    )
    batched.reset()
    single.reset()
    rng = np.random.default_rng(0)
    pixels = task.images.images[:n]
    running_bits = [bits for bits in settings.bits if bits != SKIP]

    times: dict[str, list[float]] = {"batched": [], "single": [], "forward": []}
    for _ in range(settings.rounds):
        for name, env in (("batched", batched), ("single", single)):
            times[name].append(seconds(lambda env=env: episode(env, n_layers, n_options, rng)))  # type: ignore[misc]
        each = [seconds(lambda b=bits: forward(backbone, pixels, b)) for bits in running_bits]  # type: ignore[misc]
        times["forward"].append(statistics.mean(each))
    return {name: n * n_layers / min(values) for name, values in times.items()}


def main(settings: Settings) -> None:
    """Measure and print a table."""
    rates = measure(settings)
    print(f"{settings}\n")
    print(f"{'':24}{'layer-steps/s':>15}")
    for name, value in rates.items():
        print(f"{name:24}{value:15,.0f}")
    print(f"\nbatched / single   {rates['batched'] / rates['single']:.2f}  (target: at least 8)")
    print(f"batched / forward  {rates['batched'] / rates['forward']:.2f}  (target: at least 0.6)")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
