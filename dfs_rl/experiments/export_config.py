"""Settings of ``export``; imports no torch, to keep its help page quick."""

from pathlib import Path
from typing import ClassVar, Literal

import tyro

from dfs_rl.experiments.config import GateSettings
from dfs_rl.utils.config import configuration


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

    KIND: ClassVar = "export"
    DESCRIPTION: ClassVar = """\
Write a trained gate with its network into one ONNX file, in which each layer branches to the
option that the gate chooses (needs: pip install 'dfs-rl[export]'), or the network's parts into a
folder.

Examples:
  python -m dfs_rl.export runs/gate
  python -m dfs_rl.export runs/gate --budget 0.8 --out gate.onnx
  python -m dfs_rl.export runs/table --format onnx-static"""
    RUN: ClassVar = "dfs_rl.experiments.exporting:run"

    run: tyro.conf.Positional[Path]
    out: Path | None = None
    format: Literal["onnx", "onnx-static", "torch"] = "onnx"
