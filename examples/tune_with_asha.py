"""Search settings with Ray Tune in a trainable of your own, and stop poor trials early by ASHA.

`python -m dfs_rl.sweep` does this without code; a trainable of your own is for what it lacks. The
objective comes from accuracy and computation on val at a fixed cost weight. Training rewards of
two trials cannot be compared if their rewards differ.

Prints a row for each trial: its objective, how many validations ASHA let it reach, its settings.
Writes the folder of Ray's results, `runs/tune`.
"""

import argparse
import tempfile
from pathlib import Path

from ray import init, tune
from ray.tune.schedulers import ASHAScheduler

import dfs_rl

COST_WEIGHT = 10.0


def trainable(settings: dict, timesteps: int) -> None:
    """Train a gate and report its objective after each validation."""

    def report(record: dict) -> None:
        accuracy, computation = record["accuracy"] / 100, record["computation"] / 100
        objective = accuracy - COST_WEIGHT * computation
        tune.report({"objective": objective, "accuracy": accuracy, "computation": computation})

    with tempfile.TemporaryDirectory() as folder:
        fixed = {"fixed_budget": True, "passes": 1, "num_envs": 64, "timesteps": timesteps}
        run = Path(folder) / "run"
        dfs_rl.train_gate(None, "digits", callback=report, run_dir=run, **fixed, **settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--trials", type=int, default=6)
    args = parser.parse_args()
    space = {
        "cost_weight": tune.loguniform(1.0, 30.0),
        "learning_rate": tune.loguniform(3e-4, 1e-2),
    }
    scheduler = ASHAScheduler(max_t=20, grace_period=3, reduction_factor=3)
    init(include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_parameters(trainable, timesteps=args.timesteps),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="objective", mode="max", scheduler=scheduler, num_samples=args.trials
        ),
        run_config=tune.RunConfig(storage_path=Path("runs/tune").absolute(), verbose=0),
    )
    frame = tuner.fit().get_dataframe().sort_values("objective", ascending=False)
    columns = ["objective", "training_iteration", *(f"config/{name}" for name in space)]
    print(frame[columns].to_string(index=False))
