"""Where points are in a picture, for a page that tells more where one points at them."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HoverPoint(NamedTuple):
    """Where a point is in the picture.

    Attributes:
        text: What there is to say about it.
        left: From the left edge, as a fraction of the width.
        top: From the upper edge, as a fraction of the height.
    """

    text: str
    left: float
    top: float


def hover_point(axes: "Axes", x: float, y: float, text: str) -> HoverPoint:
    """Return where the picture shows ``x`` and ``y``, in data units; limits and scales of the axes must be final."""
    at = axes.transData.transform((x, y))
    left, bottom = axes.figure.transFigure.inverted().transform(at)
    return HoverPoint(text, float(left), 1.0 - float(bottom))
