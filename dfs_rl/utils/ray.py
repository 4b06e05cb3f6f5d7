"""Start Ray without its noise: no dashboard, no usage statistics, no workers' output on the terminal."""

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

# Ray reads them once, when it is first imported or started.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what the workers and Ray's own processes would say on the terminal
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of a training is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in the workers
}
# For a Ray that starts here. The first binds it to loopback, which Ray does by default on Windows and
# macOS alone; on Linux it listens on every interface and ignores ``_node_ip_address="127.0.0.1"``.
_LOCALHOST_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
_TOKEN = secrets.token_hex(32)  # of the process, which keeps the first token that it reads
_MIN_STORE_BYTES = 2**27
_LOCAL = "local"  # for Ray: start one, even where RAY_ADDRESS names another
_AUTO = "auto"
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_CONNECT_TIMEOUT = 5.0  # seconds for a cluster to answer


@contextmanager
def start_ray(
    *,
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    store_bytes: int = 0,
) -> Iterator[None]:
    """Connect to Ray until the block ends; nothing happens where this process is connected already.

    A Ray that starts here listens on loopback alone, asks every connection for a token, and keeps
    its files in a temporary folder that no other user can enter.

    Args:
        address: A cluster that runs, ``host:port`` or ``auto``, which keeps its own settings;
            ``None`` starts one on this machine that ends with the block.
        cpus: CPUs that the one on this machine deals out; ``None`` takes what there are.
        gpus: Likewise.
        store_bytes: What the object store of the one on this machine must hold at once, besides
            small things.

    Raises:
        ConfigError: If no cluster answers at ``address``.
        TrainingError: If none starts on this machine.
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
            # Ray's own handler would print where its C++ stands, and leave at once.
            signal.signal(signal.SIGTERM, on_termination)
        yield


def restrict_ray_to_localhost() -> None:
    """Set what a Ray that starts here reads when it is imported, so that only this machine reaches it.

    Raises:
        TrainingError: If Ray is imported already, without these settings.
    """
    if "ray" in sys.modules and any(
        os.environ.get(k) != v for k, v in _LOCALHOST_ENVIRONMENT.items()
    ):
        settings = " ".join(f"{name}={value}" for name, value in _LOCALHOST_ENVIRONMENT.items())
        raise TrainingError(
            f"Ray was imported before DFS-RL could close it to other machines; set {settings} "
            "before it is imported."
        )
    os.environ.update(_LOCALHOST_ENVIRONMENT)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Connect to the cluster at ``address``."""
    import ray

    try:
        if address != _AUTO:
            _check_reachable(address)
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
    """Start a Ray on this machine that nobody else can reach."""
    import ray

    # As Ray does: a longer path than /tmp, say of a job, leaves no room for the names of its sockets.
    base = os.environ.get("RAY_TMPDIR") or ("/tmp" if Path("/tmp").is_dir() else None)
    with tempfile.TemporaryDirectory(
        prefix="dfs-rl-", dir=base, ignore_cleanup_errors=True
    ) as private:
        token = Path(private) / "token"
        token.touch(mode=0o600)
        token.write_text(_TOKEN)
        os.environ[_TOKEN_FILE] = str(token)
        try:
            _start(
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=_MIN_STORE_BYTES + store_bytes,
                _temp_dir=str(Path(private) / "ray"),  # Ray lets everybody into this one
            )
            yield
        finally:
            ray.shutdown()
            del os.environ[_TOKEN_FILE]


def _start(**settings: Any) -> None:  # noqa: ANN401 - settings of Ray are of many types
    import ray

    try:
        ray.init(address=_LOCAL, **_QUIET, **settings)
    except Exception as error:  # Ray has no class of its own for a start that takes too long
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise TrainingError(
            f"Ray does not start on this machine: {reason}. Try again when the machine is less "
            "busy."
        ) from error


def _check_reachable(address: str) -> None:
    """See whether anybody listens at ``host:port``, since Ray tries for minutes; raises OSError or ValueError if not."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT).close()


@contextmanager
def ray_deprecations_ignored() -> Iterator[None]:
    """Silence Ray's warnings of its own deprecated settings, which its libraries set as they are imported and used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
        yield
