"""Export of gated networks to ONNX, and of their parts to ``torch.export``."""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.errors import ConfigError, RunFolderError, wrong_type
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.rules import RuleGate
from dfs_rl.runtime.torch_parts import part_files, programs
from dfs_rl.utils.io import read_json, replaced_folder, write_bytes_atomic, write_json
from dfs_rl.utils.run_records import package_version

if TYPE_CHECKING:
    import onnx

Format = Literal["onnx", "onnx-int8", "onnx-static", "torch"]
INDEX = "index.json"
"""File that lists the parts in a folder of the format ``torch``."""
VERSION_KEY = "dfs_rl_version"
"""Name of the version in the metadata, which tells our files from others."""
MAX_BYTES = 2**31
"""Size that a file of protocol buffers stays below."""


def check_extra() -> None:
    """Check that the packages of the extra ``export`` are installed.

    Raises:
        ConfigError: If one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}; install them with: pip install 'dfs-rl[export]'"
        )


def export(model: GatedModel, path: str | Path, *, format: Format = "onnx") -> Path:  # noqa: A002
    """Write a gated network into one ONNX file, or its parts into a folder.

    The graph of the file has an input ``images``, float32 in [0, 1] ``[1, c, h, w]``, and for a
    gate for all budgets a second one, ``preference``, float32 ``[1]`` in [0, 1]. Its outputs are
    ``logits``, ``options`` and ``computation``, see ``Trace``. Each gated layer is a choice between
    branches, which hold their own weights; exits and the further passes of a rule are branches too.
    The passes of a learned gate are a loop. Of several tuned rules the one at the present
    preference is written. Quantized layers have our scales. A static bit table needs no branches
    and takes any batch.

    Args:
        model: The network, see ``load``.
        path: File, or folder of an earlier export, to create or replace.
        format: One of

            - ``"onnx"``: one file, which decides and answers as ``load``.
            - ``"onnx-int8"``: the same, faster below full precision. Convolutions of up to 8 bit
              run on integers and round what they add to the shortcut to 8 bit, in a range of six
              standard deviations of their norm. Rules and static bit tables round and clip the
              shortcut of 8-bit layers too, to the bytes that the layer reads. Logits and some
              decisions differ from ``load``.
            - ``"onnx-static"``: a file without control flow, of a static bit table.
            - ``"torch"``: a folder of programs of ``torch.export``: the stem, each layer at each
              bit width, exits and head, but no gate; ``index.json`` lists them.

    Returns:
        The path.

    Raises:
        ConfigError: If the extra ``export`` is missing, the gate is of a kind that cannot be
            exported, the network has an operator that ONNX lacks or that ``torch.export`` cannot
            trace, the file would be too large, or ``path`` is there and was not exported.
    """
    if not isinstance(model, GatedModel):
        raise wrong_type("model", model, "is a gated network, see dfs_rl.load")
    if format not in get_args(Format):
        raise ConfigError(f"format is {format!r}; allowed are {', '.join(get_args(Format))}.")
    if format == "torch":
        return _write_parts(model, Path(path))
    gate = model.gate
    if not isinstance(gate, LearnedGate | TableGate | RuleGate):
        raise ConfigError(
            f"gate {gate.name!r} is a {type(gate).__name__}; only learned gates, static bit tables "
            "and rules over passes can be exported."
        )
    if isinstance(gate, RuleGate) and model.budget is not None:
        raise ConfigError(
            f"the budget per input is {model.budget:g} %, but an ONNX graph runs the passes of a "
            "rule whatever they cost; set the budget of the model to None."
        )
    if format == "onnx-static" and not isinstance(gate, TableGate):
        raise ConfigError(
            f"format is onnx-static, which has no branches, but gate {gate.name!r} decides for "
            "each image; allowed are static bit tables, see train_static."
        )
    check_extra()
    from dfs_rl.runtime.onnx_file import has_metadata, onnx_model

    if Path(path).exists() and not has_metadata(Path(path), VERSION_KEY):
        raise ConfigError(
            f"{path} exists and is no file of an earlier export; give another path or remove it."
        )
    metadata = {name: json.dumps(value) for name, value in _metadata(model).items()}
    backbone = _inference_form(model.backbone)
    content = onnx_model(model, backbone, int8=format == "onnx-int8", metadata=metadata)
    return _write(content, Path(path))


def _write_parts(model: GatedModel, path: Path) -> Path:
    """Write the programs of all parts, and their index, into a folder."""
    if path.exists() and not _is_exported(path / INDEX):
        raise ConfigError(
            f"{path} exists and is no folder of an earlier export: {INDEX} is missing, or was not "
            "written by dfs_rl; give another path or remove it."
        )
    backbone = _inference_form(model.backbone)
    with replaced_folder(path) as folder:
        for name, content in programs(backbone):
            write_bytes_atomic(folder / name, content)
        write_json(folder / INDEX, _metadata(model) | part_files(backbone))
    return path


def _is_exported(index: Path) -> bool:
    try:
        record = read_json(index)
    except RunFolderError:
        return False
    return isinstance(record, dict) and VERSION_KEY in record


def _write(content: "onnx.ModelProto", path: Path) -> Path:
    """Write a file atomically, unless it is too large for its format."""
    size = content.ByteSize()
    if size >= MAX_BYTES:
        raise ConfigError(
            f"{path} would have {size / 2**30:.1f} GiB; a file in ONNX's format stays below "
            f"{MAX_BYTES / 2**30:g} GiB."
        )
    write_bytes_atomic(path, content.SerializeToString())
    return path


def table_files(
    backbone: GatedBackbone,
    *,
    format: Format = "onnx",  # noqa: A002
) -> Callable[[Sequence[int]], bytes]:
    """Return what writes a network that takes given actions, see ``CostTable``, without a gate.

    The files are those of static bit tables for one image, with the output ``logits`` alone;
    actions may be exits too. Latency profiles measure them.

    Raises:
        ConfigError: If the extra ``export`` is missing, or the network has an operator that ONNX
            lacks.
    """
    check_extra()
    from dfs_rl.runtime.onnx_file import table_models

    make = table_models(_inference_form(backbone), int8=format == "onnx-int8")
    return lambda actions: make(actions).SerializeToString()


def _inference_form(backbone: GatedBackbone) -> GatedBackbone:
    """Return a network in its inference form, in float32."""
    if isinstance(backbone, Backbone):
        backbone = backbone.to_inference()
    dtype = getattr(backbone, "dtype", torch.float32)
    if dtype != torch.float32:
        raise ConfigError(f"the network computes in {dtype}; export needs torch.float32.")
    return backbone


def _metadata(model: GatedModel) -> dict[str, object]:
    """Return what a file tells about itself."""
    backbone = model.backbone
    network = getattr(backbone, "network", backbone)
    statistics = getattr(network, "statistics", None)
    return {
        VERSION_KEY: package_version("dfs-rl"),
        "gate": model.gate.name,
        "classes": list(model.classes),
        "bits": list(backbone.options),
        "image_shape": list(backbone.image_shape),
        "input_range": [0.0, 1.0],
        "mean": None if statistics is None else list(statistics.mean),
        "std": None if statistics is None else list(statistics.std),
        "normalised_inside": True,
        "budget": model.budget,
        "cost": backbone.costs.cost_model,
        "full_precision_ms": None if backbone.costs.profile is None else backbone.costs.total_cost,
        "preference": getattr(model.gate, "preference", None),
    }
