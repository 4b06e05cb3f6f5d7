"""Repositories on the Hugging Face hub: addresses, downloads and errors of its library."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.errors import ConfigError, HubError

SCHEME = "hf://"
"""Start of the address of a repository, ``hf://user/name`` or ``hf://user/name@revision``."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_ERROR_LENGTH = 200  # characters; the library's texts have several lines


def download(address: str, patterns: Sequence[str]) -> Path:
    """Return the folder with the files of a repository that match ``patterns``.

    The library keeps them in its cache, which also serves without a network.

    Raises:
        ConfigError: If the address is malformed.
        HubError: If the repository cannot be read.
    """
    from huggingface_hub import snapshot_download  # a slow import

    name, at, revision = address.removeprefix(SCHEME).partition("@")
    check_repository_name(name)
    if at and not revision:
        raise ConfigError(f"{address} has no revision after '@'; allowed is {SCHEME}user/name@v1.")
    with hub_errors(name):
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=list(patterns))
        )


def check_repository_name(name: str) -> None:
    """Raise ConfigError if a name does not have the form ``user/name``."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} names no repository on the hub; allowed is user/name.")


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn errors of the hub's library about the repository ``name`` into a HubError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no repository {name}, or does not show it to you: log in with "
            "'hf auth login', or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"repository {name} on the hub has no such revision.") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"repository {name} cannot be downloaded (no network, or HF_HUB_OFFLINE is set), and "
            "is not in the local cache."
        ) from error
    except Exception as error:  # the hub's HTTP library has changed its error classes twice
        said = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_ERROR_LENGTH]
        raise HubError(f"repository {name} on the hub cannot be used ({said}).") from error
