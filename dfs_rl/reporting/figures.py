"""Figure files of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.summary import EvaluationSummary
from dfs_rl.reporting import style
from dfs_rl.reporting.accuracy_plot import accuracy_plot
from dfs_rl.reporting.images_plot import ImageExample, images_plot
from dfs_rl.reporting.options_plot import options_plot
from dfs_rl.utils.io import write_bytes_atomic

EXAMPLES = 8


def cheapest_and_dearest(
    records: GateRecords,
    images: Tensor,
    costs: CostTable,
    class_names: Sequence[str],
    *,
    count: int = EXAMPLES,
) -> tuple[list[ImageExample], list[ImageExample]]:
    """Return the ``count`` cheapest and most expensive images, the most extreme first.

    Equal costs keep the order of the split.

    Args:
        records: Results of a gate.
        images: Images of these results, uint8 ``[n, c, h, w]``.
        costs: Costs of the options.
        class_names: Names in label order.
        count: Maximum number of images in each list.
    """
    computation = records.computation(costs)

    def example(index: int) -> ImageExample:
        return ImageExample(
            image=images[index].cpu().numpy(),
            options=tuple(records.options[index].tolist()),
            prediction=class_names[int(records.predictions[index])],
            label=class_names[int(records.labels[index])],
            computation=float(computation[index]),
        )

    cheapest = computation.argsort(stable=True)[:count].tolist()
    dearest = computation.argsort(stable=True, descending=True)[:count].tolist()
    return [example(i) for i in cheapest], [example(i) for i in dearest]


def write_figures(
    folder: Path,
    prefix: str,
    summary: EvaluationSummary,
    examples: tuple[Sequence[ImageExample], Sequence[ImageExample]] | None,
) -> list[Path]:
    """Write ``accuracy.png`` and, for a gate, ``options.png`` and ``images.png``, atomically.

    Args:
        folder: Target folder; created if missing.
        prefix: Prefix of each file name.
        summary: Summary of the evaluation.
        examples: Cheapest and most expensive images, None without a gate.

    Returns:
        Paths of the files.
    """
    bit_options = BitOptions(summary.options)
    figures = {"accuracy": accuracy_plot(summary)}
    if summary.histogram:
        figures["options"] = options_plot(summary.histogram, bit_options)
    if examples is not None:
        figures["images"] = images_plot(*examples, bit_options)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{prefix}{name}.png"
        write_bytes_atomic(path, style.to_png(figure))
        paths.append(path)
    return paths
