"""Overhead of a sweep beyond its trials.

    python benchmarks/bench_sweep.py

The same trainings on the digits run twice on this machine: in a sweep without a scheduler, and by
hand, as runs of the command one after another in one process per core of the sweep. Both include
their start: the sweep's time includes Ray's, which is also reported separately, and the command's
time includes the start of a process for every run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SWEEP = """\
command: train_agent
settings: {{timesteps: {timesteps}}}
search: {{algorithm.ent_coef: {{grid: {entropies}}}}}
searcher: random
trials: {trials}
retrain: {{seeds: 0}}
"""


def by_sweep(
    folder: Path, timesteps: int, entropies: list[float], cpus: int
) -> tuple[float, float]:
    """Return the seconds of a sweep, and the seconds before its first trial starts."""
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(timesteps=timesteps, entropies=entropies, trials=len(entropies)))
    run = folder / "sweep"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dfs_rl.sweep", file, "--run-dir", run, "--cpus", str(cpus)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(run.glob("tune/search/trial_*")):
        time.sleep(0.02)
    start = time.perf_counter() - began
    if process.wait():
        raise SystemExit("the sweep failed")
    return time.perf_counter() - began, start


def by_hand(folder: Path, timesteps: int, entropies: list[float], cpus: int) -> float:
    """Return the seconds of the same trainings, without the command's final evaluation."""
    code = (
        "import sys; from dfs_rl.experiments.agent_config import TrainAgentConfig\n"
        "from dfs_rl.experiments.gate_run import GateRun\n"
        "from dfs_rl.agents.hyperparameters import PPOConfig; from dfs_rl.data import "
        "load_dataset\n"
        "from pathlib import Path; import torch\n"
        "torch.set_num_threads(1); d = load_dataset('digits')\n"
        "c = TrainAgentConfig(timesteps=int(sys.argv[1]), "
        "algorithm=PPOConfig(ent_coef=float(sys.argv[2])), "
        "run_dir=Path(sys.argv[3]))\n"
        "GateRun.create(c, d, ()).train()\n"
    )

    def one(number: int) -> None:
        run = folder / f"hand{number}"
        argv = [sys.executable, "-c", code, str(timesteps), str(entropies[number]), str(run)]
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)

    began = time.perf_counter()
    with ThreadPoolExecutor(cpus) as pool:
        list(pool.map(one, range(len(entropies))))
    return time.perf_counter() - began


def main() -> None:
    """Measure and print one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--timesteps", type=int, default=300_000)
    parser.add_argument("--cpus", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    entropies = [round(0.01 * (1 + number), 4) for number in range(args.trials)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hand = by_hand(folder, args.timesteps, entropies, args.cpus)
        sweep, start = by_sweep(folder, args.timesteps, entropies, args.cpus)
    print(
        json.dumps(
            {
                **vars(args),
                "by_hand_seconds": round(hand, 1),
                "sweep_seconds": round(sweep, 1),
                "start_seconds": round(start, 1),
                "ratio": round(sweep / hand, 3),
                "ratio_without_start": round((sweep - start) / hand, 3),
                "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
