"""HTML page of a sweep."""

import html
from collections.abc import Sequence

from dfs_rl.evaluation.number_format import number_text
from dfs_rl.reporting import html_page
from dfs_rl.reporting.html_page import html_table, image
from dfs_rl.sweeping.records import SweepRecord
from dfs_rl.sweeping.report.figures import SweepFigures
from dfs_rl.sweeping.report.text import best_table, failures, retrained_table, trial_table
from dfs_rl.sweeping.summary import sweep_verdict

_STYLE = """
@media screen and (max-width: 40rem) { .scroll .plot, .scroll > img { width: 40rem; max-width: none; } }
@media print {
  .scroll { overflow-x: visible; }
  table { font-size: .6rem; } th { overflow-wrap: anywhere; }
  th, td, th:first-child, td:first-child { white-space: normal; min-width: 0; padding: .1rem .2rem; }
  img, tr { break-inside: avoid; } h2, h3, p.muted { break-after: avoid; }
  details::details-content { content-visibility: visible; }
}
"""
"""Style rules for narrow screens, where wide figures scroll like tables, and for print."""


def sweep_report(record: SweepRecord, figures: SweepFigures) -> str:
    """Return the whole page.

    Args:
        record: Results of the sweep.
        figures: Figures from ``sweep_figures``.
    """
    about = (
        f"{record.about} {record.objective.about} Computation is what the chosen bits cost in MACs "
        "x (bits / 32)², in percent of running "
        "every gated layer at 32 bit, gate, stem and head included; it is computed, not measured. "
        "All figures are of the val split."
    )
    commands = html.escape("\n".join(record.commands))
    parts = [
        *html_page.opening(record.title, about, sweep_verdict(record)),
        *_pareto_section(record, figures),
        *_best(record),
        *_retrained_section(record),
        *_picture(
            "All settings at once",
            "Each line is a trial, the best ones coloured. Where those agree, the setting matters; "
            "where they spread, it matters little or "
            "hangs on another one.",
            figures.parallel,
        ),
        *_settings(figures),
        *_picture(
            "Which settings matter",
            "An estimate from the trials themselves: with few of them it is rough.",
            figures.importance,
        ),
        *_picture(
            "While the trials trained",
            "Lines that end early were stopped, so that the time went to better ones.",
            figures.progress,
        ),
        *_trials(record),
        html_page.failures(failures(record)),
        "<h2>To go on from here</h2>",
        f"<pre>{commands}</pre>",
        (
            "<details><summary><b>Settings of the "
            f"sweep</b></summary><pre>{html.escape(record.settings)}</pre></details>"
        ),
    ]
    return html_page.page(record.title, parts, _STYLE)


def _section(title: str, about: str, *parts: str) -> list[str]:
    return [f"<h2>{html.escape(title)}</h2>", f'<p class="muted">{html.escape(about)}</p>', *parts]


def _picture(title: str, about: str, png: bytes | None) -> list[str]:
    return [] if png is None else _section(title, about, _wide(image(png, title)))


def _wide(picture: str) -> str:
    return f'<div class="scroll">{picture}</div>'


def _pareto_section(record: SweepRecord, figures: SweepFigures) -> list[str]:
    if figures.pareto_front is None:
        return []
    reference_point = record.reference_point
    about = (
        "Every point of every trial, on val. The area below the envelope counts left of "
        f"{reference_point.computation:g} % computation and above "
        f"{number_text(reference_point.accuracy)} % accuracy. Point at one to read it."
    )
    alt = "Accuracy against computation of all trials"
    plot = html_page.hover_plot(figures.pareto_front, alt, figures.points)
    return _section("Accuracy against computation", about, _wide(plot))


def _best(record: SweepRecord) -> list[str]:
    if not record.best:
        return []
    return _section(
        "Best configurations",
        "A column for each trial, and one for the defaults where they were trained beside them.",
        html_table(*best_table(record)),
    )


def _retrained_section(record: SweepRecord) -> list[str]:
    if not record.retrained:
        return []
    about = (
        "The best of many trials is partly the luckiest one. So they were trained again on seeds "
        "that had no part in choosing them; "
        "± is the standard deviation over these seeds. The last column is seed by seed, positive "
        "where they are better than the defaults."
    )
    return _section("On fresh seeds", about, html_table(*retrained_table(record)))


def _settings(figures: SweepFigures) -> Sequence[str]:
    panels = [
        f"<h3>{html.escape(name)}</h3>{_wide(image(png, f'Each setting against {name}'))}"
        for name, png in figures.settings.items()
    ]
    about = "One point for each trial. Those that were stopped early had less training, so compare like with like."
    return _section("Setting by setting", about, *panels) if panels else []


def _trials(record: SweepRecord) -> list[str]:
    if not record.trials:
        return []
    rows = html_table(*trial_table(record))
    return [
        "<h2>All trials</h2>",
        (
            f"<details><summary><b>{len(record.trials)} trials, the best ones "
            f"first</b></summary>{rows}</details>"
        ),
    ]
