"""Named random streams: equal keys give equal numbers.

No training stores the state of a generator. A stream is a function of its keys, so a run
that resumes at (seed, epoch, step) draws the numbers of the uninterrupted run:

    >>> import torch
    >>> first = torch.rand(2, generator=torch_generator(7, "augment", 3))
    >>> again = torch.rand(2, generator=torch_generator(7, "augment", 3))
    >>> bool((first == again).all())
    True
"""

import hashlib
import random

import numpy as np
import torch


def _sequence(keys: tuple[int | str, ...]) -> np.random.SeedSequence:
    """Return the seed sequence of keys; (1,) and ("1",), or ("ab", "c") and ("a", "bc"), differ."""
    text = "".join(f"{type(key).__name__}:{len(str(key))}:{key};" for key in keys)
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.SeedSequence(np.frombuffer(digest, dtype="<u4").tolist())


def stream_seed(*keys: int | str) -> int:
    """Return the seed of the stream named by ``keys``, below 2**63."""
    state = _sequence(keys).generate_state(1, np.uint64)
    return int(state[0]) >> 1  # torch expects a signed 64-bit seed


def torch_generator(*keys: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new torch generator at the start of the stream named by ``keys``.

    The stream differs between kinds of devices.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(*keys))
    return generator


def numpy_generator(*keys: int | str) -> np.random.Generator:
    """Return a new NumPy generator at the start of the stream named by ``keys``."""
    return np.random.Generator(np.random.PCG64(_sequence(keys)))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, for libraries that draw from them."""
    random.seed(stream_seed(seed, "python"))
    # Stable-Baselines3 draws from the legacy generator.
    np.random.seed(stream_seed(seed, "numpy") % 2**32)  # noqa: NPY002
    torch.manual_seed(stream_seed(seed, "torch"))
