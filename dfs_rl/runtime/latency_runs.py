"""Timed runs of a whole network, from which the times of its parts are fitted."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dfs_rl.costs import CostTable
from dfs_rl.runtime.latency_fit import Floats
from dfs_rl.runtime.latency_networks import Setting, TimedNetwork

RANDOM_CHECKS = 20
_WARM_UP = 5
_CONCENTRATION = 0.5
"""Of the Dirichlet distribution of a run's options: runs lean to some, as those of gates do."""


class TimedRuns(NamedTuple):
    """Runs of a kind.

    Attributes:
        settings: Action of every layer, ``[runs, layers]``.
        seconds: Time of each run, ``[runs]``.
    """

    settings: NDArray[np.int64]
    seconds: Floats


class NetworkRuns(NamedTuple):
    """Runs of a network, which took turns.

    Attributes:
        random: At random options.
        exits: At random options up to each exit in turn.
        gated: With the gate, in time beyond that of the options that it chose.
        checks: Uniform and random settings, with the median time of each.
    """

    random: TimedRuns
    exits: TimedRuns
    gated: TimedRuns
    checks: TimedRuns


def time_runs(network: TimedNetwork, costs: CostTable, *, calls: int, name: str) -> NetworkRuns:
    """Time ``calls`` rounds of runs, each with one run of every kind per option or exit."""
    n_options, n_layers = len(costs.options), costs.n_layers
    generator = np.random.default_rng(0)

    def draw() -> Setting:
        shares = generator.dirichlet(np.full(n_options, _CONCENTRATION))
        return tuple(generator.choice(n_options, n_layers, p=shares).tolist())

    def seconds_at(setting: Setting) -> float:
        return _time(network.at(setting))[0]

    checked = [(option,) * n_layers for option in range(n_options)]
    for _ in range(_WARM_UP):
        for setting in checked:
            seconds_at(setting)
        network.gated()()
    checked += [draw() for _ in range(RANDOM_CHECKS)]
    random, exits, gated = [], [], []
    checks: list[list[float]] = [[] for _ in checked]
    for number in tqdm(range(calls), desc=name, unit="round", disable=None, leave=False):
        for turn in range(number * n_options, (number + 1) * n_options):
            setting, check = draw(), turn % len(checked)
            random.append((setting, seconds_at(setting)))
            checks[check].append(seconds_at(checked[check]))
        for after in costs.exits_after:
            setting = draw()[:after] + (costs.exit_action,) * (n_layers - after)
            exits.append((setting, seconds_at(setting)))
        seconds, chosen = _time(network.gated())
        gated.append((chosen, seconds - seconds_at(chosen)))
    medians = [(s, float(np.median(t))) for s, t in zip(checked, checks, strict=True) if t]
    return NetworkRuns(*(_columns(runs, n_layers) for runs in (random, exits, gated, medians)))


def _time(run: Callable[[], Setting]) -> tuple[float, Setting]:
    """Return the seconds of a run and its result."""
    start = time.perf_counter()
    setting = run()
    return time.perf_counter() - start, setting


def _columns(runs: Sequence[tuple[Setting, float]], n_layers: int) -> TimedRuns:
    settings = np.array([setting for setting, _ in runs], dtype=np.int64)
    return TimedRuns(settings.reshape(-1, n_layers), np.array([seconds for _, seconds in runs]))
