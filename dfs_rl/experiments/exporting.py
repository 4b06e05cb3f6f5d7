"""Work of the command ``export``."""

from pathlib import Path

from dfs_rl.experiments.deployment_config import ExportConfig
from dfs_rl.gating.model import load
from dfs_rl.runtime.export import export
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.logging import print_status


def run(invocation: Invocation[ExportConfig]) -> None:
    """Export a run."""
    config = invocation.config
    model = load(
        config.run,
        budget=config.budget,
        budget_unit=config.budget_unit,
        max_accuracy_drop=config.max_accuracy_drop,
    )
    if config.budget is not None:
        model.check_budget(config.budget, config.budget_unit)
    out = config.out or Path("gate-parts" if config.format == "torch" else "gate.onnx")
    path = export(model, out, format=config.format)
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    print_status(f"Written to {path}, {size / 2**20:.1f} MiB.")
