"""Cost models, functions from MACs and bits to a cost, and the parts beside the gated layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from dfs_rl.costs.bit_options import FULL, SKIP
from dfs_rl.errors import ConfigError
from dfs_rl.utils.registry import NameIn, Registry

CostModel = Callable[[float, int, int | None], float]
"""Cost of a part of the network, in any unit.

Arguments are the part's multiply-accumulates, its bits, and its index for a gated layer or ``None``
for the parts that are never gated, exits and the gate. The cost is proportional to the MACs, 0 at
0 bit and positive at 32 bit.
"""

COST_MODELS: Registry[CostModel] = Registry("cost model")
CostModelName = Annotated[str, NameIn(COST_MODELS)]
BudgetUnit = Literal["percent", "ms"]
"""Unit of a budget; milliseconds need the cost model ``latency``."""
COMPUTATION = "computation"
"""Name of the default cost model."""
LATENCY = "latency"
"""Name of the measured cost model, which has no formula but a ``LatencyProfile``."""


def register_cost_model(name: str) -> Callable[[CostModel], CostModel]:
    """Register a cost model for ``--cost``.

    For example, the bits that a layer's weights and activations move::

        @register_cost_model("memory")
        def memory(macs, bits, layer):
            return macs * bits

    Raises:
        ConfigError: If the name is taken or malformed.
    """
    return COST_MODELS.register(name)


def check_cost_model(name: str) -> None:
    """Raise a ``ConfigError`` if no cost model has the name."""
    if name not in COST_MODELS:
        raise ConfigError(f"cost is {name!r}; allowed are {', '.join(COST_MODELS)}.")


@register_cost_model(COMPUTATION)
def computation(macs: float, bits: int, layer: int | None = None) -> float:  # noqa: ARG001
    """Return ``macs * (bits / 32)**2``, as in DFS (AAAI 2020)."""
    return macs * (bits / FULL) ** 2


@register_cost_model("bitops")
def bitops(macs: float, bits: int, layer: int | None = None) -> float:  # noqa: ARG001
    """Return MACs x weight bits x activation bits."""
    return macs * bits**2


@register_cost_model("macs")
def macs_that_run(macs: float, bits: int, layer: int | None = None) -> float:  # noqa: ARG001
    """Return the MACs that run at any precision: only skipped layers cost less."""
    return 0.0 * macs if bits == SKIP else 1.0 * macs


@register_cost_model(LATENCY)
def latency(macs: float, bits: int, layer: int | None = None) -> float:  # noqa: ARG001
    """Raise ConfigError: only a profile knows."""
    raise ConfigError(
        "cost is latency, which is measured and not computed; give a profile that python -m "
        "dfs_rl.profile writes."
    )


_MULTIPLY_8, _ADD_32 = 0.2, 0.1
_MULTIPLY_ADD_FLOAT32 = 3.7 + 0.9


@register_cost_model("energy")
def energy(macs: float, bits: int, layer: int | None = None) -> float:  # noqa: ARG001
    """Return the energy of the arithmetic in picojoules, by Horowitz (ISSCC 2014, 45 nm).

    An 8-bit multiplication takes 0.2 pJ and others up to 16 bit in proportion to the square of
    their bits, as the 3.1 pJ of 32 bit suggest; their sum adds 0.1 pJ, a 32-bit addition. Full
    precision is floating point, 3.7 and 0.9 pJ. Memory counts nothing.
    """
    if bits == SKIP:
        return 0.0 * macs
    if bits == FULL:
        return macs * _MULTIPLY_ADD_FLOAT32
    return macs * (_MULTIPLY_8 * (bits / 8) ** 2 + _ADD_32)


@dataclass(frozen=True, kw_only=True)
class FixedCost:
    """A part of the network that is never gated, with its MACs per image.

    Attributes:
        layer: The gated layer that it runs with, or the number of layers for the head: an image
            that exits earlier is spared it. ``None`` runs before all of them.
    """

    name: str
    macs: int
    bits: int
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExitCost:
    """A classifier at which an image can leave the network, after ``after`` gated layers."""

    after: int
    macs: int
    bits: int


def check_exits(after: Sequence[int], n_layers: int) -> None:
    """Raise ConfigError unless exits come after ascending numbers of gated layers, not all."""
    if list(after) != sorted(set(after) & set(range(n_layers))):
        raise ConfigError(
            f"exits are asked for after {list(after)} gated layers; allowed are ascending numbers "
            f"from 0 to {n_layers - 1}."
        )
