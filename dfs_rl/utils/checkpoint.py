"""Checksummed safetensors files, checkpoints with state in their header, and JSON manifests.

A checkpoint is a single file that a single rename replaces, so its tensors and its state always
belong together. Loading executes no code.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from dfs_rl.errors import CheckpointError, DfsRlError
from dfs_rl.utils.io import (
    check_not_stream,
    read_json,
    to_json_value,
    write_bytes_atomic,
    write_json,
)

_CHECKSUM = "sha256"
_STATE = "state"


class Checkpoint(NamedTuple):
    """State from which a training resumes: tensors by name, on the CPU, and JSON values."""

    tensors: dict[str, Tensor]
    state: dict[str, object]


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any dtype, device and memory format to a safetensors file, atomically.

    Tensors that share memory are stored separately; ``metadata`` is text for the file's header.

    Raises:
        OSError: If the disk is full or not writable; a previous file stays.
    """
    owned = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    header = dict(metadata or {})
    header[_CHECKSUM] = _checksum(owned, header)
    write_bytes_atomic(path, save(owned, metadata=header))


def load_tensors(path: Path, *, ours: bool = True) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file to the CPU; if ``ours``, it must have a checksum.

    Raises:
        CheckpointError: If the file is missing, unreadable, truncated, altered, not safetensors, or
            contains NaN.
    """
    return _read(path, ours=ours)[0]


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
    """Write tensors and JSON state to one file, atomically.

    Raises:
        CheckpointError: If the state contains NaN or infinity, which JSON cannot restore.
    """
    try:
        text = json.dumps(state, allow_nan=False, default=to_json_value)
    except ValueError as error:
        raise CheckpointError(
            f"the state for {path} contains a number that is not finite and cannot be restored."
        ) from error
    save_tensors(path, tensors, {_STATE: text})


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint that ``save_checkpoint`` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, or has no training state.
    """
    tensors, metadata = _read(path, ours=True)
    if _STATE not in metadata:
        raise CheckpointError(
            f"{path} contains tensors but no training state, so it is no checkpoint."
        )
    return Checkpoint(tensors, json.loads(metadata[_STATE]))  # as it was stored: it has a checksum


def check_finite(module: nn.Module, source: Path | str) -> None:
    """Raise CheckpointError for a parameter, not a buffer such as a mask, that is not finite."""
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise CheckpointError(f"{source} contains values of {name} that are not finite.")


def shared_names(module: nn.Module) -> list[list[str]]:
    """Return the groups of names in a state dict that refer to the same tensor."""
    names: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            names.setdefault(id(value), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a module's state as tensors named ``prefix.<name>``."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Restore a module's state from ``module_tensors``; names with other prefixes are ignored."""
    module.load_state_dict(_without_prefix(tensors, prefix))
    check_finite(module, "the checkpoint")


def optimizer_tensors(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return an optimizer's state, without hyperparameters, as ``prefix.<parameter>.<slot>``."""
    return {
        f"{prefix}.{index}.{slot}": torch.as_tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Restore an optimizer's state from ``optimizer_tensors``, ignoring other prefixes.

    Raises:
        LookupError: If a tensor belongs to a parameter that the optimizer does not have.
        ValueError: If a name or a shape does not fit the optimizer.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for name, value in _without_prefix(tensors, prefix).items():
        index, slot = name.split(".")
        parameter = parameters[int(index)]
        if value.dim() and value.shape != parameter.shape:
            raise ValueError(f"{prefix}.{name} has the shape {list(value.shape)}")
        # Step counts are scalars on the CPU; other slots have their parameter's memory layout.
        like = parameter if value.dim() else value
        kept = torch.empty_like(like, memory_format=torch.preserve_format)
        optimizer.state[parameter][slot] = kept.copy_(value)


def write_manifest(path: Path, *, kind: str, version: int, parts: Mapping[str, object]) -> None:
    """Describe a stored model in a JSON file: ``parts``, after its format and kind."""
    write_json(path, {"format": version, "kind": kind, **parts})


def read_manifest(
    path: Path, *, what: str, kinds: Sequence[str], version: int
) -> dict[str, object]:
    """Read a manifest of a ``what``, such as a "gate", and check its kind and format.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind or format.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is not a folder, so it holds no {what}.")
    try:
        record = read_json(path)
    except DfsRlError as error:
        raise CheckpointError(f"no {what} can be read from {path.parent}: {error}") from error
    if not (
        isinstance(record, dict) and record.get("kind") in kinds and record.get("format") == version
    ):
        allowed = " or ".join(repr(kind) for kind in kinds)
        raise CheckpointError(
            f"{path} does not describe a {what} of kind {allowed} in format {version}."
        )
    return record


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _read(path: Path, *, ours: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a file after checking both."""
    try:
        check_not_stream(path)
        path.open("rb").close()  # raises OSError, which the reader reports as damage
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned, since the reader maps the file into memory and the file may change later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} does not exist or is not a file.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file: {str(error).rstrip('.')}."
        ) from error
    expected = metadata.pop(_CHECKSUM, None)
    if expected is None and ours:
        raise CheckpointError(
            f"{path} is damaged, or was not written by dfs_rl: it has no checksum."
        )
    if expected is not None and expected != _checksum(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum.")
    for name, tensor in tensors.items():
        # float8 has no isnan operator
        small = tensor.is_floating_point() and tensor.dtype.itemsize == 1
        if bool((tensor.float() if small else tensor).isnan().any()):
            raise CheckpointError(
                f"{path} contains NaN in {name}, from which nothing can continue."
            )
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of metadata and of names, dtypes, shapes and values of CPU tensors."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
