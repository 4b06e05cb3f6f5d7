"""Positions of points in a figure, for hover tooltips."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HoverPoint(NamedTuple):
    """Tooltip of a point in a figure.

    Attributes:
        text: Text of the tooltip.
        left: Distance from the left edge, as a fraction of the width.
        top: Distance from the upper edge, as a fraction of the height.
    """

    text: str
    left: float
    top: float


def hover_point(axes: "Axes", x: float, y: float, text: str) -> HoverPoint:
    """Return the tooltip of the point at ``x`` and ``y``, in data units.

    Limits and scales of the axes must be final.
    """
    at = axes.transData.transform((x, y))
    left, bottom = axes.figure.transFigure.inverted().transform(at)
    return HoverPoint(text, float(left), 1.0 - float(bottom))
