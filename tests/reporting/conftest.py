"""A made-up evaluation of ResNet-20 with figures as they come."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.costs.latency_profile import NetworkLatency
from dfs_rl.evaluation.baselines.registry import MethodResult
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.summary import EvaluationSummary, summarize
from dfs_rl.gating.passes import EarlierPasses
from tests.helpers.latencies import made_up_profile

LAYERS = 9
N = 2000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COSTS = CostTable(
    options=BitOptions((0, 2, 3, 4, 8, 32)),
    layer_macs=(4_718_592,) * LAYERS,
    fixed=(
        FixedCost(name="stem", macs=442_368, bits=8),
        FixedCost(name="shortcuts", macs=0, bits=32, layer=0),
        FixedCost(name="head", macs=640, bits=8, layer=LAYERS),
    ),
)


def records(name, accuracy, options, seed, **fields):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % 10
    right = torch.rand(N, generator=generator) < accuracy / 100
    return GateRecords(
        name=name,
        predictions=torch.where(right, labels, (labels + 1) % 10),
        labels=labels,
        options=options,
        log_likelihood=torch.full((N,), -0.4, dtype=torch.float64),
        confidence=torch.full((N,), 0.8, dtype=torch.float64),
        **fields,
    )


def table(*options):
    return torch.tensor(options).expand(N, -1)


def mixed(seed):
    """Options as a gate picks them: mostly 2 to 4 bit, more in the middle."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([[0.02, 0.3, 0.35, 0.3, 0.03, 0.0]] * LAYERS)
    weights[3:6, 3] += 0.5
    weights[7, 0] += 1.0
    return torch.multinomial(weights, N, replacement=True, generator=generator).T.contiguous()


def one(key, label, role, made, **fields):
    return MethodResult(key=key, label=label, role=role, records=(made,), **fields)


def gate_method() -> MethodResult:
    return one("gate", "PPO gate", "gate", records("gate", 86.1, mixed(1), 1, gate_macs=20_000.0))


def fixed_methods() -> list[MethodResult]:
    figures = zip(COSTS.options, (21.3, 79.8, 83.8, 85.8, 86.2, 87.8), strict=True)
    return [
        one(
            "full" if bits == 32 else f"uniform_{bits}",
            {0: "skip all", 32: "full precision"}.get(bits, f"uniform {bits} bit"),
            "fixed",
            records("uniform", accuracy, table(*[option] * LAYERS), 10 + option),
            table=(option,) * LAYERS,
        )
        for option, (bits, accuracy) in enumerate(figures)
    ]


def matched_methods() -> list[MethodResult]:
    ran = (torch.arange(N) % 5 < 2)[:, None]
    first = EarlierPasses(
        options=table(*[1] * LAYERS)[:, None], ran=ran, mirrored=torch.zeros_like(ran)
    )
    static = (2, 3, 2, 3, 3, 3, 2, 0, 2)
    return [
        one(
            "static_table",
            "best static table",
            "matched",
            records("static", 85.0, table(*static), 31),
            chosen_on="val",
            detail="bits 3-4-3-4-4-4-3-0-3",
            table=static,
        ),
        one(
            "cascade",
            "cascade",
            "matched",
            records("cascade", 85.3, table(*[2] * LAYERS), 32, earlier=first),
            chosen_on="val",
            detail="2 bit, then 3 bit for the least sure 40 %",
        ),
        one(
            "mode_table",
            "mode table",
            "matched",
            records("mode", 84.9, table(2, 2, 2, 3, 3, 3, 2, 0, 2), 33),
            chosen_on="test",
        ),
        MethodResult(
            key="random",
            label="random, same marginals",
            role="matched",
            records=tuple(records("random", 84.0, mixed(40 + i), 40 + i) for i in range(5)),
            chosen_on="test",
            detail="mean of 5 draws",
        ),
    ]


NAMES: dict[str, Any] = {
    "identity": "0123456789abcdef",
    "dataset": "cifar10",
    "fingerprint": "feedbeef",
    "split": "test",
    "class_names": CLASSES,
}


@pytest.fixture(scope="session")
def summary() -> EvaluationSummary:
    return summarize([gate_method(), *fixed_methods(), *matched_methods()], COSTS, **NAMES)


@pytest.fixture(scope="session")
def measured() -> CostTable:
    """Costs by a profile of a CPU: below 8 bit nothing is gained; full precision takes 0.54 ms."""
    times = made_up_profile(
        COSTS,
        layer=lambda _, bits: 0.002 if bits == 0 else 0.06 if bits == 32 else 0.03,
        stem=0.02,
        head=0.005,
        gate=0.004,
        gate_macs=20_000.0,
    )
    check = NetworkLatency(bits=(8,) * LAYERS, batch_size=1, predicted=0.22, measured=0.2)
    return COSTS.with_cost_model("latency", replace(times, checks=(check,)))


@pytest.fixture(scope="session")
def measured_summary(measured: CostTable) -> EvaluationSummary:
    methods = [gate_method(), *fixed_methods(), *matched_methods()]
    return summarize(methods, COSTS, measured=measured, **NAMES)


@pytest.fixture(scope="session")
def latency_summary(measured: CostTable) -> EvaluationSummary:
    return summarize(fixed_methods(), measured, measured=measured, **NAMES)


@pytest.fixture(scope="session")
def backbone_summary() -> EvaluationSummary:
    return summarize(fixed_methods(), COSTS, **NAMES)


@pytest.fixture(scope="session")
def gate_records() -> GateRecords:
    return gate_method().records[0]


@pytest.fixture(scope="session")
def costs() -> CostTable:
    return COSTS
