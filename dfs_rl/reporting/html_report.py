"""A comparison as one HTML file that opens anywhere, offline: nothing in it is fetched from elsewhere."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.reporting.comparison_text import HEAD, curve_table, row_groups

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --muted: #6b6b6b; --faint: #ddd; --paper: #fff; --raised: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --muted: #a0a0a0; --faint: #444; --paper: #16181a; --raised: #202326; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.verdict { background: var(--raised); border-left: 4px solid #d55e00; padding: .5rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 10rem; }
tbody + tbody { border-top: 2px solid var(--muted); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; background: var(--raised); padding: .6rem; font-size: .85rem; }
.muted { color: var(--muted); font-size: .9rem; }
"""


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser that honours it fetches nothing, whatever the page says."""


class GateSection(NamedTuple):
    """What a report tells of one gate.

    Attributes:
        label: Its name in the table.
        pictures: PNG files by what they show.
        commands: The command lines that made its runs.
        settings: Its configuration as YAML.
    """

    label: str
    pictures: Mapping[str, bytes]
    commands: Sequence[str]
    settings: str


def html_report(
    comparison: ComparisonOfRuns, frontier: bytes, sections: Sequence[GateSection]
) -> str:
    """Return the whole page.

    Args:
        comparison: All figures.
        frontier: The frontier as PNG.
        sections: One for each gate.
    """
    title = f"Which gate to ship: {comparison.dataset}"
    about = (
        f"{comparison.split} split, {comparison.n:,} images, options {', '.join(map(str, comparison.options))} bit. "
        "Computation is what the chosen bits cost in MACs x (bits / 32)², in percent of running every gated layer at 32 bit, "
        "gate, stem and head included; it is computed, not measured. ± is the standard deviation over seeds."
    )
    verdict = "".join(f"<p>{html.escape(said)}</p>" for said in comparison.verdict)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="muted">{html.escape(about)}</p>',
        f'<div class="verdict">{verdict}</div>',
        "<h2>Accuracy against computation</h2>",
        _image(frontier, "Accuracy against computation of every gate and its rivals"),
        "<h2>All methods</h2>",
        _table(HEAD, row_groups(comparison)),
        _curves(comparison),
        _pairs(comparison),
        _failures(comparison),
        "<h2>Gate by gate</h2>",
        *(_section(section) for section in sections),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _table(names: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> str:
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


def _curves(comparison: ComparisonOfRuns) -> str:
    if not comparison.curves:
        return ""
    about = (
        "The area that each dominates, accuracy over the logarithm of computation, above the cheapest uniform setting; "
        "and the accuracy at fixed computations, interpolated."
    )
    return f'<h2>Curves</h2><p class="muted">{about}</p>{_table(*curve_table(comparison))}'


def _pairs(comparison: ComparisonOfRuns) -> str:
    if not comparison.pairs:
        return ""
    rows = "".join(
        f"<li>{html.escape(p.first)} minus {html.escape(p.second)}: {p.difference:+.2f} points, 95 % interval over images "
        f"[{p.low:+.2f}, {p.high:+.2f}]</li>"
        for p in comparison.pairs
    )
    return f"<h2>Gates at about the same cost</h2><ul>{rows}</ul>"


def _failures(comparison: ComparisonOfRuns) -> str:
    if not comparison.failed:
        return ""
    rows = "".join(
        f"<li>{html.escape(path)}: {html.escape(reason)}</li>"
        for path, reason in comparison.failed.items()
    )
    return f"<h2>Failed</h2><ul>{rows}</ul>"


def _section(section: GateSection) -> str:
    pictures = "".join(
        f"<h3>{html.escape(what)}</h3>{_image(png, what)}" for what, png in section.pictures.items()
    )
    commands = html.escape("\n".join(section.commands))
    return (
        f"<details><summary><b>{html.escape(section.label)}</b></summary>{pictures}"
        f"<h3>To reproduce it</h3><pre>{commands}</pre><h3>Settings of the first run</h3>"
        f"<pre>{html.escape(section.settings)}</pre></details>"
    )
