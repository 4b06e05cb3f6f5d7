"""Bit options of gated layers, and all bit widths that exist."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dfs_rl.errors import ConfigError

SKIP = 0
FULL = 32
ALLOWED_BITS = (SKIP, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, FULL)
DEFAULT_BITS = (0, 2, 3, 4, 8, 32)
BIT_OPTION_SETS: Mapping[str, tuple[int, ...]] = {"dfs": (0, 8, 10, 12, 14, 16, 32)}
"""Named bit options: those of DFS (AAAI 2020)."""


def parse_bit_options(bits: Sequence[int | str] | str) -> tuple[int, ...]:
    """Return bit options given by their widths or by their name, or raise ConfigError."""
    words = [bits] if isinstance(bits, str) else list(bits)
    if len(words) == 1 and words[0] in BIT_OPTION_SETS:
        return BIT_OPTION_SETS[str(words[0])]
    for word in words:
        if isinstance(word, str):
            raise ConfigError(
                f"bits has {word!r}; allowed are bit widths among {list(ALLOWED_BITS)}, or the "
                f"name of a set alone: {', '.join(BIT_OPTION_SETS)}."
            )
    return BitOptions(tuple(int(word) for word in words)).values


@dataclass(frozen=True)
class BitOptions:
    """Ascending bit widths; an action is an index into them, never a bit number.

    Attributes:
        values: The bit widths, ascending and unique, each one of ``ALLOWED_BITS``; 0 skips the
            layer, 32 is full precision.

    Raises:
        ConfigError: If it is empty, not ascending, or has an unknown bit width.
    """

    values: tuple[int, ...] = DEFAULT_BITS

    def __post_init__(self) -> None:
        unknown = [bits for bits in self.values if bits not in ALLOWED_BITS]
        if unknown:
            raise ConfigError(
                f"bit options {list(self.values)} contain {unknown[0]}; allowed are "
                f"{list(ALLOWED_BITS)}."
            )
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ConfigError(
                f"bit options {list(self.values)} must be a non-empty, strictly ascending list of "
                "bit widths."
            )

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[int]:
        return iter(self.values)

    def __getitem__(self, index: int) -> int:
        return self.values[index]

    def index(self, bits: int) -> int:
        """Return the action that selects ``bits``, or raise ConfigError if it is no option."""
        if bits not in self.values:
            raise ConfigError(f"{bits} bit is no bit option; allowed are {list(self.values)}.")
        return self.values.index(bits)

    def indices(self, bits: Iterable[int]) -> tuple[int, ...]:
        """Return the actions that select each of ``bits``."""
        return tuple(self.index(b) for b in bits)

    @property
    def full(self) -> int:
        """Index of the largest bit width."""
        return len(self.values) - 1

    @property
    def quantized(self) -> tuple[int, ...]:
        """The bit widths between 0 and 32."""
        return tuple(bits for bits in self.values if bits not in (SKIP, FULL))
