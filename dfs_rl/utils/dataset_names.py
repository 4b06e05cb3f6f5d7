"""Names, folders and hub ids of data sets; imports no torch, to find a missing folder quickly."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfs_rl.errors import DataError, wrong_type
from dfs_rl.utils.constants import DIGITS, MNIST5K
from dfs_rl.utils.registry import Registry

DATASETS: Registry[Callable[[], Any]] = Registry(
    "data set", {MNIST5K: "dfs_rl.data.load:load_mnist5k"}
)
"""Loaders of registered data sets."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_FORMS = (
    f"{DIGITS!r}, {MNIST5K!r}, a folder with train*.parquet, a folder of class folders with "
    "images, or a hub id such as 'uoft-cs/cifar10'"
)


def dataset_name(spec: str | Path) -> str:
    """Return the name or path of a data set as text.

    Raises:
        ConfigError: If it is of another type.
    """
    if not isinstance(spec, str | Path):
        raise wrong_type("data set", spec, f"are {_FORMS}")
    return str(spec)


def dataset_folder(spec: str) -> Path | None:
    """Return the folder of a data set; ``None`` for a registered name or a hub id.

    Raises:
        DataError: If it is neither, and no folder is there.
    """
    if spec == DIGITS or spec in DATASETS:
        return None
    try:
        folder = Path(spec).expanduser()
        if spec and folder.is_dir():  # Path("") is the current folder
            return folder
        exists = spec and folder.exists()
    except RuntimeError as error:  # ``~name`` of an unknown user
        raise DataError(
            f"data set {spec!r} has no such home folder; allowed are {_FORMS}."
        ) from error
    if not exists and _HUB_ID.fullmatch(spec):
        return None
    fault = "is a file" if exists else "does not exist"
    raise DataError(f"data set {spec!r} {fault}; allowed are {_FORMS}.")
