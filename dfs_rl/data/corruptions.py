"""Corruptions of images, and streams of mixed difficulty.

The corruptions follow Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), at the strengths of their CIFAR-10-C.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.data.images import Dataset, ImageSet, SplitName
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.utils.constants import Corruptions
from dfs_rl.utils.seeding import numpy_generator, torch_generator

Corruption = Literal["noise", "blur", "contrast", "brightness", "pixelation"]
Condition = tuple[Corruption, int] | None
"""Corruption of an image and its strength; None for a clean image."""

LEVELS: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "pixelation": (0.95, 0.9, 0.85, 0.75, 0.65),
}
"""Parameter of each corruption at strengths 1 to 5, see ``corrupt``."""
STRENGTHS = range(1, 6)
_COLOURS = (1, 3)  # numbers of channels without an alpha channel
_WHITE = 255.0
_CHUNK = 256  # images that are corrupted at a time


def corrupt(
    images: Tensor, corruption: Corruption, strength: int, keys: Sequence[tuple[str, int]]
) -> Tensor:
    """Corrupt images in one way.

    For pixels in [0, 1], ``noise`` adds normal noise of a standard deviation, ``blur`` is Gaussian
    with a standard deviation in pixels, ``contrast`` scales the difference to each channel's mean,
    ``brightness`` is added to the value in HSV, and ``pixelation`` scales the sides down.

    Args:
        images: uint8 ``[n, c, h, w]`` on the CPU, grey or RGB.
        corruption: Kind of the corruption.
        strength: 1 to 5.
        keys: Name of each image ``[n]``, split and index, for the seed of its noise. The same image
            and key give the same result in any batch.

    Returns:
        uint8 ``[n, c, h, w]``.
    """
    level = LEVELS[corruption][strength - 1]
    pixels = images / _WHITE
    if corruption == "noise":
        shape = pixels.shape[1:]
        drawn = [torch.randn(shape, generator=torch_generator("noise", *key)) for key in keys]
        pixels = pixels + level * torch.stack(drawn)
    elif corruption == "blur":
        pixels = _blurred(pixels, level)
    elif corruption == "contrast":
        mean = pixels.mean(dim=(2, 3), keepdim=True)
        pixels = mean + level * (pixels - mean)
    elif corruption == "brightness":
        value = pixels.amax(dim=1, keepdim=True)
        brighter = (value + level).clamp(max=1.0)
        # Equal hue and saturation: all channels grow by one factor. Black becomes grey.
        pixels = torch.where(value > 0, pixels * (brighter / value), brighter)
    else:
        rows, columns = (_averaging(side, int(level * side)) for side in images.shape[2:])
        pixels = rows @ pixels @ columns
    return (pixels * _WHITE).round().clamp(0, _WHITE).to(torch.uint8)


def conditions(n: int, corruptions: Corruptions, split: SplitName) -> list[Condition]:
    """Return the condition of each image ``[n]`` of a split; fewer images have a prefix of it.

    The conditions of a stream are equally frequent in every block of as many images as there are
    conditions, in random order. A kind has strengths 1 to 5; ``mixed`` has each of them for every
    kind, and clean images as often as one kind.
    """
    chosen = get_args(Corruption) if corruptions == "mixed" else (corruptions,)
    cells: list[Condition] = list(itertools.product(chosen, STRENGTHS))
    if corruptions == "mixed":
        cells += [None] * len(STRENGTHS)
    draws = numpy_generator("corruptions", corruptions, split)
    order = [draws.permutation(len(cells)) for _ in range(0, n, len(cells))]
    return [cells[i] for i in np.concatenate(order)[:n]]


def corrupted(dataset: Dataset, corruptions: Corruptions) -> Dataset:
    """Return a data set whose splits agent, val and test are a stream, see ``conditions``.

    Train stays clean. The data set may be this stream already.

    Raises:
        ConfigError: If the stream is unknown.
        DataError: If the data set is another stream, or has an alpha channel.
    """
    if corruptions not in get_args(Corruptions):
        raise ConfigError(
            f"corruptions is {corruptions!r}; allowed are {', '.join(get_args(Corruptions))}."
        )
    if corruptions == dataset.corruptions:
        return dataset
    if dataset.corruptions != "none":
        raise DataError(
            f"data set {dataset.name!r} has the corruptions {dataset.corruptions}, not "
            f"{corruptions}; set corruptions to {dataset.corruptions}, or load it without any."
        )
    if dataset.image_shape[0] not in _COLOURS:
        raise DataError(
            f"corruptions is {corruptions}, but the images of data set {dataset.name!r} have "
            f"{dataset.image_shape[0]} channels; allowed are grey and RGB."
        )
    return replace(
        dataset,
        name=f"{dataset.name}-{corruptions}",
        agent=_stream(dataset.agent, corruptions, "agent"),
        val=_stream(dataset.val, corruptions, "val"),
        test=_stream(dataset.test, corruptions, "test"),
        corruptions=corruptions,
        original=dataset,
    )


def _stream(images: ImageSet, corruptions: Corruptions, split: SplitName) -> ImageSet:
    """Corrupt each image of a split under its condition."""
    rows_of: dict[Condition, list[int]] = {}
    for row, condition in enumerate(conditions(len(images), corruptions, split)):
        rows_of.setdefault(condition, []).append(row)
    pixels = images.images.clone()
    for condition, all_rows in rows_of.items():
        if condition is not None:
            for rows in torch.split(torch.tensor(all_rows), _CHUNK):
                keys = [(split, row) for row in rows.tolist()]
                pixels[rows] = corrupt(images.images[rows], *condition, keys)
    return ImageSet(pixels, images.labels)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian out to four standard deviations; edge pixels are repeated."""
    channels = pixels.shape[1]
    radius = round(4 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    weights = (weights / weights.sum()).expand(channels, 1, 1, -1)
    padded = functional.pad(pixels, (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weights, groups=channels)
    return functional.conv2d(rows, weights.transpose(2, 3), groups=channels)


def _averaging(side: int, cells: int) -> Tensor:
    """Return the matrix ``[side, side]`` that replaces pixels by the mean of their cell."""
    cell = ((torch.arange(side) + 0.5) * (cells / side)).long()  # as Pillow's box filter
    same = (cell[:, None] == cell).float()
    return same / same.sum(dim=1, keepdim=True)
