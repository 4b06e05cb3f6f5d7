"""Measured time of the parts of a network, as ``python -m dfs_rl.profile`` writes it."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.errors import ConfigError, RunFolderError
from dfs_rl.utils.config import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    config_from_dict,
    configuration,
)
from dfs_rl.utils.io import read_json

_FORMAT = 2  # 1 timed the layers of an ONNX file inside branches
_LONG = 8  # entries of two lists together, above which a message does not repeat them
PartName = Literal["stem", "layer", "exit", "head", "gate"]
Runtime = Literal["torch", "onnx", "onnx-int8"]
Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
"""Time of a part; the bound, eleven days, keeps sums of times finite."""


@configuration
class PartLatency:
    """Time of one part in milliseconds per image.

    Attributes:
        part: Kind of the part; ``"gate"`` is one decision, with the features that only it needs.
        layer: Index of the gated layer that it is, or that it stands before; ``None`` for stem and
            head.
        bits: Bit width of a gated layer; ``None`` for the other parts.
        batch_size: Images per call.
        median: Median over the calls.
        low: First quartile.
        high: Third quartile.
    """

    part: PartName
    layer: NonNegativeInt | None = None
    bits: NonNegativeInt | None = None
    batch_size: PositiveInt
    median: Milliseconds
    low: Milliseconds
    high: Milliseconds

    def __post_init__(self) -> None:
        if not self.low <= self.median <= self.high:
            raise ConfigError(
                f"the median of {self.part} is {self.median:g} ms, which is not between its "
                f"quartiles, {self.low:g} and {self.high:g} ms."
            )


@configuration
class NetworkLatency:
    """Time of a whole network in milliseconds per image, as predicted by its parts and measured.

    Attributes:
        bits: Bit width of each gated layer.
        batch_size: Images per call.
        predicted: Sum of its parts.
        measured: Median over the calls.
    """

    bits: tuple[NonNegativeInt, ...]
    batch_size: PositiveInt
    predicted: PositiveFloat
    measured: PositiveFloat


@configuration
class LatencyProfile:
    """Measured time of every part of a network on one machine.

    Attributes:
        machine: Processor, or GPU, that ran the network.
        device: Kind of device, ``"cpu"`` or ``"cuda"``.
        versions: Libraries with their versions, for example ``"torch 2.13.0"``.
        calls: Mean number of calls behind the median of an option of a layer.
        layer_macs: MACs of each gated layer, which identify the network.
        fixed_macs: MACs of each never-gated part, likewise.
        fixed_bits: Bit width of each never-gated part, likewise.
        gate_macs: MACs per image of the gate that was measured, features included, by the cost
            model ``computation``.
        parts: Time of each part.
        checks: Whole networks, uniform and random.
    """

    format: int = _FORMAT
    machine: str
    device: str
    runtime: Runtime
    threads: PositiveInt
    versions: tuple[str, ...]
    calls: PositiveInt
    layer_macs: tuple[Annotated[NonNegativeInt, Field(ge=1)], ...]
    fixed_macs: tuple[NonNegativeInt, ...]
    fixed_bits: tuple[PositiveInt, ...]
    gate_macs: PositiveFloat
    parts: tuple[PartLatency, ...]
    checks: tuple[NetworkLatency, ...] = ()

    def __post_init__(self) -> None:
        if self.format != _FORMAT:
            raise ConfigError(
                f"the latency profile has format {self.format}; this version of dfs-rl reads "
                f"format {_FORMAT}: measure the network again with python -m dfs_rl.profile."
            )
        if not self.parts:
            raise ConfigError("parts is empty; a profile has one part at least.")
        names = [(p.part, p.layer, p.bits, p.batch_size) for p in self.parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"parts has {twice} twice; each part is measured once.")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The measured batch sizes, ascending."""
        return tuple(sorted({part.batch_size for part in self.parts}))

    @property
    def bits(self) -> tuple[int, ...]:
        """The measured bit options of the gated layers, ascending."""
        return tuple(sorted({part.bits for part in self.parts if part.bits is not None}))

    @property
    def exits(self) -> tuple[int, ...]:
        """The numbers of gated layers before the measured exits, ascending."""
        return tuple(sorted({part.layer or 0 for part in self.parts if part.part == "exit"}))

    @property
    def error(self) -> float:
        """Mean absolute error in percent of the sums of parts in ``checks``; 0 without checks."""
        errors = [abs(c.predicted / c.measured - 1.0) for c in self.checks]
        return 100.0 * sum(errors) / max(len(errors), 1)

    def at(self, batch_size: int) -> "LatencyProfile":
        """Return the profile with one batch size alone, or raise ConfigError."""
        if batch_size not in self.batch_sizes:
            raise ConfigError(
                f"batch_size is {batch_size}, but the profile has {list(self.batch_sizes)}."
            )
        return replace(
            self,
            parts=tuple(part for part in self.parts if part.batch_size == batch_size),
            checks=tuple(check for check in self.checks if check.batch_size == batch_size),
        )

    def milliseconds(
        self, part: PartName, layer: int | None = None, bits: int | None = None
    ) -> float:
        """Return the time of a part per image, at the smallest batch size, or raise ConfigError."""
        found = self._medians.get((part, layer, bits))
        if found is None:
            where = "" if layer is None or part == "layer" else " before layer"
            number = "" if layer is None else f"{where} {layer}"
            option = "" if bits is None else f" at {bits} bit"
            raise ConfigError(
                f"the latency profile lacks {part}{number}{option}; measure this network again."
            )
        return found

    @cached_property
    def _medians(self) -> dict[tuple[PartName, int | None, int | None], float]:
        smallest = self.batch_sizes[0]
        parts = [part for part in self.parts if part.batch_size == smallest]
        return {(part.part, part.layer, part.bits): part.median for part in parts}


