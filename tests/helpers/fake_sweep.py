"""Synthetic sweeps with plausible results."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.sweeping.records import (
    ObjectiveRecord,
    RetrainedRecord,
    Setting,
    SweepRecord,
    TrialRecord,
    TrialStatus,
)

AREA = ObjectiveRecord(
    names=("area",),
    maximize=(True,),
    units=("points x decades",),
    about="Area that the gate dominates on val, in points of accuracy x decades of computation; "
    "the highest is the best.",
)
BOTH = ObjectiveRecord(
    names=("accuracy", "computation"),
    maximize=(True, False),
    units=("%", "%"),
    about="Accuracy and computation on val, both in percent.",
)
REFERENCE_POINT = CurvePoint(10.0, 60.0)
SCALES = {
    "ppo.learning_rate": "log",
    "ppo.ent_coef": "log",
    "ppo.gamma": "linear",
    "policy.net_arch": "choices",
    "policy.activation": "choices",
    "reward.uncertainty_weighting": "choices",
    "ppo.n_steps": "choices",
    "ppo.target_kl": "choices",
}
REASON = "TrainingError: the loss is <nan> after step 12."
BUDGETS = (0.5, 0.75, 1.0, 1.5)
SHARES: dict[TrialStatus, float] = {
    "finished": 1.0,
    "stopped": 1 / 3,
    "failed": 0.2,
    "unfinished": 0.6,
}


def drawn_settings(draw: random.Random) -> dict[str, Setting]:
    return {
        "ppo.learning_rate": 10 ** draw.uniform(-5, -2),
        "ppo.ent_coef": 10 ** draw.uniform(-6, -1),
        "ppo.gamma": draw.uniform(0.9, 1.0),
        "policy.net_arch": draw.choice([(64,), (64, 64), (128, 64, 32)]),
        "policy.activation": draw.choice(["tanh", "relu", "a very long name of an activation"]),
        "reward.uncertainty_weighting": draw.choice([True, False]),
        "ppo.n_steps": draw.choice([8, 64, 512]),
        "ppo.target_kl": draw.choice([None, 0.01, 0.1]),
    }


def fake_trial(number: int, status: TrialStatus = "finished", *, both: bool = False) -> TrialRecord:
    """Return a trial whose value depends on its learning rate and on random noise."""
    draw = random.Random(number)
    settings = drawn_settings(draw)
    rate = settings["ppo.learning_rate"]
    assert isinstance(rate, float)
    quality = max(0.1, 1 - 0.15 * (math.log10(rate) + 3.5) ** 2 + draw.gauss(0, 0.04))
    steps = [(i + 1) / 18 for i in range(round(18 * SHARES[status]))]
    end = 100 * quality if both else 3 * quality
    history = tuple((p, end * (1 - math.exp(-6 * p)) + draw.gauss(0, 0.01) * end) for p in steps)
    points = tuple(
        CurvePoint(c * draw.uniform(0.9, 1.3), 60 + 27 * quality + 4 * math.log10(c))
        for c in BUDGETS
    )
    values = {"area": history[-1][1]}
    if both:
        points = (CurvePoint(draw.uniform(0.5, 2), 60 + 27 * quality),)
        values = {"accuracy": points[0].accuracy, "computation": points[0].computation}
    failed = status == "failed"
    return TrialRecord(
        name=f"{number:03d}",
        settings=settings,
        status=status,
        reason=REASON if failed else None,
        progress=SHARES[status],
        values={} if failed else values,
        history=history,
        points=() if failed else points,
        seconds=600 * SHARES[status],
    )


def best_of(trials: list[TrialRecord], objective: ObjectiveRecord) -> tuple[str, ...]:
    """Return the three best trials, or all Pareto-optimal ones, by brute force."""
    ended = [t for t in trials if t.status == "finished"]
    if objective is AREA:
        return tuple(t.name for t in sorted(ended, key=lambda t: -t.values["area"])[:3])
    figures = [(t.values["accuracy"], -t.values["computation"]) for t in ended]
    return tuple(
        t.name
        for t, search_values in zip(ended, figures, strict=True)
        if not any(
            o != search_values and o[0] >= search_values[0] and o[1] >= search_values[1]
            for o in figures
        )
    )


def retrained(
    name: str,
    values: Mapping[str, tuple[float, ...]],
    *,
    search_values: Mapping[str, float] | None = None,
    settings: Mapping[str, Setting] | None = None,
    points: tuple[tuple[CurvePoint, ...], ...] | None = None,
    failed: Mapping[int, str] | None = None,
) -> RetrainedRecord:
    """Return a configuration retrained on the seeds 101, 102 and so on."""
    n = len(next(iter(values.values()), ()))
    return RetrainedRecord(
        name=name,
        settings=settings or {},
        search_values=search_values or {},
        seeds=tuple(range(101, 101 + n)),
        values=values,
        points=points or ((),) * n,
        failed=failed or {},
    )


def moved(points: tuple[CurvePoint, ...], lower: float) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(p.computation * (1 + lower / 40), p.accuracy - lower) for p in points)


def again(trial: TrialRecord, *, name: str | None = None) -> RetrainedRecord:
    """Return a trial retrained on three new seeds, with worse values than in the sweep.

    Accuracy drops by 0.5, 1 and 1.5 points. With ``name``, the record has no values of the sweep,
    as for the default settings.
    """
    lower = (0.5, 1.0, 1.5)
    worse = {
        key: (-0.1 if key == "computation" else 1 if key == "accuracy" else 0.1)
        for key in trial.values
    }
    return retrained(
        name or trial.name,
        {key: tuple(v - worse[key] * by for by in lower) for key, v in trial.values.items()},
        search_values={} if name else trial.values,
        settings=trial.settings,
        points=tuple(moved(trial.points, by) for by in lower),
    )


def fake_sweep(n: int = 24, *, both: bool = False) -> SweepRecord:
    """Return a sweep of ``n`` trials, most of them stopped early and every twelfth failed."""
    statuses: tuple[TrialStatus, ...] = ("finished", "stopped", "stopped")
    trials = [
        fake_trial(i + 1, "failed" if i % 12 == 11 else statuses[i % 3], both=both)
        for i in range(n)
    ]
    objective = BOTH if both else AREA
    best = best_of(trials, objective)
    named = {trial.name: trial for trial in trials}
    return SweepRecord(
        title="PPO on <made-up> digits",
        about="python -m dfs_rl.sweep tune_configs/ppo.yaml; 414 val images; TPE, ASHA.",
        objective=objective,
        scales=SCALES,  # type: ignore[arg-type]
        trials=tuple(trials),
        best=best,
        retrained=(
            *(again(named[name]) for name in best[:2]),
            again(fake_trial(501, both=both), name="defaults"),
        ),
        importance={name: 0.5 / 2**i for i, name in enumerate(SCALES)},
        reference_point=REFERENCE_POINT,
        commands=(
            "python -m dfs_rl.train_agent --config runs/sweep/best.yaml",
            "python -m dfs_rl.sweep tune_configs/ppo.yaml",
        ),
        settings="searcher: tpe\nname: <script>alert(1)</script>\n",
        seconds=5400.0,
    )


def few_settings(record: SweepRecord, n: int) -> SweepRecord:
    """Return the sweep reduced to the first ``n`` settings."""
    kept = list(record.scales)[:n]

    def cut(values):
        return {name: values[name] for name in kept}

    return replace(
        record,
        scales=cut(record.scales),
        importance=cut(record.importance),
        trials=tuple(replace(t, settings=cut(t.settings)) for t in record.trials),
        retrained=tuple(replace(a, settings=cut(a.settings)) for a in record.retrained),
    )
