"""Start of Ray without dashboard, usage statistics or worker output on the terminal."""

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dfs_rl.errors import ConfigError, TrainingError

# Ray reads these variables once, at its first import or start.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # matches all output of the workers and of Ray's processes
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # delay until the end of a training is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keeps relative paths valid in the workers
}
# Settings of a Ray instance that starts here. The first one binds it to loopback, which is Ray's
# default on Windows and macOS only. On Linux, Ray listens on every interface by default and ignores
# ``_node_ip_address="127.0.0.1"``.
_LOCALHOST_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_TOKEN = secrets.token_hex(32)  # one per process: Ray keeps the first token it reads
_MIN_STORE_BYTES = 2**27
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_CONNECT_TIMEOUT = 5.0  # seconds


@contextmanager
def start_ray(
    *,
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    store_bytes: int = 0,
) -> Iterator[None]:
    """Connect to Ray for the duration of the block, unless the process is already connected.

    A Ray instance that starts here listens on loopback only, requires a token of every connection,
    and keeps its files in a temporary folder that no other user can enter.

    Args:
        address: Running cluster, ``host:port`` or ``auto``, which keeps its own settings; ``None``
            starts an instance on this machine that ends with the block.
        cpus: CPUs of the local instance; ``None`` uses all.
        gpus: GPUs of the local instance; ``None`` uses all.
        store_bytes: Bytes of large objects in the store of the local instance.

    Raises:
        ConfigError: If no cluster answers at ``address``.
        TrainingError: If Ray does not start on this machine.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    if address is None:
        restrict_ray_to_localhost()
    on_termination = signal.getsignal(signal.SIGTERM)
    with _cluster(address) if address else _local_ray(cpus, gpus, store_bytes):
        with suppress(ValueError):  # not the main thread
            # Ray's own handler would print a C++ stack trace and exit immediately.
            signal.signal(signal.SIGTERM, on_termination)
        yield


def restrict_ray_to_localhost() -> None:
    """Set the variables that restrict a local Ray to this machine, which its import reads.

    Raises:
        TrainingError: If Ray is already imported without these settings.
    """
    if "ray" in sys.modules and any(
        os.environ.get(k) != v for k, v in _LOCALHOST_ENVIRONMENT.items()
    ):
        settings = " ".join(map("=".join, _LOCALHOST_ENVIRONMENT.items()))
        raise TrainingError(
            f"Ray was imported before DFS-RL could close it to other machines; set {settings} "
            "before it is imported."
        )
    os.environ.update(_LOCALHOST_ENVIRONMENT)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    import ray

    try:
        if address != "auto":  # Ray itself would retry for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT).close()
        ray.init(address=address, **_QUIET)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"address is {address!r}, where no Ray cluster answers; `ray start --head` starts one "
            "and names its address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _local_ray(cpus: int | None, gpus: int | None, store_bytes: int) -> Iterator[None]:
    import ray

    # Base folder as in Ray: the length of socket paths is limited, so the base must be short.
    base = os.environ.get("RAY_TMPDIR") or ("/tmp" if Path("/tmp").is_dir() else None)
    with tempfile.TemporaryDirectory(
        prefix="dfs-rl-", dir=base, ignore_cleanup_errors=True
    ) as private:
        token = Path(private) / "token"
        token.touch(mode=0o600)
        token.write_text(_TOKEN)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        try:
            try:
                ray.init(
                    address="local",  # even if RAY_ADDRESS is set
                    **_QUIET,
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=_MIN_STORE_BYTES + store_bytes,
                    _temp_dir=str(Path(private) / "ray"),  # Ray makes this folder open to everybody
                )
            except Exception as error:  # Ray has no specific class for a start that times out
                reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
                raise TrainingError(
                    f"Ray does not start on this machine: {reason}. Try again when the machine is "
                    "less busy."
                ) from error
            yield
        finally:
            ray.shutdown()
            del os.environ["RAY_AUTH_TOKEN_PATH"]


@contextmanager
def ray_deprecations_ignored() -> Iterator[None]:
    """Ignore the warnings of Ray's libraries about their own deprecated settings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
        yield
