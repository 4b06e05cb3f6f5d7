"""Settings of ``export`` and ``profile``; imports no torch, to keep their help pages quick."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from dfs_rl.costs.latency_profile import Runtime
from dfs_rl.experiments.config import GateSettings
from dfs_rl.utils.config import PositiveInt, configuration


@configuration
class ExportConfig(GateSettings):
    """Settings of ``export``.

    Attributes:
        run: Folder of a run that trained a gate.
        out: File or folder to create or replace, by default gate.onnx, or the folder gate-parts.
        format: "onnx" has a branch for each option of each layer; "onnx-int8" too, and is faster,
            but rounds what quantized layers add to the shortcut to 8 bit; "onnx-static" has no
            control flow, and needs a static bit table; "torch" is a folder with programs of
            torch.export for stem, layers, exits and head, without the gate.
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
    RUN: ClassVar = "dfs_rl.experiments.deployment:run_export"

    run: tyro.conf.Positional[Path]
    out: Path | None = None
    format: Literal["onnx", "onnx-int8", "onnx-static", "torch"] = "onnx"


@configuration
class ProfileConfig:
    """Settings of ``profile``.

    Attributes:
        source: Run of train_backbone or train_exits, a folder with a backbone, or the run of a
            gate; by default the included digits network. Its learned gate is measured with it, or
            if it has none, the gate that train_agent makes by default.
        out: File to create; an earlier profile of the same network, machine, runtime and threads is
            replaced.
        runtime: "torch" runs the network as dfs_rl.load does, the others as export writes it.
        batch_sizes: Images per call, all at the same options. Training for the cost latency takes
            the times of the smallest, unless told otherwise.
        threads: Number of CPU threads.
        device: "cpu", "cuda", ...
        calls: Calls of each option at each layer, on average; deep networks need more and get them.
    """

    KIND: ClassVar = "profile"
    DESCRIPTION: ClassVar = """\
Measure the time of each part of a network on this machine: stem, gated layers at every bit
option, exits, head and gate. Training takes the file by --cost latency --latency.profile FILE.

Examples:
  python -m dfs_rl.profile
  python -m dfs_rl.profile runs/net --runtime onnx --out onnx.json
  python -m dfs_rl.profile runs/gate --batch-sizes 1 32 --threads 2"""
    RUN: ClassVar = "dfs_rl.experiments.deployment:run_profile"

    source: Annotated[tyro.conf.Positional[Path | None], tyro.conf.DisallowNone] = None
    out: Path = Path("profile.json")
    runtime: Runtime = "torch"
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 64)
    threads: PositiveInt = 1
    device: str = "cpu"
    calls: Annotated[int, Field(ge=20, le=100_000)] = 60
