"""Rendering of an episode: image, bits of each layer, computation and prediction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dfs_rl.costs import FULL, SKIP
from dfs_rl.envs.batched_episodes import BatchedEpisodes

WIDTH, HEIGHT = 640, 360
_SCALE = 2  # supersampling factor for smooth edges

Colour = tuple[int, int, int]
_PAPER: Colour = (252, 252, 250)
_INK: Colour = (33, 37, 41)
_MUTED: Colour = (120, 126, 134)
_LINE: Colour = (222, 225, 228)
_SKIPPED: Colour = (173, 178, 184)
_RIGHT: Colour = (26, 132, 84)
_WRONG: Colour = (200, 55, 45)
_BUDGET: Colour = (214, 120, 20)
_RAMP: tuple[Colour, ...] = ((134, 211, 190), (52, 148, 186), (48, 84, 160), (58, 30, 105))

_IMAGE_BOX = (24, 64, 192, 232)
_CHART_BOX = (240, 84, 616, 212)
_METER_BOX = (240, 296, 616, 312)
_METER_DECADES = (-1, 2)  # 0.1 % to 100 %
_FEW_LAYERS = 20  # maximum for numbered bars
_WORD_PITCH = 30  # minimum width of a bar with a word
_RGB = 3


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Content of a picture.

    Attributes:
        image: uint8 ``[h, w, channels]`` with 1 to 4 channels.
        bits: Bit widths of the layers that have run.
        n_layers: Number of gated layers.
        computation: Percent spent so far.
        budget: Budget in percent; ``None`` for no budget.
        label: Name of the image's class.
        prediction: Name of the predicted class; ``None`` until the end.
        probability: Probability of the predicted class.
    """

    image: NDArray[np.uint8]
    bits: Sequence[int]
    n_layers: int
    computation: float
    budget: float | None
    label: str
    prediction: str | None = None
    probability: float = 0.0


def render_episode(episodes: BatchedEpisodes, i: int) -> NDArray[np.uint8]:
    """Draw the current state of episode ``i``, uint8 ``[360, 640, 3]``."""
    episodes.require_reset()
    task, index, layer = episodes.task, int(episodes.indices[i]), int(episodes.layers[i])
    menu, answered = task.backbone.options, bool(episodes.ended[i] and episodes.predictions[i] >= 0)
    return draw(
        Frame(
            image=task.images.images[index].permute(1, 2, 0).cpu().numpy(),
            bits=[menu[option] for option in episodes.options[i, :layer].tolist()],
            n_layers=task.backbone.costs.n_layers,
            computation=float(episodes.computation[i]),
            budget=task.budget,
            label=task.class_names[int(task.images.labels[index])],
            prediction=task.class_names[int(episodes.predictions[i])] if answered else None,
            probability=float(episodes.probabilities[i]) if answered else 0.0,
        )
    )


def draw(frame: Frame) -> NDArray[np.uint8]:
    """Draw one picture, uint8 ``[360, 640, 3]``."""
    canvas = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), _PAPER)
    pen = _Pen(ImageDraw.Draw(canvas))
    _draw_image(canvas, pen, frame)
    _draw_bars(pen, frame)
    _draw_meter(pen, frame)
    _draw_verdict(pen, frame)
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def bits_colour(bits: int) -> Colour:
    """Return the colour of a bit width.

    Skipped layers are grey; others range from light green to dark violet on a logarithmic scale.
    """
    if bits == SKIP:
        return _SKIPPED
    place = math.log2(bits) / math.log2(FULL) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    a, b = _RAMP[low], _RAMP[low + 1]
    red, green, blue = (round(x + (y - x) * (place - low)) for x, y in zip(a, b, strict=True))
    return red, green, blue


