"""Random streams of images and preferences for the environments."""

from collections.abc import Sequence

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
# OOPSLA 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_SALT = 0xD1A1_0F_9B1CE5
"""Constant that separates the draw of the preference from that of the image index."""
_DOUBLE_BITS = 53
_GIVEN_SHIFT = 40
"""Place of the count of given images in a counter, above all counts of drawn ones."""

StreamIndices = NDArray[np.int64] | slice
"""Indices of streams."""
ALL = slice(None)


class ImageSampler:
    """Independent uniform draws with replacement, one random stream per environment or group.

    A draw is a function of (key, episode), where the key comes from Gymnasium's generator for the
    stream's seed. So one call draws from all streams, a stream does not depend on the other
    streams, and its state consists of three numbers: episodes on given images count apart, so
    that they draw preferences without advancing the images.

    Args:
        n: Number of environments.
        group_size: Number of consecutive environments that share a stream.
    """

    def __init__(self, n: int, group_size: int = 1) -> None:
        self._group_size = group_size
        self.keys: NDArray[np.uint64] = np.zeros(n // group_size, dtype=np.uint64)
        self.episodes: NDArray[np.uint64] = np.zeros(n // group_size, dtype=np.uint64)
        self.given: NDArray[np.uint64] = np.zeros(n // group_size, dtype=np.uint64)
        self._seeded = False

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Restart each stream from its seed.

        ``None`` continues a stream, or seeds it from system entropy the first time.
        """
        for i, seed in enumerate(seeds):
            if seed is None and self._seeded:
                continue
            generator, _ = seeding.np_random(seed)
            self.keys[i] = generator.integers(2**63)
            self.episodes[i] = self.given[i] = 0
        self._seeded = True

    def draw(self, n_images: int, which: StreamIndices = ALL) -> NDArray[np.int64]:
        """Return the next image index of each environment of all or some streams, int64 ``[n]``."""
        self.episodes[which] += np.uint64(1)
        drawn = self._mixed(self.keys, self.episodes)[which] % np.uint64(n_images)
        return np.repeat(drawn.astype(np.int64), self._group_size)

    def preferences(self, which: StreamIndices = ALL) -> NDArray[np.float64]:
        """Return a number in [0, 1) likewise, float64 ``[n]``, independent of the image."""
        counts = self.episodes + (self.given << np.uint64(_GIVEN_SHIFT))
        z = self._mixed(self.keys ^ np.uint64(_SALT), counts)
        high = (z >> np.uint64(64 - _DOUBLE_BITS)).astype(np.float64)
        return np.repeat(np.ldexp(high, -_DOUBLE_BITS)[which], self._group_size)

    @staticmethod
    def _mixed(keys: NDArray[np.uint64], counts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        z = keys + counts * np.uint64(_GOLDEN)
        for shift, factor in _MIX:
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(_LAST_SHIFT)
        return z

    def get_state(self) -> dict[str, list[int]]:
        """Return the state as JSON values."""
        counters = {"keys": self.keys, "episodes": self.episodes, "given": self.given}
        return {name: values.tolist() for name, values in counters.items()}

    def set_state(self, state: dict[str, list[int]]) -> None:
        """Restore a state that ``get_state`` returned."""
        self.keys = np.array(state["keys"], dtype=np.uint64)
        self.episodes = np.array(state["episodes"], dtype=np.uint64)
        self.given = np.array(state["given"], dtype=np.uint64)
        self._seeded = True
