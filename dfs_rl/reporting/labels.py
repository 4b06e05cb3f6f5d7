"""Placement of labels next to points without overlaps."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_rl.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

_DIRECTIONS = 24
_DISTANCES = (7.0, 10.0, 14.0, 19.0, 26.0, 34.0, 44.0, 56.0)  # points
_LEADER_FROM = 15.0  # points; labels farther away get a leader line
_PADDING = 2.5
_MARKER_RADIUS = 5.0
_LINE_RADIUS = 1.5
# Penalties in points of distance for a label entirely on other labels, or entirely on lines.
_COVERING, _CROSSING = 5000.0, 200.0


class Label(NamedTuple):
    """Text label of a point.

    Attributes:
        text: Text of the label.
        x: Horizontal coordinate of the point, in data units.
        y: Vertical coordinate of the point, in data units.
        colour: Colour of the text.
        weight: Weight of the font.
    """

    text: str
    x: float
    y: float
    colour: str
    weight: str = "normal"


class _Place(NamedTuple):
    """Placement of a label: distance from the point in points, offset and box in pixels."""

    distance: float
    offset: tuple[float, float]
    box: NDArray[np.float64]


class _Fan(NamedTuple):
    """Candidate placements of a label around its point, in pixels except for ``distance``."""

    distance: NDArray[np.float64]  # [n], points
    angle: NDArray[np.float64]  # [n]
    offset: NDArray[np.float64]  # [n, 2]
    boxes: NDArray[np.float64]  # [n, 4]

    @classmethod
    def around(
        cls, centre: NDArray[np.float64], half: NDArray[np.float64], pixels: float
    ) -> "_Fan":
        """Return candidates for a text of half size ``half`` around ``centre``."""
        angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        distance, angle = (v.ravel() for v in np.meshgrid(_DISTANCES, angles, indexing="ij"))
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        # The distance is that of the box's edge, not of its centre; sides come before corners.
        offset = distance[:, None] * pixels * direction + half * np.clip(1.4 * direction, -1, 1)
        boxes = np.concatenate([centre + offset - half, centre + offset + half], axis=1)
        return cls(distance, angle, offset, boxes)

    def best(
        self, taken: NDArray[np.float64], crossed: NDArray[np.float64], frame: NDArray[np.float64]
    ) -> _Place:
        """Return the nearest candidate with little overlap with ``taken`` and ``crossed``."""
        area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1)
        covered = _overlaps(self.boxes, taken).sum(axis=1)
        outside = area - _overlaps(self.boxes, frame[None])[:, 0]
        lines = _overlaps(self.boxes, crossed).sum(axis=1)
        # Prefer the upper right.
        slant = 0.5 * (1 - np.cos(self.angle - np.pi / 6))
        penalty = (_COVERING * (covered + outside) + _CROSSING * lines) / area
        best = int((self.distance + slant + penalty.round(6)).argmin())
        return _Place(
            float(self.distance[best]),
            (float(self.offset[best, 0]), float(self.offset[best, 1])),
            self.boxes[best],
        )


def place_labels(
    axes: "Axes",
    labels: Sequence[Label],
    lines: Sequence[Sequence[tuple[float, float]]],
    size: float,
) -> list["Bbox"]:
    """Write each label near its point, the first ones at the best placements.

    Limits and scales of the axes must be final.

    Args:
        axes: Axes to write on.
        labels: Labels, the most important first.
        lines: Polylines, in data units, that labels should not cover.
        size: Font size in points.

    Returns:
        Boxes of the texts, in pixels.
    """
    from matplotlib.patheffects import withStroke

    pixels = axes.figure.dpi / 72.0  # per point
    frame = np.asarray(axes.get_window_extent().extents)
    centres = axes.transData.transform([(label.x, label.y) for label in labels])
    taken = [_squares(centres, _MARKER_RADIUS * pixels)]
    strokes = [np.empty((0, 4))]
    for line in lines:
        places = _along(axes.transData.transform(line), 2 * _LINE_RADIUS * pixels)
        strokes.append(_squares(places, _LINE_RADIUS * pixels))
    crossed = np.concatenate(strokes)
    boxes = []
    for label, centre in zip(labels, centres, strict=True):
        text = axes.annotate(
            style.short_middle(label.text, 2 * style.NAME_LENGTH),
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=size,
            color=label.colour,
            fontweight=label.weight,
            ha="center",
            va="center",
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        extent = text.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + _PADDING * pixels
        fan = _Fan.around(centre, half, pixels)
        place = fan.best(np.concatenate(taken), crossed, frame)
        text.set_position((place.offset[0] / pixels, place.offset[1] / pixels))
        taken.append(place.box[None])
        boxes.append(text.get_window_extent())
        if place.distance > _LEADER_FROM:
            _leader(axes, centre, place.box, label.colour)
    return boxes


def _squares(centres: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Return boxes (left, bottom, right, top) ``[n, 4]`` around ``centres`` ``[n, 2]``."""
    return np.concatenate([centres - radius, centres + radius], axis=1)


def _along(ends: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """Return points on a polyline ``[n, 2]``, at most ``spacing`` apart."""
    pieces = []
    for start, end in itertools.pairwise(ends):
        steps = max(1, math.ceil(math.dist(start, end) / spacing))
        pieces.append(start + (end - start) * np.linspace(0, 1, steps + 1)[:, None])
    return np.concatenate(pieces)


def _overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas ``[n, m]`` of the intersections of boxes ``[n, 4]`` and ``[m, 4]``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    areas: NDArray[np.float64] = np.clip(high - low, 0.0, None).prod(axis=2)
    return areas


def _leader(
    axes: "Axes", point: NDArray[np.float64], box: NDArray[np.float64], colour: str
) -> None:
    """Draw a thin line from the point to the nearest point of the label's box."""
    nearest = np.clip(point, box[:2], box[2:])
    data = axes.transData.inverted().transform(np.stack([point, nearest]))
    axes.plot(data[:, 0], data[:, 1], color=colour, linewidth=0.6, alpha=0.7, zorder=3)
