"""Timed runs of a whole network, from which the times of its parts are fitted."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dfs_rl.costs import CostTable
from dfs_rl.runtime.latency_fit import Floats
from dfs_rl.runtime.latency_networks import Setting, TimedNetwork

RANDOM_CHECKS = 20
_WARM_UP = 1


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
        random: At random options, which lean to some, as those of gates do.
        exits: At random options up to an exit.
        gated: With the gate, in time beyond that of the options that it chose.
        checks: Uniform and random settings, with the median time of each.
    """

    random: TimedRuns
    exits: TimedRuns
    gated: TimedRuns
    checks: TimedRuns


def time_runs(
    network: TimedNetwork, costs: CostTable, *, calls: int, batch_size: int
) -> NetworkRuns:
    """Time ``calls`` rounds of runs."""
    n_options, n_layers = len(costs.options), costs.n_layers
    generator = np.random.default_rng(0)

    def draw(n: int) -> list[Setting]:
        shares = generator.dirichlet(np.ones(n_options), n)
        return [tuple(generator.choice(n_options, n_layers, p=own).tolist()) for own in shares]

    checked = [(option,) * n_layers for option in range(n_options)] + draw(RANDOM_CHECKS)
    to_exits = [
        setting[:after] + (costs.exit_action,) * (n_layers - after)
        for after in costs.exits_after
        for setting in draw(calls)
    ]
    random = draw(calls * n_options)
    for setting in checked * _WARM_UP:
        network.at(setting)()
        network.gated()()
    random_runs, exit_runs, gated_runs = [], [], []
    check_times: list[list[float]] = [[] for _ in checked]
    # A single image often finds the weights in the caches that the image before it needed.
    timed = partial(_time, warm=batch_size == 1)
    bar = partial(tqdm, desc=f"batch {batch_size}", unit="round", disable=None, leave=False)
    for number in bar(range(calls)):
        for turn in range(number * n_options, (number + 1) * n_options):
            random_runs.append(timed(network.at(random[turn])))
            check = turn % len(checked)
            check_times[check].append(timed(network.at(checked[check]))[1])
        exit_runs += [timed(network.at(setting)) for setting in to_exits[number::calls]]
    for _ in bar(range(calls)):  # apart: other runs between the two would slow down one of them
        setting, gated = timed(network.gated())
        _, fixed = timed(network.at(setting))
        gated_runs.append((setting, gated - fixed))
    medians = [
        (setting, float(np.median(seconds)))
        for setting, seconds in zip(checked, check_times, strict=True)
        if seconds
    ]
    kinds = (random_runs, exit_runs, gated_runs, medians)
    return NetworkRuns(*(_columns(runs, n_layers) for runs in kinds))


def _time(run: Callable[[], Setting], *, warm: bool) -> tuple[Setting, float]:
    """Return setting and seconds of a run, or if ``warm`` of its repetition."""
    if warm:
        run()
    start = time.perf_counter()
    setting = run()
    return setting, time.perf_counter() - start


def _columns(runs: Sequence[tuple[Setting, float]], n_layers: int) -> TimedRuns:
    settings = np.array([setting for setting, _ in runs], dtype=np.int64).reshape(-1, n_layers)
    return TimedRuns(settings, np.array([seconds for _, seconds in runs]))
