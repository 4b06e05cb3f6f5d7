"""Command ``export``: write a trained gate with its network into a file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from dfs_rl.experiments.config import GateSettings
from dfs_rl.utils.cli import Invocation, run_command
from dfs_rl.utils.config import configuration
from dfs_rl.utils.logging import print_status


@configuration
class ExportConfig(GateSettings):
    """Settings of ``export``.

    Attributes:
        run: Folder of a run that trained a gate.
        out: File or folder to create or replace, by default gate.onnx, or the folder gate-parts.
        format: "onnx" has a branch for each option of each layer; "onnx-static" has no control
            flow, and needs a static bit table; "torch" is a folder with programs of torch.export
            for stem, layers, exits and head, without the gate.
    """

    run: tyro.conf.Positional[Path]
    out: Path | None = None
    format: Literal["onnx", "onnx-static", "torch"] = "onnx"


def run(invocation: Invocation[ExportConfig]) -> None:
    """Export a run."""
    from dfs_rl.gating.model import load
    from dfs_rl.runtime.export import export

    config = invocation.config
    model = load(
        config.run,
        budget=config.budget,
        budget_unit=config.budget_unit,
        max_accuracy_drop=config.max_accuracy_drop,
    )
    out = config.out or Path("gate-parts" if config.format == "torch" else "gate.onnx")
    path = export(model, out, format=config.format)
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    print_status(f"Written to {path}, {size / 2**20:.1f} MiB.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        run,
        ExportConfig,
        prog="python -m dfs_rl.export",
        description="Write a trained gate with its network into one ONNX file, in which each layer "
        "branches to the option that the gate chooses (needs: pip install 'dfs-rl[export]'), or "
        "the network's parts into a folder.",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
