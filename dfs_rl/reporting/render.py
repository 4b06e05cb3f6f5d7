"""HTML reports from Jinja2 templates.

Each report extends ``base.html`` and imports ``table`` and ``picture`` from ``macros.html``.
"""

import base64
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes

_ENVIRONMENT = Environment(
    loader=PackageLoader("dfs_rl.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["base64"] = lambda png: base64.b64encode(png).decode()
HoverPoint = tuple[str, float, float]
"""Tooltip of a point, and its distances from the left and the upper edge as fractions of both."""


def render(template: str, **values: object) -> str:
    """Return a report as one HTML file, from a template in ``dfs_rl/reporting/templates``.

    Text among the values is escaped; figures are PNG files as bytes.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def hover_point(axes: Axes, x: float, y: float, text: str) -> HoverPoint:
    """Return the tooltip of the point at ``x`` and ``y``, in data units.

    Limits and scales of the axes must be final.
    """
    at = axes.transData.transform((x, y))
    left, bottom = axes.figure.transFigure.inverted().transform(at)
    return text, float(left), 1.0 - float(bottom)


class Picture(NamedTuple):
    """Figure of a report as PNG."""

    png: bytes
    alt: str  # alternative text: what the figure shows, with its numbers
    points: Sequence[HoverPoint] = ()  # tooltips; the last ones are on top
