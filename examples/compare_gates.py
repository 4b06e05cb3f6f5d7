"""Compare two gates with each other and with their baselines, over images.

Both are gates for all budgets and are compared at one of them. The difference in accuracy has an
interval from resampled test images: without 0 in it, one gate is better on these images.

Prints a row for each gate and baseline, then the difference of the two with its interval.
Writes the run folders `runs/learned` and `runs/cascade`, and `runs/comparison/report.html`.
"""

import argparse

import numpy as np

import dfs_rl

BUDGET = 1.0  # percent of all layers at 32 bit

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    timesteps = parser.parse_args().timesteps
    data = dfs_rl.load_dataset("digits")
    learned = dfs_rl.train_gate(
        None, data, method="gumbel", timesteps=timesteps, run_dir="runs/learned"
    )
    cascade = dfs_rl.train_gate(None, data, method="cascade", run_dir="runs/cascade")
    found = dfs_rl.compare(learned, cascade, budgets=[BUDGET], run_dir="runs/comparison")
    columns = ["label", "accuracy_mean", "computation_mean", "patterns_mean"]
    print(found.to_frame()[columns].round(2).to_string(index=False))

    correct = []
    for gate in (learned, cascade):
        logits, trace = gate.load(budget=BUDGET)(data.test.images)
        correct.append((logits.argmax(dim=1) == data.test.labels).double().numpy())
        print(f"{gate.path}: {100 * correct[-1].mean():.2f} %, {trace.computation.mean():.3f} %")
    differences = 100 * (correct[0] - correct[1])
    rows = np.random.default_rng(0).integers(len(differences), size=(10_000, len(differences)))
    low, high = np.quantile(differences[rows].mean(axis=1), [0.025, 0.975])
    print(f"difference {differences.mean():+.2f} points, 95 % from {low:+.2f} to {high:+.2f}")
