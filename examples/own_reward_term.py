"""Add a term of your own to the reward, and see what the gate that learns with it does.

The term rewards answers whose label has a probability above 90 %. A term gets the scores of the
predictions and the cost of all layers as a fraction of 32 bit, float64 [batch]; it is added to the
last reward of an episode.

Prints for the gates without and with the term, on test images: accuracy, computation in percent of
all layers at 32 bit, and the share of answers with more than 90 %.
Writes the run folders `runs/plain` and `runs/sure`.
"""

import argparse
import math
from typing import Any

import torch

import dfs_rl


@dfs_rl.register_reward_term("sure")
def sure(scores: Any, spent: torch.Tensor) -> torch.Tensor:  # noqa: ANN401, ARG001
    """Return 1 where the probability of the label is above 90 %."""
    return (scores.log_likelihood > math.log(0.9)).double()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=50_000)
    timesteps = parser.parse_args().timesteps
    data = dfs_rl.load_dataset("digits")
    for name, terms in {"plain": [], "sure": [["sure", 0.5]]}.items():
        gate = dfs_rl.train_gate(
            None,
            data,
            cost_weight=10.0,
            fixed_budget=True,  # one gate for this cost weight alone
            passes=1,
            reward={"terms": terms},
            timesteps=timesteps,
            run_dir=f"runs/{name}",
        )
        logits, trace = gate.load()(data.test.images)
        right = 100 * (logits.argmax(dim=1) == data.test.labels).double().mean()
        confident = 100 * (logits.softmax(dim=1).amax(dim=1) > 0.9).double().mean()
        spent = trace.computation.mean()
        print(f"{name:6} {right:.2f} % correct, {spent:.3f} %, {confident:.2f} % sure")
