"""A sweep that was never made, with figures as they come."""

import math
import random
from collections.abc import Mapping

from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.sweep_records import (
    ObjectiveRecord,
    RetrainedRecord,
    Setting,
    SweepRecord,
    TrialRecord,
)

AREA = ObjectiveRecord(
    names=("area",),
    highest=(True,),
    units=("points x decades",),
    about="Area that the gate dominates on val, in points of accuracy x decades of computation; the highest is the best.",
)
BOTH = ObjectiveRecord(
    names=("accuracy", "computation"),
    highest=(True, False),
    units=("%", "%"),
    about="Accuracy and computation on val, both in percent.",
)
WORST = CurvePoint(10.0, 60.0)
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


def settings(draw: random.Random) -> dict[str, Setting]:
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


def points(quality: float) -> tuple[CurvePoint, ...]:
    """Return four operating points of a gate that is as good as ``quality``, a share."""
    budgets = (0.5, 0.75, 1.0, 1.5)
    return tuple(
        CurvePoint(c * (1.1 - 0.1 * quality), 60 + 27 * quality + 4 * math.log10(c))
        for c in budgets
    )


def made_up_trial(number: int, *, both: bool = False, status: str = "finished") -> TrialRecord:
    """Return a trial whose value hangs on its learning rate, and on chance."""
    draw = random.Random(number)
    chosen = settings(draw)
    rate = chosen["ppo.learning_rate"]
    assert isinstance(rate, float)
    quality = max(0.0, 1 - 0.15 * (math.log10(rate) + 3.5) ** 2 + draw.gauss(0, 0.04))
    progress = {"finished": 1.0, "stopped": draw.choice([1 / 9, 1 / 3]), "failed": 0.2}.get(
        status, 0.6
    )
    end = 3 * quality
    steps = [(i + 1) / 18 for i in range(round(18 * progress))]
    history = tuple((p, end * (1 - math.exp(-6 * p)) + draw.gauss(0, 0.04)) for p in steps)
    made = status != "failed"
    found = points(quality) if made else ()
    values = (
        {"accuracy": found[2].accuracy, "computation": found[2].computation * draw.uniform(0.6, 2)}
        if both and made
        else {}
    )
    if both and made:
        found = (CurvePoint(values["computation"], values["accuracy"]),)
    if not both and made:
        values = {"area": history[-1][1] if history else end}
    return TrialRecord(
        name=f"{number:03d}",
        settings=chosen,
        status=status,  # type: ignore[arg-type]
        reason="TrainingError: the loss is <nan> after step 12." if status == "failed" else None,
        progress=progress,
        values=values,
        history=history,
        points=found,
        seconds=600 * progress,
    )


def best_of(trials: list[TrialRecord], objective: ObjectiveRecord) -> tuple[str, ...]:
    """Return the best three, or those that no other one beats, by brute force."""
    valued = [t for t in trials if t.values and t.status == "finished"]
    if len(objective.names) == 1:
        return tuple(t.name for t in sorted(valued, key=lambda t: -t.values["area"])[:3])

    def beaten(t: TrialRecord) -> bool:
        return any(
            o.values["accuracy"] >= t.values["accuracy"]
            and o.values["computation"] <= t.values["computation"]
            for o in valued
            if o is not t
        )

    return tuple(t.name for t in valued if not beaten(t))


def again(
    name: str, chosen: Mapping[str, Setting], own: Mapping[str, float], made: list[TrialRecord]
) -> RetrainedRecord:
    """Return a configuration on fresh seeds, with the values of ``made``."""
    names = made[0].values if made else ()
    return RetrainedRecord(
        name=name,
        settings=chosen,
        own=own,
        seeds=tuple(range(101, 101 + len(made))),
        values={n: tuple(t.values[n] for t in made) for n in names},
        points=tuple(t.points for t in made),
        failed={},
    )


def made_up_sweep(
    n: int = 24, *, both: bool = False, retrained: bool = True, importance: bool = True
) -> SweepRecord:
    """Return a sweep of ``n`` trials, two in three stopped early and one in twelve failed."""
    statuses = ["finished", "stopped", "stopped"]
    trials = [
        made_up_trial(i + 1, both=both, status="failed" if i % 12 == 11 else statuses[i % 3])
        for i in range(n)
    ]
    objective = BOTH if both else AREA
    best = best_of(trials, objective)
    by_name = {t.name: t for t in trials}
    fresh = []
    if retrained:
        for name in best[:2]:
            t = by_name[name]
            low = [made_up_trial(k, both=both) for k in range(200, 400)]
            close = sorted(
                low,
                key=lambda o: abs(
                    next(iter(o.values.values())) * 1.02 - next(iter(t.values.values()))
                ),
            )[:3]
            fresh.append(again(name, t.settings, t.values, close))
        plain = [made_up_trial(k, both=both) for k in (501, 502, 503)]
        fresh.append(
            again(
                "defaults",
                settings(random.Random(0)) | {"ppo.target_kl": None, "ppo.learning_rate": 3e-4},
                {},
                plain,
            )
        )
    weights = {name: 0.5 / 2**i for i, name in enumerate(SCALES)}
    return SweepRecord(
        title="PPO on made-up digits",
        about="python -m dfs_rl.sweep tune_configs/ppo.yaml; 414 val images; Optuna's TPE, ASHA.",
        objective=objective,
        scales=SCALES,  # type: ignore[arg-type]
        trials=tuple(trials),
        best=best,
        retrained=tuple(fresh),
        importance=weights if importance else {},
        worst=WORST,
        commands=(
            "python -m dfs_rl.train_agent --config runs/sweep/best.yaml",
            "python -m dfs_rl.sweep tune_configs/ppo.yaml",
        ),
        settings="searcher: tpe\nname: <script>alert(1)</script>\n",
        seconds=5400.0,
    )
