"""Speed of PPO training relative to the bare environment.

    python benchmarks/bench_training.py

Both figures are measured in one process and one environment: 256 parallel episodes of a frozen
ResNet-20 at 32 x 32 pixels, one thread. The bare environment takes uniformly random actions; the
training draws actions from its untrained policy, which gives the same mix of options. Weights are
random, which changes no timing. The two alternate, and the median of their rounds is reported.
"""

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dfs_rl.agents.algorithms import build_algorithm
from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils import precision

CLASSES = 10
IMAGES = 1000


def make_env(num_envs: int, dtype: torch.dtype, device: str) -> SB3GatingVecEnv:
    """Build the environment over random weights and images."""
    torch.manual_seed(0)
    statistics_ = ChannelStatistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    backbone = ResNet(ResNetConfig(depth=20), statistics_).eval().to_inference(dtype).to(device)
    images = ImageSet(
        images=torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, device=device),
        labels=torch.randint(CLASSES, (IMAGES,), device=device),
    )
    task = Task(
        backbone=backbone,
        images=images,
        reward=RewardWeights(),
        budget=None,
        class_names=tuple(map(str, range(CLASSES))),
    )
    return SB3GatingVecEnv(task, num_envs, seed=0)


def bare_rate(env: SB3GatingVecEnv, episodes: int) -> float:
    """Return steps per second under random actions drawn beforehand."""
    layers = env.task.backbone.costs.n_layers
    options = len(env.task.backbone.options)
    actions = np.random.default_rng(0).integers(options, size=(episodes * layers, env.num_envs))
    env.reset()
    began = time.perf_counter()
    for row in actions:
        env.step(row)
    return actions.size / (time.perf_counter() - began)


def training_rate(model: OnPolicyAlgorithm, updates: int) -> float:
    """Return steps per second of rollouts and updates together."""
    model.set_logger(Logger(None, []))
    steps = updates * model.n_steps * model.n_envs
    began = time.perf_counter()
    model.learn(steps, log_interval=10**9)
    return steps / (time.perf_counter() - began)


def main() -> None:
    """Measure and print one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=3, help="updates per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    dtype = precision.resolve(settings.precision, torch.device(settings.device))

    env = make_env(settings.num_envs, dtype, settings.device)
    bare, training = [], []
    for _ in range(settings.rounds):
        bare.append(bare_rate(env, settings.updates))
        # New policy each round: a trained one no longer draws a uniform mix of options.
        model = build_algorithm(
            PPOConfig(),
            env,
            feature_sizes=env.task.backbone.feature_sizes,
            hidden=16,
            timesteps=600_000,
            device=settings.device,
        )
        training.append(training_rate(model, settings.updates))
    record = {
        "bare_steps_per_second": round(statistics.median(bare)),
        "training_steps_per_second": round(statistics.median(training)),
        "ratio": round(statistics.median(t / b for t, b in zip(training, bare, strict=True)), 3),
        "rounds": settings.rounds,
        "num_envs": settings.num_envs,
        "threads": settings.threads,
        "device": settings.device,
        "dtype": str(dtype).removeprefix("torch."),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
