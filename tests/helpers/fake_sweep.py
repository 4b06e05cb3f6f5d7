"""Synthetic sweeps with plausible results."""

import math
import random
from dataclasses import replace

from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.results import (
    RetrainedRecord,
    SweepRecord,
    TrialRecord,
    TrialStatus,
    best_trials,
    importances,
)
from dfs_rl.sweeping.space import Domain
from dfs_rl.sweeping.spec import SweepFile

FILE = SweepFile(
    command="train_agent",
    search={
        "ppo.learning_rate": Domain(loguniform=(1e-5, 1e-2)),
        "ppo.gamma": Domain(uniform=(0.9, 1.0)),
        "ppo.n_steps": Domain(randint=(8, 512)),
        "policy.net_arch": Domain(choice=((64,), (64, 64), (128, 64, 32))),
        "policy.activation": Domain(choice=("tanh", "relu", "$a very long name of an activation")),
        "ppo.target_kl": Domain(choice=(None, 0.01, 0.1)),
    },
)
REASON = "TrainingError: the loss is <nan> after step 12."
BUDGETS = (0.5, 0.75, 1.0, 1.5)
PROGRESS: dict[TrialStatus, float] = {"finished": 1, "stopped": 1 / 3, "failed": 0.2}


def fake_trial(number: int, status: TrialStatus = "finished", *, both: bool = False) -> TrialRecord:
    """Return a trial whose value depends on its learning rate and on random noise."""
    draw = random.Random(number)
    rate = 10 ** draw.uniform(-5, -2)
    settings = {
        "ppo.learning_rate": rate,
        "ppo.gamma": draw.uniform(0.9, 1.0),
        "ppo.n_steps": draw.choice([8, 64, 512]),
        **{name: draw.choice(d.values) for name, d in FILE.search.items() if d.values},
    }
    quality = max(0.1, 1 - 0.15 * (math.log10(rate) + 3.5) ** 2 + draw.gauss(0, 0.04))
    steps = [(i + 1) / 18 for i in range(round(18 * PROGRESS[status]))]
    end = 100 * quality if both else 3 * quality
    history = tuple((p, end * (1 - math.exp(-6 * p)) + draw.gauss(0, 0.01) * end) for p in steps)
    points = tuple(
        CurvePoint(c * draw.uniform(0.9, 1.3), 60 + 27 * quality + 4 * math.log10(c))
        for c in BUDGETS
    )
    values = {"hypervolume": history[-1][1]}
    if both:
        points = (CurvePoint(draw.uniform(0.5, 2), 60 + 27 * quality),)
        values = {"accuracy": points[0].accuracy, "computation": points[0].computation}
    failed = status == "failed"
    return TrialRecord(
        name=f"{number:03d}",
        settings=settings,
        status=status,
        reason=REASON if failed else None,
        progress=PROGRESS[status],
        values={} if failed else values,
        history=history,
        points=() if failed else points,
        seconds=600 * PROGRESS[status],
    )


def retrained(
    name: str,
    values: dict[str, tuple[float, ...]],
    *,
    search_values: dict[str, float] | None = None,
    failed: dict[int, str] | None = None,
) -> RetrainedRecord:
    """Return a configuration retrained on the seeds 101, 102 and so on, without points."""
    n = len(next(iter(values.values()), ()))
    return RetrainedRecord(
        name=name,
        settings={},
        search_values=search_values or {},
        seeds=tuple(range(101, 101 + n)),
        values=values,
        points=((),) * n,
        failed=failed or {},
    )


def again(trial: TrialRecord, *, name: str | None = None) -> RetrainedRecord:
    """Return a trial retrained on three seeds; accuracy drops by 0.5, 1 and 1.5 points.

    With ``name``, the record has no values of the search, as for the default settings.
    """
    lower = (0.5, 1.0, 1.5)
    worse = {"computation": -0.1, "accuracy": 1, "hypervolume": 0.1}
    return replace(
        retrained(
            name or trial.name,
            {key: tuple(v - worse[key] * by for by in lower) for key, v in trial.values.items()},
            search_values={} if name else dict(trial.values),
        ),
        settings=trial.settings,
        points=tuple(
            tuple(CurvePoint(p.computation * (1 + by / 40), p.accuracy - by) for p in trial.points)
            for by in lower
        ),
    )


def fake_sweep(n: int = 24, *, both: bool = False) -> SweepRecord:
    """Return a sweep of ``n`` trials, most of them stopped early and every twelfth failed."""
    statuses: tuple[TrialStatus, ...] = ("finished", "stopped", "stopped")
    file = replace(FILE, objective=ObjectiveConfig(name="pareto_front")) if both else FILE
    trials = tuple(
        fake_trial(i + 1, "failed" if i % 12 == 11 else statuses[i % 3], both=both)
        for i in range(n)
    )
    best = best_trials(trials, file)
    named = {trial.name: trial for trial in trials}
    return SweepRecord(
        title="PPO on <made-up> digits",
        about="414 val images; searcher tpe, scheduler asha.",
        file=replace(file, settings={"dataset": "<script>alert(1)</script>"}),
        trials=trials,
        best=best,
        retrained=(
            *(again(named[name]) for name in best[:2]),
            again(fake_trial(501, both=both), name="defaults"),
        ),
        importance=importances(trials, file),
        reference_point=CurvePoint(10.0, 60.0),
        commands=("python -m dfs_rl.train_agent --config runs/sweep/best.yaml",),
        seconds=5400.0,
    )
