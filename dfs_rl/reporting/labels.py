"""Places text beside points so that nothing covers anything else."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

_DIRECTIONS = 24
_DISTANCES = (7.0, 10.0, 14.0, 19.0, 26.0, 34.0, 44.0, 56.0)  # points
_LEADER_FROM = 15.0  # a label farther away than this gets a line to its point
_PADDING = 2.5
_MARKER_RADIUS = 5.0
_LINE_RADIUS = 1.5


class Label(NamedTuple):
    """Text that belongs to a point.

    Attributes:
        text: The text.
        x: Where the point is, in data units.
        y: Likewise.
        colour: Of the text.
        weight: Of the font.
    """

    text: str
    x: float
    y: float
    colour: str
    weight: str = "normal"


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: "_Box") -> float:
        """Return the area that lies outside ``frame``."""
        own = (self.right - self.left) * (self.top - self.bottom)
        return own - self.overlap(frame)


def place_labels(
    axes: "Axes",
    labels: Sequence[Label],
    lines: Sequence[Sequence[tuple[float, float]]],
    size: float,
) -> list["Bbox"]:
    """Write each label near its point, the first ones in the best places.

    Limits and scales of the axes must be final.

    Args:
        axes: Where to write.
        labels: What to write, the most important first.
        lines: Polylines, in data units, that text should not cover.
        size: Font size in points.

    Returns:
        The boxes of the texts, in pixels.
    """
    figure = axes.figure
    pixels = figure.dpi / 72.0  # per point
    frame = _Box(*axes.get_window_extent().extents)
    centres = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
    taken = [_square(centre, _MARKER_RADIUS * pixels) for centre in centres]
    for line in lines:
        ends = axes.transData.transform(np.asarray(line, dtype=np.float64))
        taken += [_square(place, _LINE_RADIUS * pixels) for place in _along(ends, pixels)]
    boxes = []
    for label, (x, y) in zip(labels, centres, strict=True):
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=size,
            color=label.colour,
            fontweight=label.weight,
            ha="center",
            va="center",
            zorder=6,
        )
        extent = text.get_window_extent()
        half = (
            extent.width / 2 + _PADDING * pixels,
            extent.height / 2 + _PADDING * pixels,
        )
        distance, dx, dy, box = _best_place((x, y), half, taken, frame, pixels)
        text.set_position((dx / pixels, dy / pixels))
        taken.append(box)
        boxes.append(text.get_window_extent())
        if distance > _LEADER_FROM:
            _leader(axes, (x, y), (x + dx, y + dy), half, label.colour)
    return boxes


def _square(centre: Sequence[float], radius: float) -> _Box:
    x, y = centre
    return _Box(x - radius, y - radius, x + radius, y + radius)


def _along(ends: NDArray[np.float64], pixels: float) -> Iterator[tuple[float, float]]:
    """Yield places on a polyline, two line radii apart."""
    for (x0, y0), (x1, y1) in itertools.pairwise(ends.tolist()):
        steps = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / (2 * _LINE_RADIUS * pixels)))
        for i in range(steps + 1):
            yield x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps


def _best_place(
    centre: tuple[float, float],
    half: tuple[float, float],
    taken: Sequence[_Box],
    frame: _Box,
    pixels: float,
) -> tuple[float, float, float, _Box]:
    """Return distance (points), offset (pixels) and box of the place that covers least."""
    best = None
    for distance in _DISTANCES:
        for direction in range(_DIRECTIONS):
            angle = 2 * math.pi * direction / _DIRECTIONS
            # The edge of the box, not its middle, keeps the distance.
            reach_x = distance * pixels * math.cos(angle) + half[0] * _unit(math.cos(angle))
            reach_y = distance * pixels * math.sin(angle) + half[1] * _unit(math.sin(angle))
            x, y = centre[0] + reach_x, centre[1] + reach_y
            box = _Box(x - half[0], y - half[1], x + half[0], y + half[1])
            covered = sum(box.overlap(other) for other in taken) + 4 * box.outside(frame)
            # Right and above first, as one reads.
            slant = 0.5 * (1 - math.cos(angle - math.pi / 6))
            cost = (covered, distance + slant)
            if best is None or cost < best[0]:
                best = (cost, (distance, reach_x, reach_y, box))
    assert best is not None, "there are places to choose from"
    return best[1]


def _unit(value: float) -> float:
    """Squash a cosine so that a side's middle is reached before its corner."""
    return max(-1.0, min(1.0, 1.4 * value))


def _leader(
    axes: "Axes",
    point: tuple[float, float],
    centre: tuple[float, float],
    half: tuple[float, float],
    colour: str,
) -> None:
    """Draw a thin line from the point to the nearest place on the label's box."""
    ends = [
        point,
        tuple(min(max(p, c - h), c + h) for p, c, h in zip(point, centre, half, strict=True)),
    ]
    data = axes.transData.inverted().transform(ends)
    axes.plot(data[:, 0], data[:, 1], color=colour, linewidth=0.6, alpha=0.7, zorder=3)