class _Pen:
    """Drawing functions in coordinates of the final picture."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int,
        colour: Colour = _INK,
        anchor: str = "la",
    ) -> None:
        self._draw.text(
            (x * _SCALE, y * _SCALE), words, fill=colour, font=_font(size), anchor=anchor
        )

    def box(
        self,
        corners: tuple[float, float, float, float],
        *,
        fill: Colour | None = None,
        outline: Colour | None = None,
        radius: float = 3,
        width: int = 1,
    ) -> None:
        scaled = [corner * _SCALE for corner in corners]
        self._draw.rounded_rectangle(
            scaled, radius * _SCALE, fill=fill, outline=outline, width=width * _SCALE
        )

    def line(
        self, points: Sequence[tuple[float, float]], *, colour: Colour, width: int = 1
    ) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=width * _SCALE, joint="curve")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _SCALE)


def _bar_share(bits: int) -> float:
    """Return the height of a bar as a share of the chart: logarithmic, 1 at 32 bit."""
    return math.log2(1 + bits) / math.log2(1 + FULL)


def _draw_image(canvas: Image.Image, pen: _Pen, frame: Frame) -> None:
    left, top, right, bottom = _IMAGE_BOX
    pen.text(left, 24, "image", size=15, colour=_MUTED)
    # One channel is grey, two are grey with alpha; Pillow accepts three and four directly.
    pixels = frame.image if frame.image.shape[2] >= _RGB else frame.image[..., 0]
    picture = Image.fromarray(pixels).convert("RGB")
    side = max(picture.size)
    size = ((right - left) * picture.width // side, (bottom - top) * picture.height // side)
    scaled = picture.resize((size[0] * _SCALE, size[1] * _SCALE), Image.Resampling.NEAREST)
    x, y = left + (right - left - size[0]) // 2, top + (bottom - top - size[1]) // 2
    canvas.paste(scaled, (x * _SCALE, y * _SCALE))
    pen.box((x - 1, y - 1, x + size[0] + 1, y + size[1] + 1), outline=_LINE, radius=2)


def _draw_bars(pen: _Pen, frame: Frame) -> None:
    left, top, right, bottom = _CHART_BOX
    pen.text(left, 24, "bits of each layer", size=15, colour=_MUTED)
    done = len(frame.bits)
    place = (
        "all layers have run"
        if done == frame.n_layers
        else f"left after {done} of {frame.n_layers} layers"
        if frame.prediction is not None
        else f"layer {done + 1} of {frame.n_layers} is next"
    )
    pen.text(right, 24, place, size=15, colour=_MUTED, anchor="ra")
    pitch = (right - left) / frame.n_layers
    gap = min(6.0, pitch / 4)
    numbered = frame.n_layers <= _FEW_LAYERS
    for i in range(frame.n_layers):
        x0, x1 = left + i * pitch + gap / 2, left + (i + 1) * pitch - gap / 2
        middle = (x0 + x1) / 2
        if i < done:
            bits = frame.bits[i]
            height = max(3.0, (bottom - top) * _bar_share(bits))
            pen.box(
                (x0, bottom - height, x1, bottom),
                fill=bits_colour(bits),
                radius=min(3.0, pitch / 8),
            )
            if numbered:
                colour = _MUTED if bits == SKIP else _INK
                pen.text(
                    middle,
                    bottom - height - 4,
                    "skip" if bits == SKIP and pitch > _WORD_PITCH else str(bits),
                    size=13,
                    colour=colour,
                    anchor="mb",
                )
        else:
            ahead = _INK if i == done and frame.prediction is None else _LINE
            pen.box((x0, top, x1, bottom), outline=ahead, radius=min(3.0, pitch / 8))
        if numbered:
            pen.text(middle, bottom + 8, str(i + 1), size=11, colour=_MUTED, anchor="ma")
    pen.line([(left, bottom + 1), (right, bottom + 1)], colour=_LINE)
    if not numbered:
        _draw_legend(pen, sorted(set(frame.bits)), left, bottom + 8)


def _draw_legend(pen: _Pen, widths: Sequence[int], x: float, y: float) -> None:
    for bits in widths:
        words = "skip" if bits == SKIP else f"{bits} bit"
        pen.box((x, y + 1, x + 11, y + 12), fill=bits_colour(bits), radius=2)
        pen.text(x + 16, y, words, size=11, colour=_MUTED)
        x += 60


def _draw_meter(pen: _Pen, frame: Frame) -> None:
    left, top, right, bottom = _METER_BOX
    pen.text(left, top - 12, "computation", size=15, colour=_MUTED, anchor="ls")
    pen.text(right, top - 12, f"{frame.computation:.2f} %", size=22, anchor="rs")
    pen.box((left, top, right, bottom), fill=(238, 240, 242))
    end = left + (right - left) * _meter_share(frame.computation)
    pen.box((left, top, max(end, left + 6), bottom), fill=_RAMP[2])
    low, high = _METER_DECADES
    for decade in range(low, high + 1):
        x = left + (right - left) * (decade - low) / (high - low)
        anchor = {low: "la", high: "ra"}.get(decade, "ma")
        pen.text(x, bottom + 6, f"{10.0**decade:g} %", size=11, colour=_MUTED, anchor=anchor)
    if frame.budget is not None:
        x = left + (right - left) * _meter_share(frame.budget)
        pen.line([(x, top - 5), (x, bottom + 5)], colour=_BUDGET, width=2)
        pen.text(x, top - 6, "budget", size=11, colour=_BUDGET, anchor="mb")


def _meter_share(percent: float) -> float:
    low, high = _METER_DECADES
    return min(1.0, max(0.0, (math.log10(max(percent, 1e-9)) - low) / (high - low)))


def _draw_verdict(pen: _Pen, frame: Frame) -> None:
    left, _, _, bottom = _IMAGE_BOX
    pen.text(left, bottom + 22, "label", size=13, colour=_MUTED)
    pen.text(left, bottom + 38, _short(frame.label), size=18)
    pen.text(left, bottom + 70, "prediction", size=13, colour=_MUTED)
    if frame.prediction is None:
        pen.text(left, bottom + 86, "not yet", size=18, colour=_SKIPPED)
        return
    right = frame.prediction == frame.label
    colour = _RIGHT if right else _WRONG
    x, y = left + 7, bottom + 97
    if right:
        pen.line([(x - 6, y), (x - 1, y + 5), (x + 7, y - 6)], colour=colour, width=3)
    else:
        pen.line([(x - 5, y - 5), (x + 5, y + 5)], colour=colour, width=3)
        pen.line([(x - 5, y + 5), (x + 5, y - 5)], colour=colour, width=3)
    words = f"{_short(frame.prediction)}, {100 * frame.probability:.0f} %"
    pen.text(left + 22, bottom + 86, words, size=18, colour=colour)


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
