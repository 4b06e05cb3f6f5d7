"""Run folders and the crash-safe files in them; importing this package does not import torch."""

from dfs_rl.files import (
    read_json,
    remove_stale_temporaries,
    to_json_value,
    write_bytes_atomic,
    write_json,
)
from dfs_rl.runs.descriptions import read_description, write_description
from dfs_rl.runs.folder import LAST_CHECKPOINT, RunFolder
from dfs_rl.runs.records import parse_record, read_record
from dfs_rl.runs.tensors import (
    Checkpoint,
    check_finite,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    shared_names,
)

__all__ = [
    "LAST_CHECKPOINT",
    "Checkpoint",
    "RunFolder",
    "check_finite",
    "load_checkpoint",
    "load_tensors",
    "parse_record",
    "read_description",
    "read_json",
    "read_record",
    "remove_stale_temporaries",
    "save_checkpoint",
    "save_tensors",
    "shared_names",
    "to_json_value",
    "write_bytes_atomic",
    "write_description",
    "write_json",
]
