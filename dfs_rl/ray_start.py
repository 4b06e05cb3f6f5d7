"""Start Ray without its noise: no dashboard, no usage statistics, no workers' output on the terminal."""

import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dfs_rl.constructors import ALLOWED
from dfs_rl.errors import ConfigError

# Ray reads them once, when it is first imported or started.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what the workers and Ray's own processes would say on the terminal
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of a training is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in the workers
}
_SMALL_STORE = 2**27
_LOCAL = "local"  # for Ray: start one, even where RAY_ADDRESS names another
_ANY = "auto"
_PATIENCE = 5.0  # seconds for a cluster to answer


@contextmanager
def start_ray(
    *,
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    store_bytes: int = 0,
) -> Iterator[None]:
    """Connect to Ray until the block ends; nothing happens where this process is connected already.

    Args:
        address: A cluster that runs, ``host:port`` or ``auto``; ``None`` starts one on this machine that ends with the
            block.
        cpus: CPUs that the one on this machine deals out; ``None`` takes what there are.
        gpus: Likewise.
        store_bytes: What the object store of the one on this machine must hold at once, besides small things.

    Raises:
        ConfigError: If no cluster answers at ``address``.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    here: dict[str, Any] = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "include_dashboard": False,
        "object_store_memory": _SMALL_STORE + store_bytes,
    }
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        if address not in (None, _ANY):
            _knock(address)
        ray.init(
            address=address or _LOCAL,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(_there() if address else here),
        )
    except (OSError, ValueError) as error:
        if address is None:
            raise
        raise ConfigError(
            f"address is {address!r}, where no Ray cluster answers; `ray start --head` starts one and names its address."
        ) from error
    with suppress(ValueError):  # not the main thread
        # Ray's own handler would print where its C++ stands, and leave at once.
        signal.signal(signal.SIGTERM, on_termination)
    try:
        yield
    finally:
        ray.shutdown()


def _there() -> dict[str, Any]:
    """What workers of a cluster that runs already must be told: whose code they may import."""
    allowed = os.environ.get(ALLOWED)
    return {} if allowed is None else {"runtime_env": {"env_vars": {ALLOWED: allowed}}}


def _knock(address: str) -> None:
    """See whether anybody listens at ``host:port``, since Ray tries for minutes; raises OSError or ValueError if not."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


@contextmanager
def ray_deprecations_ignored() -> Iterator[None]:
    """Silence Ray's warnings of its own deprecated settings, which its libraries set as they are imported and used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
        yield
