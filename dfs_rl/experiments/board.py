"""TensorBoard of the training of a gate; ``docs/how-to/tensorboard.md`` explains the tags."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.logger import HParam, Image
from torch import Tensor

from dfs_rl.agents.logging import TensorBoard
from dfs_rl.costs import CostTable
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.model import GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.reporting import style
from dfs_rl.reporting.figures import options_plot
from dfs_rl.reporting.images_plot import EXAMPLES, images_plot
from dfs_rl.utils.config import flat_settings
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.yaml_core import read_yaml

_FIGURES = ("accuracy", "computation", "reward", "patterns")
_PLACES = ("run_dir", "device", "threads")
"""Settings that say where a run is, and are no hyperparameters."""
_ROUNDING = 1e-6
"""Rounding tolerance of a preference."""


def validation_scalars(
    record: Mapping[str, Any], records: GateRecords, costs: CostTable
) -> dict[str, Any]:
    """Return the scalars of a validation, by tag.

    The bits of a layer are the mean over images and passes; a skipped layer, and one behind the
    exit of an image, has 0.
    """
    shares = np.asarray(record["histogram"])[:, : len(costs.options)]
    bits = shares @ np.asarray(list(costs.options), dtype=np.float64)
    scalars = {f"val/{name}": record[name] for name in _FIGURES}
    digits = len(str(len(bits)))  # TensorBoard sorts tags as text
    scalars |= {f"bits/layer_{i + 1:0{digits}d}": float(mean) for i, mean in enumerate(bits)}
    if records.earlier is not None:
        scalars["passes/mean"] = records.mean_passes
        percent = 100.0 * records.earlier.ran.double().mean(dim=0)
        scalars |= {f"passes/pass_{i + 2}": float(share) for i, share in enumerate(percent)}
    return scalars


def validation_pictures(
    records: GateRecords,
    images: Tensor,
    costs: CostTable,
    class_names: Sequence[str],
) -> dict[str, Image]:
    """Return the pictures of a validation, by tag: shares of the options, and the first images.

    The images are always the same ones, so that their bits can be followed. A gate for all budgets
    runs each of them at its own preference.
    """
    passes = records.pass_histograms(costs.n_actions).numpy()
    rows = {"Samples of the val split": range(min(EXAMPLES, len(images)))}
    samples = style.to_array(images_plot(rows, records, images, costs, class_names))
    chosen = style.to_array(options_plot(passes, costs.options))
    return {
        "val/options": Image(chosen, "HWC"),
        "val/samples": Image(samples, "HWC"),
    }


def write_hyperparameters(
    run: RunFolder, best: Mapping[str, Any], points: Sequence[tuple[float, float]]
) -> None:
    """Write the settings of a run and the result ``best`` of its gate on val, for the tab HPARAMS.

    Of the points of a gate for all budgets, the one at or just below its own preference counts.
    """
    gate, at = load_gate(run.path / GATE_FOLDER), 0
    if isinstance(gate, LearnedGate | RuleGate) and gate.budget_conditioning is not None:
        measured = gate.budget_conditioning.preferences
        at = bisect.bisect_right(measured, gate.preference + _ROUNDING) - 1
    computation, accuracy = points[at]
    metrics = {"final/val_accuracy": accuracy, "final/val_computation": computation}
    flat = flat_settings(read_yaml(run.config_path))
    settings = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in flat.items()
        if value is not None and name not in _PLACES
    }
    board = TensorBoard(run, purge_step=None)
    try:
        board.scalars({**metrics, "hparams": HParam(settings, metrics)}, best.get("timesteps", 0))
    finally:
        board.close()
