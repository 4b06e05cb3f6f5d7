"""Registry of the networks that a learned gate can be; imports no torch."""

from typing import TYPE_CHECKING, Annotated

from dfs_rl.utils.registry import NameIn, Registry

if TYPE_CHECKING:
    from dfs_rl.gating.networks import LearnedGate

ONE_SHOT = "oneshot"
"""Network that decides for all layers at once; only BlockDrop uses it."""
SHARED = "shared"
"""Network that all layers share; only converted policies use it."""

GATES: "Registry[type[LearnedGate]]" = Registry(
    "gate",
    {
        "ff": "dfs_rl.gating.networks:MLPGate",
        "lstm": "dfs_rl.gating.networks:LSTMGate",
        ONE_SHOT: "dfs_rl.gating.networks:OneShotGate",
        SHARED: "dfs_rl.gating.shared_network:SharedMLPGate",
    },
)
"""Networks by the name that ``--gate`` takes and that a stored gate has."""


def layerwise_kinds() -> list[str]:
    """Return the names of the networks that a training of gates layer by layer can choose."""
    return [name for name in GATES if name not in (ONE_SHOT, SHARED)]


GateKind = Annotated[str, NameIn(layerwise_kinds)]
"""Name of a network that decides layer by layer."""


def gate_kind(gate: "LearnedGate") -> str:
    """Return the registered name of a gate's network."""
    return next(name for name in GATES if type(gate) is GATES[name])
