"""Storage of gates: structure in JSON, weights in safetensors; loading executes no code."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError, DfsRlError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import ExitInfo, LearnedGate
from dfs_rl.gating.passes import SINGLE_PASS, AnswerRule, PassSettings
from dfs_rl.gating.registry import GATES, SHARED, gate_kind
from dfs_rl.gating.rules import Rule, RuleGate
from dfs_rl.utils.checkpoint import (
    check_finite,
    load_tensors,
    read_manifest,
    save_tensors,
    write_manifest,
)
from dfs_rl.utils.config import NonNegativeInt, config_from_dict, config_to_dict, configuration

TABLE = "table"
"""Kind of a static bit table, which has no weights."""
RULE = "rule"
"""Kind of a rule over passes, which has no weights either."""
FORMAT = 3
STRUCTURE_FILE = "gate.json"
WEIGHTS_FILE = "gate.safetensors"

StoredGate = LearnedGate | TableGate | RuleGate
"""Gates that can be stored."""


@configuration
class _Record:
    """Contents of ``gate.json``; the fields of a subclass are arguments of the gate."""

    name: str
    bits: tuple[int, ...]


@configuration
class _TableRecord(_Record):
    table: tuple[NonNegativeInt, ...]
    exits: tuple[NonNegativeInt, ...] = ()


@configuration
class _RuleRecord(_Record):
    rules: tuple[Rule, ...]
    answer: AnswerRule
    exits: tuple[NonNegativeInt, ...] = ()
    budget_conditioning: BudgetConditioning | None = None
    preference: float | None = None


@configuration
class _LearnedRecord(_Record):
    feature_sizes: tuple[NonNegativeInt, ...]
    feature_macs: float
    hidden: int
    budget: float | None
    budget_conditioning: BudgetConditioning | None = None
    preference: float | None = None
    choices: tuple[NonNegativeInt, ...] | None = None
    exits: ExitInfo | None = None
    passes: PassSettings | None = None


@configuration
class _SharedRecord(_LearnedRecord):
    widths: tuple[NonNegativeInt, ...]
    activation: str
    normalizes: bool = False


_OPTIONAL = {field.name for field in fields(_LearnedRecord) if field.default is None}
_FORMS: dict[str, type[_Record]] = {TABLE: _TableRecord, RULE: _RuleRecord, SHARED: _SharedRecord}


def save_gate(gate: StoredGate, folder: Path) -> None:
    """Write ``gate.json`` and, for a learned gate, ``gate.safetensors`` into ``folder``.

    The folder is created if it is missing.

    Raises:
        ConfigError: If the gate is a static bit table without bit options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if gate.options is None:
        raise ConfigError(
            f"gate {gate.name!r} is a table without bit options; only one that has them can be "
            "stored."
        )
    special: dict[str, Any] = {"bits": gate.options.values}
    if isinstance(gate, LearnedGate):
        save_tensors(folder / WEIGHTS_FILE, gate.state_dict())
        kind = gate_kind(gate)
        special["choices"] = None if len(gate.choices) == gate.n_actions else gate.choices
        special["passes"] = None if gate.passes == SINGLE_PASS else gate.passes
    elif isinstance(gate, RuleGate):
        kind = RULE
        special["answer"] = gate.passes.answer
    else:
        kind = TABLE
    if not isinstance(gate, TableGate) and gate.budget_conditioning is None:
        special["preference"] = None
    form = _FORMS.get(kind, _LearnedRecord)
    names = [field.name for field in fields(form) if field.name not in special]
    record = form(**{name: getattr(gate, name) for name in names}, **special)
    usual = {field.name: field.default for field in fields(record)}
    parts = {n: v for n, v in config_to_dict(record).items() if getattr(record, n) != usual[n]}
    write_manifest(folder / STRUCTURE_FILE, kind=kind, version=FORMAT, parts=parts)


def load_gate(folder: Path) -> StoredGate:
    """Read a gate that ``save_gate`` wrote.

    Raises:
        CheckpointError: If it is missing, damaged or of another kind or format.
    """
    path = folder / STRUCTURE_FILE
    parts = read_manifest(path, what="gate", kinds=(*GATES, TABLE, RULE), version=FORMAT)
    kind = str(parts["kind"])
    parts = {name: part for name, part in parts.items() if name not in ("kind", "format")}
    form = _FORMS.get(kind, _LearnedRecord)
    try:
        record: _Record = config_from_dict(parts, form, source=f"gate of kind {kind!r}")
        settings = {f.name: getattr(record, f.name) for f in fields(record)}
        options = BitOptions(settings.pop("bits"))
        if kind == TABLE:
            return TableGate(options=options, **settings)
        if (settings["preference"] is None) != (settings["budget_conditioning"] is None):
            raise ConfigError("preference and budget_conditioning belong together.")
        if kind == RULE:
            given = {n: v for n, v in settings.items() if v is not None}
            return RuleGate(given.pop("rules"), options=options, **given)
        # A registered class may lack an argument that its gates do not use.
        used = {n: v for n, v in settings.items() if n not in _OPTIONAL or v is not None}
        gate = GATES[kind](used.pop("feature_sizes"), options, **used)
    except (TypeError, DfsRlError) as error:
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
