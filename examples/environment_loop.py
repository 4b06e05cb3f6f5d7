"""Run the environment in a loop of your own, with rules in place of a learned policy.

An episode takes one image through the layers of a network. At each layer the rule chooses one of
the bit options: 0 skips the layer, 32 runs it in full precision. The last rule looks at the image.

Prints accuracy, computation (in percent of all layers at 32 bit) and mean return of each rule.
Computation above the budget of 1 % lowers the return.
"""

import argparse
from collections.abc import Callable

import gymnasium
import numpy as np

import dfs_rl  # noqa: F401 - registers the environments

BITS, RNG = (0, 2, 3, 4, 8, 32), np.random.default_rng(0)  # an action is an index into BITS


def uniform(action: int) -> Callable:
    """Return the rule that runs every layer at one option."""
    return lambda _, masks: np.full(len(masks), action)


def random_within_budget(_: dict, masks: np.ndarray) -> np.ndarray:
    """Choose among the actions that leave enough of the budget for the other layers."""
    return (masks * RNG.random(masks.shape)).argmax(axis=1)


def more_if_unsure(observation: dict, _: np.ndarray) -> np.ndarray:
    """Choose 3 bit where the probe's highest probability is below average, else 2 bit."""
    return np.where(observation["features"][:, 0] < 0, BITS.index(3), BITS.index(2))


def play(env: gymnasium.vector.VectorEnv, rule: Callable, episodes: int) -> np.ndarray:
    """Return correct, computation and return of the first episodes, ``[episodes, 3]``."""
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    observation, _ = env.reset(seed=0)
    results = np.empty((0, 3))
    while len(results) < episodes:
        actions = rule(observation, env.unwrapped.action_masks())
        observation, _, terminated, _, infos = env.step(actions)
        if terminated.any():  # the next step resets these environments
            columns = infos["correct"], infos["computation"], infos["episode"]["r"]
            results = np.concatenate([results, np.stack(columns, axis=1)[terminated]])
    return results[:episodes]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=2000)
    episodes = parser.parse_args().episodes
    env = gymnasium.make_vec("dfs_rl/FractionalSkipping-v0", 100, split="val", budget=1.0)
    rules = {f"all {bits} bit": uniform(action) for action, bits in enumerate(BITS)}
    rules |= {"random": random_within_budget, "3 bit if unsure": more_if_unsure}
    for name, rule in rules.items():
        correct, computation, returned = play(env, rule, episodes).mean(axis=0)
        print(f"{name:16} {100 * correct:6.2f} % {computation:8.3f} % {returned:8.3f}")
