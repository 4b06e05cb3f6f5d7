"""Placement of labels next to points without overlaps.

adjustText, tried on these figures, covers markers and lines and places labels outside the frame.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from dfs_rl.reporting import style

_DIRECTIONS = 24
_DISTANCES = (7.0, 10.0, 14.0, 19.0, 26.0, 34.0, 44.0, 56.0)  # points
_LEADER_FROM = 15.0  # points; labels farther away get a line to their point
_PADDING = 2.5
_MARKER_RADIUS = 5.0
_LINE_RADIUS = 1.5
# Penalties in points of distance for a label entirely on other labels, or entirely on lines.
_COVERING, _CROSSING = 5000.0, 200.0
_NEARER_TO_ANOTHER = 30.0
"""The same for a label that is nearer to another point than to its own."""

Boxes = NDArray[np.float64]
"""Boxes (left, bottom, right, top) in pixels, ``[n, 4]``."""


class Label(NamedTuple):
    """Text label of a point at ``x`` and ``y``, in data units."""

    text: str
    x: float
    y: float
    colour: str
    weight: str = "normal"


def place_labels(axes: Axes, labels: Sequence[Label], lines: Sequence[style.Line]) -> None:
    """Write each label near its point, the first ones at the best places.

    Limits and scales of the axes must be final. Labels should not cover ``lines`` or the legend.
    """
    pixels = axes.figure.dpi / 72.0  # per point
    frame = np.asarray(axes.get_window_extent().extents)
    centres = axes.transData.transform([(label.x, label.y) for label in labels])
    taken = _squares(centres, _MARKER_RADIUS * pixels)
    if (legend := axes.get_legend()) is not None:
        extent = legend.get_window_extent()
        taken = np.concatenate([taken, np.reshape(extent.extents, (1, 4))])
    along = [_along(axes.transData.transform(line), pixels) for line in lines]
    crossed = _squares(np.concatenate([np.empty((0, 2)), *along]), _LINE_RADIUS * pixels)
    # Candidates: each distance in each direction.
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    distance, angle = (v.ravel() for v in np.meshgrid(_DISTANCES, angles, indexing="ij"))
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    slant = 0.5 * (1 - np.cos(angle - np.pi / 6))  # prefer the upper right
    for number, (label, centre) in enumerate(zip(labels, centres, strict=True)):
        text = axes.annotate(
            style.short_middle(label.text, 2 * style.NAME_LENGTH),
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=style.SMALL_SIZE,
            color=label.colour,
            fontweight=label.weight,
            ha="center",
            va="center",
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        extent = text.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + _PADDING * pixels
        # The distance is that of the box's edge, not of its centre; sides come before corners.
        offset = distance[:, None] * pixels * direction + half * np.clip(1.4 * direction, -1, 1)
        boxes = np.concatenate([centre + offset - half, centre + offset + half], axis=1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        covered = _overlaps(boxes, taken) + area - _overlaps(boxes, frame[None])
        penalty = (_COVERING * covered + _CROSSING * _overlaps(boxes, crossed)) / area
        gaps = _gaps(boxes, centres)
        nearer = gaps.min(axis=1) < gaps[:, number] - 0.5  # a pixel's half
        penalty += _NEARER_TO_ANOTHER * nearer
        best = int((distance + slant + penalty.round(6)).argmin())
        text.set_position(tuple(offset[best] / pixels))
        taken = np.concatenate([taken, boxes[best : best + 1]])
        if distance[best] > _LEADER_FROM:
            nearest = np.clip(centre, boxes[best, :2], boxes[best, 2:])
            ends = axes.transData.inverted().transform(np.stack([centre, nearest]))
            axes.plot(*ends.T, color=label.colour, linewidth=0.6, alpha=0.7, zorder=3)


def _gaps(boxes: Boxes, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each box to each point ``[points, 2]``, ``[boxes, points]``."""
    nearest = np.clip(points[None], boxes[:, None, :2], boxes[:, None, 2:])
    gaps: NDArray[np.float64] = np.linalg.norm(nearest - points[None], axis=2)
    return gaps


def _squares(centres: NDArray[np.float64], radius: float) -> Boxes:
    return np.concatenate([centres - radius, centres + radius], axis=1)


def _along(ends: NDArray[np.float64], pixels: float) -> NDArray[np.float64]:
    """Return points on a polyline ``[n, 2]``, close enough to cover it with squares."""
    pieces = []
    for start, end in itertools.pairwise(ends):
        steps = max(1, math.ceil(math.dist(start, end) / (2 * _LINE_RADIUS * pixels)))
        pieces.append(start + (end - start) * np.linspace(0, 1, steps + 1)[:, None])
    return np.concatenate(pieces)


def _overlaps(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Return the total area ``[n]`` of the intersections of each box with ``second``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    areas: NDArray[np.float64] = np.clip(high - low, 0.0, None).prod(axis=2).sum(axis=1)
    return areas
