"""Hyperparameter importance plot."""

from typing import TYPE_CHECKING

from dfs_rl.reporting import style
from dfs_rl.sweeping.records import SweepRecord
from dfs_rl.sweeping.report.style import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_WIDTH, _TOP, _BOTTOM, _BAR, _RIGHT, _LETTER = 7.0, 0.5, 0.2, 0.36, 0.6, 0.085
_LETTERS = 30
"""Maximum line length of a name, in characters."""


@style.plain_text()
def importance_plot(record: SweepRecord) -> "Figure":
    """Draw the fraction of the first objective's variance that each setting explains.

    Bars are sorted, the largest on top.

    Args:
        record: A sweep with importances.
    """
    ranked = sorted(record.importance.items(), key=lambda item: item[1])
    names = [wrapped(name, _LETTERS) for name, _ in ranked]
    shares = [100 * share for _, share in ranked]
    longest = max(len(line) for name in names for line in name.split("\n"))
    left = 0.3 + _LETTER * longest
    height = _TOP + _BAR * len(names) + _BOTTOM
    figure = style.new_figure(_WIDTH, height)
    axes = figure.add_axes(
        (
            left / _WIDTH,
            _BOTTOM / height,
            (_WIDTH - left - _RIGHT) / _WIDTH,
            _BAR * len(names) / height,
        )
    )
    bars = axes.barh(range(len(names)), shares, height=0.62, color=style.BLUE)
    axes.bar_label(
        bars,
        [f"{share:.2g} %" for share in shares],
        padding=4,
        fontsize=style.SMALL_SIZE,
        color=style.INK,
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, max(*shares, 1.0) * 1.02)
    axes.set_ylim(-0.6, len(names) - 0.4)
    style.tidy(axes)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    figure.text(
        0.12 / _WIDTH,
        1 - 0.17 / height,
        f"Share of the variation of {record.objective.names[0]} that each setting explains",
        fontsize=style.TITLE_SIZE,
        color=style.INK,
        va="top",
    )
    return figure