@configuration
class LatencySettings:
    """Measured times for the cost model ``latency``.

    Attributes:
        profile: File that python -m dfs_rl.profile wrote.
        batch_size: Batch size whose times count, by default the smallest in the profile.
        other_machine: The profile may be of another machine or runtime than this one.
    """

    profile: Path | None = None
    batch_size: PositiveInt | None = None
    other_machine: bool = False


def difference(name: str, theirs: object, own: object) -> str:
    """Return how a field of a profile differs from here, without long lists of layers."""
    if isinstance(theirs, tuple) and isinstance(own, tuple) and len(theirs) + len(own) > _LONG:
        if len(theirs) != len(own):
            return f"it has {len(theirs)} {name}, and here are {len(own)}"
        pairs = enumerate(zip(theirs, own, strict=True))
        i, (theirs, own) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        name = f"{name}[{i}]"
    return f"its {name} is {theirs}, and here it is {own}"


def read_latency_profile(path: str | Path) -> LatencyProfile:
    """Read a profile that ``python -m dfs_rl.profile`` wrote.

    Raises:
        RunFolderError: If the file cannot be read.
        ConfigError: If it is no profile, or damaged.
    """
    wrong = ConfigError(f"{path} is no latency profile; python -m dfs_rl.profile writes one.")
    try:
        record = read_json(Path(path))
    except RunFolderError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise wrong from error
    if not isinstance(record, dict) or "parts" not in record:
        raise wrong
    return config_from_dict(record, LatencyProfile, str(path))


def check_cost(cost: str, latency: LatencySettings) -> None:
    """Raise ConfigError unless a profile is given if the cost is latency, and only then."""
    if latency.profile is None and latency != LatencySettings():
        raise ConfigError(
            f"latency.batch_size is {latency.batch_size} and latency.other_machine "
            f"{str(latency.other_machine).lower()}, but latency.profile is not given; they need it."
        )
    if cost == LATENCY and latency.profile is None:
        raise ConfigError(
            "cost is latency, but latency.profile is not given; measure the network with: python "
            "-m dfs_rl.profile BACKBONE"
        )
    if cost != LATENCY and latency.profile is not None:
        raise ConfigError(
            f"latency.profile is {latency.profile}, but cost is {cost}; the cost latency needs it."
        )
