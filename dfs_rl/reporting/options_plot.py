"""Shares of the options that a gate chooses at each layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dfs_rl.costs import BitOptions
from dfs_rl.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more layers, bars are too narrow for numbers.
_NUMBERED_LAYERS = 14
_NUMBERED_SHARE = 0.07
_EVERY_LAYER_TICKED = 20


@style.plain_text()
def options_plot(histogram: Sequence[Sequence[float]], options: BitOptions) -> "Figure":
    """Draw one stacked bar per layer, cheap options at the bottom.

    Args:
        histogram: Fraction of images at each option, ``[layers, options]``, rows summing to 1; with
            exits, a last column has the fraction that has left the network.
        options: Bit options.
    """
    shares = np.asarray(histogram, dtype=np.float64)
    layers = len(shares)
    figure = style.new_figure(max(4.6, min(9.0, 1.9 + 0.52 * layers)), 3.6)
    axes = figure.add_axes(
        (0.55 / figure.get_figwidth(), 0.14, 1 - 1.45 / figure.get_figwidth(), 0.74)
    )
    _stack(axes, shares, options, numbered=layers <= _NUMBERED_LAYERS)
    axes.set_ylabel("images, %")
    axes.set_xlabel("gated layer")
    style.tidy(axes)
    style.title(axes, "Options chosen at each layer")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=style.SMALL_SIZE,
        handlelength=1.1,
        handleheight=1.1,
    )
    return figure


def option_histogram_image(
    histogram: Sequence[Sequence[float]], options: BitOptions
) -> NDArray[np.uint8]:
    """Return ``options_plot`` as uint8 ``[height, width, 3]``, for TensorBoard."""
    return style.to_array(options_plot(histogram, options))


def _stack(
    axes: "Axes", shares: NDArray[np.float64], options: BitOptions, *, numbered: bool
) -> None:
    layers = np.arange(1, len(shares) + 1)
    bottom = np.zeros(len(shares))
    for option, (name, colour) in enumerate(style.action_styles(options, shares.shape[1])):
        height = shares[:, option]
        axes.bar(
            layers,
            100 * height,
            bottom=100 * bottom,
            width=0.82,
            color=colour,
            edgecolor="white",
            linewidth=0.5,
            label=name,
        )
        if numbered:
            for layer, share, base in zip(layers.tolist(), height, bottom, strict=True):
                if share >= _NUMBERED_SHARE:
                    axes.text(
                        layer,
                        100 * (base + share / 2),
                        f"{100 * share:.0f}",
                        ha="center",
                        va="center",
                        fontsize=style.SMALL_SIZE - 1,
                        color=style.text_colour(colour),
                    )
        bottom += height
    axes.set_xlim(0.4, len(shares) + 0.6)
    axes.set_ylim(0, 100)
    if len(shares) <= _EVERY_LAYER_TICKED:
        axes.set_xticks(layers)
