"""A comparison as one HTML file that opens anywhere, offline: nothing in it is fetched from elsewhere."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.reporting.comparison_pictures import ComparisonPictures
from dfs_rl.reporting.comparison_text import (
    HEAD,
    TRAINING_HEAD,
    curve_table,
    row_groups,
    training_rows,
)

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
.plot { position: relative; }
.plot img { display: block; }
.plot span { position: absolute; width: 18px; height: 18px; margin: -9px 0 0 -9px; border-radius: 50%; }
.plot span:hover { box-shadow: 0 0 0 2px #222; }
.plot span::after { content: attr(data-told); display: none; position: absolute; left: 14px; top: 14px; z-index: 1; width: max-content;
  max-width: 15rem; padding: .2rem .5rem; border-radius: 4px; font-size: .8rem; color: #fff; background: #222; pointer-events: none; }
.plot span.right::after { left: auto; right: 14px; }
.plot span:hover::after { display: block; }
@media print { details { display: block; } details > * { display: block; } }
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
    comparison: ComparisonOfRuns, pictures: ComparisonPictures, sections: Sequence[GateSection]
) -> str:
    """Return the whole page.

    Args:
        comparison: All figures.
        pictures: Those of all gates.
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
        _frontier(pictures),
        "<h2>All methods</h2>",
        _table(HEAD, row_groups(comparison)),
        _curves(comparison),
        *(_mix(label, png) for label, png in pictures.mixes.items()),
        _pairs(comparison),
        "<h2>Easy and hard images</h2>",
        '<p class="muted">A gate that does not look at its images stays level at 1.</p>',
        _image(pictures.spending, "What every gate spends on images of each difficulty"),
        "<h2>What training took</h2>",
        _table(TRAINING_HEAD, [training_rows(comparison)]),
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


def _frontier(pictures: ComparisonPictures) -> str:
    middle = 0.5
    spots = "".join(
        f'<span{" class=right" if point.left > middle else ""} data-told="{html.escape(point.text)}" '
        f'style="left:{100 * point.left:.2f}%;top:{100 * point.top:.2f}%"></span>'
        for point in pictures.points
    )
    image = _image(pictures.frontier, "Accuracy against computation of every gate and its rivals")
    return f'<div class="plot">{image}{spots}</div>'


def _mix(label: str, png: bytes) -> str:
    return f"<h3>{html.escape(label)}: options as the budget grows</h3>{_image(png, f'Options of {label}')}"


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
        "The area that each dominates, accuracy over the logarithm of computation, above an accuracy of "
        f"{comparison.worst_accuracy:.2f} % and left of {comparison.worst_computation:.4g} % computation, both held fixed; what is "
        "dearer adds nothing. And the accuracy at fixed computations, interpolated. ± is the standard deviation over seeds, in brackets "
        "is where the mean would lie with other test images, in 95 of 100 cases."
    )
    return f'<h2>Curves</h2><p class="muted">{about}</p>{_table(*curve_table(comparison))}'


def _pairs(comparison: ComparisonOfRuns) -> str:
    areas = "".join(
        f"<li>{html.escape(p.first)} minus {html.escape(p.second)}: {p.difference:+.3f}, 95 % interval over images "
        f"[{p.interval.low:+.3f}, {p.interval.high:+.3f}]"
        + (f", over seeds {p.spread.mean:+.3f} ± {p.spread.deviation:.3f}" if p.spread else "")
        + "</li>"
        for p in comparison.curve_pairs
    )
    return (f"<h2>Areas compared</h2><ul>{areas}</ul>" if areas else "") + _point_pairs(comparison)


def _point_pairs(comparison: ComparisonOfRuns) -> str:
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
