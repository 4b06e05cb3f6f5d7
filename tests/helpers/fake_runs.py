"""Synthetic evaluated runs with given results."""

import math
from dataclasses import replace

import torch

from dfs_rl.evaluation.comparison_records import EvaluatedRun
from dfs_rl.evaluation.summary import EvaluationSummary, MethodSummary, PerImageResults
from dfs_rl.evaluation.timing import Timing

N = 200
LABELS = {
    "static_table": "best static table",
    "cascade": "cascade",
    "exits": "confidence exits",
    "uniform_0": "skip all",
    "uniform_2": "uniform 2 bit",
    "full": "full precision",
}
TABLES = {
    "static_table": (2, 32, 2),
    "uniform_0": (0,) * 3,
    "uniform_2": (2,) * 3,
    "full": (32,) * 3,
}
FIXED = {"uniform_0": (20, 0.1), "uniform_2": (120, 0.5), "full": (190, 100.0)}
"""Number of correct images of 200, and computation in percent, by method."""
TIMING = Timing(
    machine="a machine",
    runtime="onnx",
    threads=1,
    versions=("onnxruntime 1.32",),
    calls=100,
    batch_size=1,
    options=(0, 2, 32),
    layer_milliseconds=(0.5, 3.9, 4.0),
    exits_save=False,
    error=2.5,
)


def per_image_results(
    right: int, computation: float, milliseconds: float | None = None
) -> PerImageResults:
    correct = (torch.arange(N) < right).float()
    times = None if milliseconds is None else torch.full((N,), milliseconds)
    return PerImageResults(correct, torch.full((N,), computation), times)


def mcnemar(won: int, lost: int) -> float:
    """Return the p-value of McNemar's exact two-sided test on images that one method gets right."""
    n, fewer = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def with_right(run: EvaluatedRun, split: str, right: dict[str, torch.Tensor]) -> EvaluatedRun:
    """Replace the correct images, bool ``[n]``, of some methods on the split of a run."""
    results = dict(getattr(run, split))
    for key, correct in right.items():
        cost = float(results[key].computation.mean())
        results[key] = PerImageResults(correct.float(), torch.full((len(correct),), cost))
    return replace(run, **{split: results})


def fake_run(
    name: str,
    gate: tuple[int, float],
    *,
    label: str = "PPO",
    seed: int = 0,
    static: tuple[int, float] = (150, 0.8),
    cascade: tuple[int, float] = (160, 0.8),
    exits: tuple[int, float] | None = None,
    before: dict[str, tuple[int, float]] | None = None,
    selection: dict[str, tuple[int, float]] | None = None,
    milliseconds: dict[str, float] | None = None,
    **settings: object,
) -> EvaluatedRun:
    """Return a synthetic run with given results of every method.

    Results are pairs: number of correct images of 200, and computation in percent. ``selection``
    has those, by method, that are different on the selection split. ``milliseconds`` are measured
    times by method, 1 for the others.
    """
    times = {} if milliseconds is None else dict.fromkeys((*LABELS, "gate"), 1.0) | milliseconds
    figures = {"gate": gate, **FIXED, "static_table": static, "cascade": cascade}
    if exits is not None:
        figures["exits"] = exits
    figures |= {f"{key}_before": result for key, result in (before or {}).items()}
    methods = tuple(
        MethodSummary(
            key=key,
            label=label if key == "gate" else LABELS[key.removesuffix("_before")],
            role="gate" if key == "gate" else "fixed" if key in FIXED else "matched",
            n=N,
            accuracy=100.0 * right / N,
            accuracy_error=1.0,
            draws=1,
            draws_deviation=None,
            computation=computation,
            computation_dfs=computation,
            bitops=1e6,
            patterns=7.0,
            class_accuracy=(50.0,),
            chosen_on=None,
            detail="",
            table=TABLES.get(key.removesuffix("_before")),
            milliseconds=times.get(key),
        )
        for key, (right, computation) in figures.items()
    )
    summary = EvaluationSummary(
        identity="0",
        dataset="made up",
        fingerprint="abc",
        split="test",
        n=N,
        class_names=("a",),
        options=(0, 2, 32),
        layers=3,
        methods=methods,
        comparisons=(),
        beyond_marginals=None,
        verdict=(),
        shares=(),
        histogram=((0.5, 0.5, 0.0),) * 3,
        search=None,
        timing=None if milliseconds is None else TIMING,
    )
    reported, chosen = (
        {key: per_image_results(*values, times.get(key)) for key, values in of_split.items()}
        for of_split in (figures, figures | (selection or {}))
    )
    return EvaluatedRun(
        path=name,
        settings={"seed": seed, **settings},
        command=f"python -m dfs_rl.train_agent --seed {seed}",
        evaluation=f"python -m dfs_rl.evaluate {name}",
        backbone="b0",
        figure_prefix="",
        images_seen=1000,
        seconds=2.5,
        summary=summary,
        reported=reported,
        selection=chosen,
    )
