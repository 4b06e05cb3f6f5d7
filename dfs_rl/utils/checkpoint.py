"""Tensors in checksummed safetensors files; a checkpoint is one with its JSON state inside it.

One file means one rename: tensors and state can never come from two different moments. Loading
executes no code.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dfs_rl.errors import CheckpointError
from dfs_rl.utils.io import atomic_write, check_not_stream, to_json_value

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

_CHECKSUM = "sha256"
_STATE = "state"


class Checkpoint(NamedTuple):
    """What a training needs to go on.

    Attributes:
        tensors: Weights and optimiser moments by name, on the CPU.
        state: Everything else, as JSON values: counters, best score.
    """

    tensors: dict[str, "Tensor"]
    state: dict[str, object]


class _Stored(NamedTuple):
    tensors: dict[str, "Tensor"]
    metadata: dict[str, str]


def save_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any dtype, device and memory format to a safetensors file, atomically.

    Args:
        path: The file to create or replace.
        tensors: What to write; each name gets values of its own, however they shared memory.
        metadata: Text to keep in the file's header.

    Raises:
        OSError: If the disk is full or may not be written; what was there stays.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    owned = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    header = dict(metadata or {})
    header[_CHECKSUM] = _checksum(owned, header)
    with atomic_write(path) as temporary:
        try:
            save_file(owned, temporary, metadata=header)
        except SafetensorError as error:
            # It is no OSError, and names the system's error in its text alone.
            found = re.search(r"\(os error (\d+)\)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def load_tensors(path: Path, *, ours: bool = True) -> dict[str, "Tensor"]:
    """Read the tensors of a safetensors file to the CPU.

    Args:
        path: The file.
        ours: Whether ``save_tensors`` wrote it; what other writers wrote has no checksum.

    Raises:
        CheckpointError: If the file is missing, unreadable, truncated or altered, is not
            safetensors, or holds NaN.
    """
    return _read(path, ours=ours).tensors


def check_finite(module: "nn.Module", source: Path | str) -> None:
    """Refuse parameters that are not finite; a buffer may hold infinities, such as a mask.

    Raises:
        CheckpointError: If there are any.
    """
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise CheckpointError(f"{source} holds values of {name} that are not finite.")


def shared_names(module: "nn.Module") -> list[list[str]]:
    """Return the names of each tensor that a module's state dict has more than once."""
    import torch

    names: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            names.setdefault(id(value), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def save_checkpoint(
    path: Path, tensors: Mapping[str, "Tensor"], state: Mapping[str, object]
) -> None:
    """Write tensors and JSON state as one file, atomically.

    Raises:
        CheckpointError: If the state holds NaN or infinity, which would not come back from JSON as
            they were.
    """
    try:
        text = json.dumps(state, allow_nan=False, default=to_json_value)
    except ValueError as error:
        raise CheckpointError(
            f"the state for {path} holds a number that is not finite and cannot be restored."
        ) from error
    save_tensors(path, tensors, {_STATE: text})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        CheckpointError: If it is missing, damaged, or a safetensors file without a state.
    """
    stored = _read(path, ours=True)
    if _STATE not in stored.metadata:
        raise CheckpointError(
            f"{path} holds tensors but no training state, so it is no checkpoint."
        )
    try:
        state = json.loads(stored.metadata[_STATE])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its training state is not JSON.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: its training state is not a mapping.")
    return Checkpoint(tensors=stored.tensors, state=state)


def optimizer_tensors(optimizer: "Optimizer", prefix: str) -> dict[str, "Tensor"]:
    """Return what an optimizer keeps as ``prefix.<parameter>.<slot>``; its settings stay out.

    Args:
        optimizer: Any of torch's.
        prefix: First part of the names.
    """
    import torch

    return {
        f"{prefix}.{index}.{slot}": torch.as_tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def restore_optimizer(optimizer: "Optimizer", tensors: Mapping[str, "Tensor"], prefix: str) -> None:
    """Put back what ``optimizer_tensors`` returned; tensors under other prefixes are ignored.

    Raises:
        LookupError: If a tensor belongs to a parameter that the optimizer does not have.
        ValueError: If a name or a shape is not of this optimizer.
    """
    import torch

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for name, value in tensors.items():
        if not name.startswith(f"{prefix}."):
            continue
        index, slot = name.removeprefix(f"{prefix}.").split(".")
        parameter = parameters[int(index)]
        if value.dim() and value.shape != parameter.shape:
            raise ValueError(f"{name} has the shape {list(value.shape)}")
        # A count of steps is one number on the CPU; all else lies in memory as its parameter does.
        like = parameter if value.dim() else value
        kept = torch.empty_like(like, memory_format=torch.preserve_format)
        optimizer.state[parameter][slot] = kept.copy_(value)


def _read(path: Path, *, ours: bool) -> _Stored:
    from safetensors import SafetensorError, safe_open

    try:
        check_not_stream(path)
        path.open("rb").close()  # names the system's errors, which the reader takes for damage
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned: the reader maps the file into memory, and a tensor must outlive changes to it.
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
        raise CheckpointError(f"{path} is damaged or not ours: it has no checksum.")
    if expected is not None and expected != _checksum(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum.")
    for name, tensor in tensors.items():
        small = tensor.is_floating_point() and tensor.dtype.itemsize == 1  # without an operator
        if bool((tensor.float() if small else tensor).isnan().any()):
            raise CheckpointError(f"{path} holds NaN in {name}; nothing can go on from it.")
    return _Stored(tensors=tensors, metadata=metadata)


def _checksum(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    """Hash names, dtypes, shapes, values and metadata of contiguous CPU tensors."""
    import torch

    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
