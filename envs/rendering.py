"""Rendering of an episode: image, bits of each layer, computation and prediction."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dfs_rl.costs import FULL, SKIP

WIDTH, HEIGHT = 640, 360

Colour = tuple[int, int, int]
_PAPER, _INK, _MUTED = (252, 252, 250), (33, 37, 41), (120, 126, 134)
_RIGHT, _WRONG, _BUDGET = (26, 132, 84), (200, 55, 45), (214, 120, 20)
_SKIPPED: Colour = (173, 178, 184)
_LOWEST: Colour = (134, 211, 190)
_HIGHEST: Colour = (58, 30, 105)

_PICTURE = (24, 48, 168)  # left, top, side
_CHART = (232, 64, 616, 216)  # left, top, right, bottom
_METER = (232, 288, 616, 304)
_FEW_LAYERS = 20  # maximum for numbered bars
_RGB = 3


def draw_episode(
    *,
    image: NDArray[np.uint8],
    bits: Sequence[int],
    n_layers: int,
    computation: float,
    budget: float | None,
    label: str,
    answer: tuple[str, float] | None = None,
) -> NDArray[np.uint8]:
    """Draw one picture, uint8 ``[360, 640, 3]``.

    Args:
        image: uint8 ``[h, w, channels]`` with 1 to 4 channels.
        bits: Bit widths of the layers that have run.
        n_layers: Number of gated layers.
        computation: Spent so far, in percent, like the budget.
        budget: Budget; ``None`` for none.
        label: Name of the image's class.
        answer: Name and probability of the predicted class; ``None`` until the end.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(canvas)

    def text(
        x: float, y: float, words: str, colour: Colour = _INK, *, anchor: str = "la", size: int = 14
    ) -> None:
        font = ImageFont.load_default(size=size)
        pen.text((x, y), words, fill=colour, font=font, anchor=anchor)

    left, top, side = _PICTURE
    # One channel is grey, two are grey with alpha; Pillow accepts three and four directly.
    pixels = image if image.shape[2] >= _RGB else image[..., 0]
    picture = Image.fromarray(pixels).convert("RGB")
    scale = side / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    canvas.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top))
    text(left, 20, "image", _MUTED)
    text(left, 240, f"label: {_short(label)}")
    if answer is None:
        text(left, 264, "prediction: not yet", _MUTED)
    else:
        colour = _RIGHT if answer[0] == label else _WRONG
        text(left, 264, f"prediction: {_short(answer[0])}, {100 * answer[1]:.0f} %", colour)

    left, top, right, bottom = _CHART
    text(left, 20, f"bits of each layer: {len(bits)} of {n_layers} have run", _MUTED)
    pitch = (right - left) / n_layers
    for i in range(n_layers):
        x0, x1 = left + i * pitch, left + (i + 1) * pitch - min(6.0, pitch / 4)
        if i >= len(bits):
            pen.rectangle((x0, bottom - 2, x1, bottom), fill=_SKIPPED)
            continue
        height = max(3.0, (bottom - top) * _scaled(bits[i]))
        pen.rectangle((x0, bottom - height, x1, bottom), fill=bits_colour(bits[i]))
        if n_layers <= _FEW_LAYERS:
            text((x0 + x1) / 2, bottom - height - 4, str(bits[i]), anchor="mb", size=12)

    left, top, right, bottom = _METER
    text(left, top - 10, "computation", _MUTED, anchor="ls")
    bound = "" if budget is None else f", budget {budget:g} %"
    text(right, top - 10, f"{computation:.2f} %{bound}", anchor="rs", size=18)
    pen.rectangle((left, top, right, bottom), outline=_SKIPPED)
    pen.rectangle((left, top, left + (right - left) * _log_share(computation), bottom), fill=_INK)
    text(left, bottom + 6, "0.1 %", _MUTED, size=11)
    text(right, bottom + 6, "100 %", _MUTED, size=11, anchor="ra")
    if budget is not None:
        x = left + (right - left) * _log_share(budget)
        pen.line((x, top - 4, x, bottom + 4), fill=_BUDGET, width=3)
    return np.asarray(canvas)


def bits_colour(bits: int) -> Colour:
    """Return the colour of a bit width: grey for 0, else from light green to dark violet."""
    if bits == SKIP:
        return _SKIPPED
    share = math.log2(bits) / math.log2(FULL)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_LOWEST, _HIGHEST, strict=True))
    return red, green, blue


def _scaled(bits: int) -> float:
    """Return the height of a bar as a share of the chart: logarithmic, 1 at 32 bit."""
    return math.log2(1 + bits) / math.log2(1 + FULL)


def _log_share(percent: float) -> float:
    """Return the share of the meter from 0.1 % to 100 %, on a logarithmic scale."""
    return min(1.0, max(0.0, (math.log10(max(percent, 1e-9)) + 1) / 3))


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
