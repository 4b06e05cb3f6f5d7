"""Frame and components of an HTML report.

A report is one file that opens offline and loads nothing from elsewhere.
"""

import base64
import html
from collections.abc import Mapping, Sequence

from dfs_rl.reporting.hover import HoverPoint

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --muted: #6b6b6b; --faint: #ddd; --paper: #fff; --raised: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --muted: #a0a0a0; --faint: #444; --paper: #16181a; --raised: #202326; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 74rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.verdict { background: var(--raised); border-left: 4px solid #d55e00; padding: .5rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .3rem .45rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 10rem; }
tbody + tbody { border-top: 2px solid var(--muted); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; background: var(--raised); padding: .6rem; font-size: .85rem; }
.plot { position: relative; }
.plot img { display: block; }
.plot span { position: absolute; width: 18px; height: 18px; margin: -9px 0 0 -9px; border-radius: 50%; }
.plot span:hover { box-shadow: 0 0 0 2px #222; }
.plot span::after { content: attr(data-tooltip); display: none; position: absolute; left: 14px; top: 14px; z-index: 1; width: max-content;
  max-width: 15rem; padding: .2rem .5rem; border-radius: 4px; font-size: .8rem; color: #fff; background: #222; pointer-events: none; }
.plot span.right::after { left: auto; right: 14px; }
.plot span:hover::after { display: block; }
@media print {
  details::details-content { content-visibility: visible; }
  .scroll { overflow: visible; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: .7rem; } th, td { white-space: normal; padding: .15rem .25rem; }
  th:first-child, td:first-child { min-width: 0; }
  tr, img { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
.muted { color: var(--muted); font-size: .9rem; }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy that prevents all requests of the page."""


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """Return the whole page.

    Args:
        title: Title as text.
        parts: Content as HTML.
        style: Additional style rules of this page.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def opening(title: str, about: str, verdict: Sequence[str]) -> list[str]:
    """Return the start of a report: title, description, and one paragraph per verdict sentence."""
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdict)
    return [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="muted">{html.escape(about)}</p>',
        f'<div class="verdict">{said}</div>',
    ]


def image(png: bytes, alt: str) -> str:
    """Return an image element; ``alt`` is its alternative text."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def hover_plot(png: bytes, alt: str, points: Sequence[HoverPoint]) -> str:
    """Return a figure with hover tooltips; the last of ``points`` are on top."""
    middle = 0.5
    spots = "".join(
        f'<span{" class=right" if point.left > middle else ""} data-tooltip="{html.escape(point.text)}" '
        f'style="left:{100 * point.left:.2f}%;top:{100 * point.top:.2f}%"></span>'
        for point in points
    )
    return f'<div class="plot">{image(png, alt)}{spots}</div>'


def html_table(names: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> str:
    """Return a table with a head and a body for each group of rows; cells are text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    bodies = "".join(
        "<tbody>"
        + "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in group
        )
        + "</tbody>"
        for group in groups
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{bodies}</table></div>'


def failures(failed: Mapping[str, str]) -> str:
    """Return the list of failures and their reasons, empty without failures."""
    if not failed:
        return ""
    rows = "".join(
        f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in failed.items()
    )
    return f"<h2>Failed</h2><ul>{rows}</ul>"
