"""Storage of gates: structure in JSON, weights in safetensors; loading executes no code."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError, DfsRlError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.networks import (
    ExitInfo,
    LearnedGate,
)
from dfs_rl.gating.registry import GATES, gate_kind
from dfs_rl.utils.checkpoint import (
    check_finite,
    load_tensors,
    read_manifest,
    save_tensors,
    write_manifest,
)

TABLE = "table"
"""Kind of a static bit table, which has no weights."""
CASCADE = "cascade"
"""Kind of a cascade of two static bit tables."""
FORMAT = 3
STRUCTURE_FILE = "gate.json"
WEIGHTS_FILE = "gate.safetensors"

StoredGate = LearnedGate | TableGate | CascadeGate
"""Gates that can be stored."""


def save_gate(gate: StoredGate, folder: Path) -> None:
    """Write ``gate.json`` and, for a learned gate, ``gate.safetensors`` into ``folder``.

    The folder is created if it is missing.

    Raises:
        ConfigError: If the gate is a static bit table without bit options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(gate, TableGate):
        _save_table(gate, folder)
        return
    if isinstance(gate, CascadeGate):
        _save_cascade(gate, folder)
        return
    save_tensors(folder / WEIGHTS_FILE, gate.state_dict())
    write_manifest(
        folder / STRUCTURE_FILE,
        kind=gate_kind(gate),
        version=FORMAT,
        parts={
            "name": gate.name,
            "bits": list(gate.options),
            "feature_sizes": list(gate.feature_sizes),
            "feature_macs": gate.feature_macs,
            "hidden": gate.hidden,
            "budget": gate.budget,
        }
        | _budget_conditioning_parts(gate)
        | _choice_parts(gate)
        | ({} if gate.exits is None else {"exits": asdict(gate.exits)}),
    )


def load_gate(folder: Path) -> StoredGate:
    """Read a gate that ``save_gate`` wrote.

    Raises:
        CheckpointError: If it is missing, damaged or of another kind or format.
    """
    path = folder / STRUCTURE_FILE
    record = read_manifest(path, what="gate", kinds=(*GATES, TABLE, CASCADE), version=FORMAT)
    try:
        if record["kind"] == TABLE:
            return TableGate(
                _integers(record["table"]),
                options=BitOptions(_integers(record["bits"])),
                exits=_integers(record.get("exits", [])),
                name=str(record["name"]),
            )
        if record["kind"] == CASCADE:
            return CascadeGate(
                _integers(record["first"]),
                _integers(record["second"]),
                threshold=_number(record["threshold"]),
                options=BitOptions(_integers(record["bits"])),
                name=str(record["name"]),
            )
        gate = GATES[str(record["kind"])](
            _integers(record["feature_sizes"]),
            BitOptions(_integers(record["bits"])),
            feature_macs=_number(record["feature_macs"]),
            hidden=_integers([record["hidden"]])[0],
            budget=None if record["budget"] is None else _number(record["budget"]),
            name=str(record["name"]),
            choices=_integers(record["choices"]) if "choices" in record else None,
            exits=_exits_of(record),
            **_budget_conditioning_of(record),
        )
    except (KeyError, TypeError, DfsRlError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    tensors = load_tensors(folder / WEIGHTS_FILE)
    try:
        gate.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {folder / WEIGHTS_FILE} do not fit the gate that {path} describes."
        ) from error
    check_finite(gate, folder / WEIGHTS_FILE)
    return gate.eval()


def _budget_conditioning_parts(gate: LearnedGate) -> dict[str, object]:
    if gate.budget_conditioning is None:
        return {}
    return {"budget_conditioning": asdict(gate.budget_conditioning), "preference": gate.preference}


def _budget_conditioning_of(record: Mapping[str, object]) -> dict[str, Any]:
    """Return budget conditioning and preference as keywords; empty for a gate of one budget."""
    budget_conditioning = record.get("budget_conditioning")
    if budget_conditioning is None:
        return {}
    if (
        not isinstance(budget_conditioning, dict)
        or "computations" not in budget_conditioning
        or not all(isinstance(part, list) for part in budget_conditioning.values())
    ):
        raise TypeError(f"{budget_conditioning!r} describes no budget conditioning.")
    figures = {
        name: tuple(_number(figure) for figure in part)
        for name, part in budget_conditioning.items()
    }
    return {
        "budget_conditioning": BudgetConditioning(**figures),
        "preference": _number(record["preference"]),
    }


def _exits_of(record: Mapping[str, object]) -> ExitInfo | None:
    """Return the exits of a gate; ``None`` for a gate without exits."""
    exits = record.get("exits")
    if exits is None:
        return None
    if not isinstance(exits, dict) or not isinstance(exits["layer_feature_macs"], list):
        raise TypeError(f"{exits!r} describes no exits.")
    return ExitInfo(
        after=_integers(exits["after"]),
        layer_feature_macs=tuple(_number(macs) for macs in exits["layer_feature_macs"]),
    )


def _choice_parts(gate: LearnedGate) -> dict[str, object]:
    """Return the allowed options of a gate; empty if it may choose all of them."""
    if len(gate.choices) == gate.n_actions:
        return {}
    return {"choices": list(gate.choices)}


def _save_table(gate: TableGate, folder: Path) -> None:
    if gate.options is None:
        raise ConfigError(
            f"gate {gate.name!r} is a table without bit options; only one that has them can be "
            "stored."
        )
    write_manifest(
        folder / STRUCTURE_FILE,
        kind=TABLE,
        version=FORMAT,
        parts={"name": gate.name, "bits": list(gate.options), "table": list(gate.table)}
        | ({"exits": list(gate.exits)} if gate.exits else {}),
    )


def _save_cascade(gate: CascadeGate, folder: Path) -> None:
    write_manifest(
        folder / STRUCTURE_FILE,
        kind=CASCADE,
        version=FORMAT,
        parts={
            "name": gate.name,
            "bits": list(gate.options),
            "first": list(gate.first.table),
            "second": list(gate.second.table),
            "threshold": gate.threshold,
        },
    )


def _integers(value: object) -> tuple[int, ...]:
    """Return a JSON list of non-negative integers as a tuple."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise TypeError(f"{value!r} is not a list of whole numbers.")
    return tuple(value)


def _number(value: object) -> float:
    """Return a JSON number as a float."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is not a number.")
    return float(cast("float", value))
