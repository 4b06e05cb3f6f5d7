"""HTML page of a comparison."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.reporting import html_page
from dfs_rl.reporting.comparison_figures import ComparisonFigures
from dfs_rl.reporting.comparison_tables import (
    ABOUT_BUDGETS,
    TRAINING_HEAD,
    budget_table,
    curve_table,
    points_table,
    training_rows,
)
from dfs_rl.reporting.html_page import html_table, image


class GateSection(NamedTuple):
    """Section of a report about one gate.

    Attributes:
        label: Name in the table.
        figures: PNG files by their titles.
        commands: Command lines of its runs.
        settings: Configuration as YAML.
    """

    label: str
    figures: Mapping[str, bytes]
    commands: Sequence[str]
    settings: str


def html_report(
    comparison: ComparisonOfRuns, figures: ComparisonFigures, sections: Sequence[GateSection]
) -> str:
    """Return the whole page.

    Args:
        comparison: Results of the comparison.
        figures: Figures of all gates.
        sections: One section per gate.
    """
    title = f"Which gate to ship: {comparison.dataset}"
    about = (
        f"{comparison.split} split, {comparison.n:,} images, options "
        f"{', '.join(map(str, comparison.options))} bit. "
        "Computation is what the chosen bits cost in MACs x (bits / 32)², in percent of running "
        "every gated layer at 32 bit, "
        "gate, stem and head included; it is computed, not measured. ± is the standard deviation "
        "over seeds."
    )
    parts = [
        *html_page.opening(title, about, comparison.verdict),
        _budgets(comparison),
        "<h2>Accuracy against computation</h2>",
        html_page.hover_plot(
            figures.pareto_front,
            "Accuracy against computation of every gate and its baselines",
            figures.points,
        ),
        _differences(comparison),
        "<h2>All methods</h2>",
        html_table(*points_table(comparison)),
        '<p class="muted">points.csv has the baselines at the cost of every single gate as well.</p>'
        if comparison.budgets
        else "",
        _curves(comparison),
        *(_mix(label, png) for label, png in figures.bit_mixes.items()),
        _pairs(comparison),
        "<h2>Easy and hard images</h2>",
        '<p class="muted">A gate that does not look at its images stays level at 1.</p>',
        image(
            figures.computation_by_difficulty, "What every gate spends on images of each difficulty"
        ),
        "<h2>What training took</h2>",
        html_table(TRAINING_HEAD, [training_rows(comparison)]),
        html_page.failures(comparison.failed),
        "<h2>Gate by gate</h2>",
        *(_section(section) for section in sections),
    ]
    return html_page.page(title, parts)


def _budgets(comparison: ComparisonOfRuns) -> str:
    if not comparison.budgets:
        return ""
    about = f'<p class="muted">{html.escape(ABOUT_BUDGETS)}</p>'
    return f"<h2>Budget by budget</h2>{about}{html_table(*budget_table(comparison))}"


def _differences(comparison: ComparisonOfRuns) -> str:
    if not comparison.differences:
        return ""
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in comparison.differences)
    return f"<h2>Which differences hold</h2>{said}"


def _mix(label: str, png: bytes) -> str:
    return f"<h3>{html.escape(label)}: options as the budget grows</h3>{image(png, f'Options of {label}')}"


def _curves(comparison: ComparisonOfRuns) -> str:
    if not comparison.curves:
        return ""
    about = (
        "The area that each dominates, accuracy over the logarithm of computation, above an "
        "accuracy of "
        f"{comparison.reference_accuracy:.2f} % and left of {comparison.reference_computation:.4g} "
        "% computation, both held fixed; what is "
        "dearer adds nothing. And the accuracy at fixed computations, interpolated. ± is the "
        "standard deviation over seeds, in brackets "
        "is where the mean would lie with other test images, in 95 of 100 cases."
    )
    return f'<h2>Curves</h2><p class="muted">{about}</p>{html_table(*curve_table(comparison))}'


def _pairs(comparison: ComparisonOfRuns) -> str:
    areas = "".join(
        f"<li>{html.escape(p.first)} minus {html.escape(p.second)}: {p.difference:+.3f}, 95 % "
        "interval over images "
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
        f"<li>{html.escape(p.first)} minus {html.escape(p.second)}: {p.difference:+.2f} points, 95 "
        "% interval over images "
        f"[{p.low:+.2f}, {p.high:+.2f}]</li>"
        for p in comparison.pairs
    )
    return f"<h2>Gates at about the same cost</h2><ul>{rows}</ul>"


def _section(section: GateSection) -> str:
    figures = "".join(
        f"<h3>{html.escape(what)}</h3>{image(png, what)}" for what, png in section.figures.items()
    )
    commands = html.escape("\n".join(section.commands))
    return (
        f"<details><summary><b>{html.escape(section.label)}</b></summary>{figures}"
        f"<h3>To reproduce it</h3><pre>{commands}</pre><h3>Settings of the first run</h3>"
        f"<pre>{html.escape(section.settings)}</pre></details>"
    )
