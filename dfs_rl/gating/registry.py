"""Registry of the networks that a learned gate can be; imports no torch."""

from typing import TYPE_CHECKING, Annotated

from dfs_rl.utils.registry import NameIn, Registry

if TYPE_CHECKING:
    from dfs_rl.gating.networks import LearnedGate

ONE_SHOT = "oneshot"
"""Network that decides for all layers at once; only BlockDrop uses it."""

GATES: "Registry[type[LearnedGate]]" = Registry(
    "gate",
    {
        "ff": "dfs_rl.gating.networks:MLPGate",
        "lstm": "dfs_rl.gating.networks:LSTMGate",
        ONE_SHOT: "dfs_rl.gating.networks:OneShotGate",
    },
)
"""Networks by the name that ``--gate`` takes and that a stored gate has."""

GateKind = Annotated[str, NameIn(lambda: [name for name in GATES if name != ONE_SHOT])]
"""Name of a network that decides layer by layer."""


def gate_kind(gate: "LearnedGate") -> str:
    """Return the registered name of a gate's network."""
    return next(name for name in GATES if type(gate) is GATES[name])
