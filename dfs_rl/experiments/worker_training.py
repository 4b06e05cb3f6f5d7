"""Training of a supernet with several workers of Ray Train, which act as one trainer.

The worker of rank 0 measures, logs and saves to the run's folder, as the command does without
workers; see ``dfs_rl.training.distributed`` for the other workers. If a worker dies, all are
restarted from the last checkpoint in the run's folder, which is exact; checkpoints of Ray Train are
not used.

The command and the worker of rank 0 communicate through a folder: the worker's stderr, progress bar
included, is forwarded to the command's stderr; a file signals Ctrl-C. Decoded images are stored
once in Ray's object store, and every worker maps them into its memory.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

from dfs_rl.data import Dataset
from dfs_rl.errors import DfsRlError, TrainingError
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.supernet_training import build, train_supernet
from dfs_rl.training.distributed import LEADER, ParallelTrainer
from dfs_rl.utils.device import resolve_device, set_threads
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.ray import ray_deprecations_ignored, start_ray
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.signals import StopRequest, stop_on_interrupt
from dfs_rl.utils.trusted_import import trusted_code, trusting

T = TypeVar("T")

MAX_RESTARTS = 3
# Files in the folder by which the command and the worker of rank 0 communicate.
_STDERR = "stderr"  # of the worker
_STARTED = "started"  # by a worker
_STOP = "stop"  # requested by Ctrl-C
_POLL = 0.2  # seconds between reads of the workers' output
# Timeout in seconds between workers: validation takes long, and Ray detects dead workers itself.
_WORKER_TIMEOUT = 24 * 3600


class _WorkerStderr(io.TextIOWrapper):
    """Stderr of the worker; a terminal if the command's is, to show progress bars."""

    def __init__(self, folder: Path, *, interactive: bool) -> None:
        file = (folder / _STDERR).open("ab", buffering=0)
        super().__init__(file, encoding="utf-8", newline="", write_through=True)
        self._interactive = interactive

    def isatty(self) -> bool:
        return self._interactive


class _StopFile(StopRequest):
    """Stop request that is set by creating a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._path.exists()


def train_with_workers(config: TrainBackboneConfig, dataset: Dataset, run: RunFolder) -> None:
    """Train to the end, or resume from the run's last checkpoint, as ``train_supernet`` does.

    Raises:
        TrainingError: If workers die repeatedly.
    """
    run.check_data(dataset.fingerprint, dataset.name)
    use_gpu = resolve_device(config.device).type == "cuda"
    with (
        tempfile.TemporaryDirectory(prefix="dfs-rl-") as folder,
        start_ray(
            cpus=config.workers * config.threads,
            gpus=config.workers if use_gpu else 0,
            store_bytes=dataset.memory_bytes,
        ),
    ):
        (Path(folder) / _STDERR).touch()
        outcome = _fit(config, dataset, run, Path(folder), use_gpu=use_gpu)
    if outcome is not None:
        raise outcome


def _fit(
    config: TrainBackboneConfig, dataset: Dataset, run: RunFolder, folder: Path, *, use_gpu: bool
) -> BaseException | None:
    """Run the workers until they end; return the error that stopped rank 0, or ``None``."""
    import ray
    from ray.exceptions import RayActorError

    settings = {
        "run": run,
        "folder": folder,
        "interactive": sys.stderr.isatty(),
        "dataset": ray.put(dataset),
        "trusted": trusted_code(),
    }
    threads = {"OMP_NUM_THREADS": str(config.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with ray_deprecations_ignored():
        from ray.data import DataContext
        from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

        DataContext.get_current()  # avoids a warning in the trainer's thread
        trainer = TorchTrainer(
            _worker_loop,
            train_loop_config=settings,
            torch_config=TorchConfig(timeout_s=_WORKER_TIMEOUT),
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": config.threads, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(folder),
                failure_config=FailureConfig(
                    max_failures=MAX_RESTARTS, controller_failure_limit=MAX_RESTARTS
                ),
                worker_runtime_env={"env_vars": threads},
            ),
        )
    try:
        result = _run_with_output(trainer.fit, folder)
    except WorkerGroupError as error:
        failures = error.worker_failures.values()
        causes = [getattr(failure, "health_check_failure", failure) for failure in failures]
        for cause in causes:
            if isinstance(cause, DfsRlError):
                raise cause from error
        if any(isinstance(cause, RayActorError) for cause in causes):
            raise TrainingError(
                f"workers died {MAX_RESTARTS + 1} times, most likely for lack of memory; the last "
                f"checkpoint is saved. Go on with: {run.resume_command}"
            ) from error
        raise
    outcome: BaseException | None = result.return_value
    return outcome


def _run_with_output(work: Callable[[], T], folder: Path) -> T:
    """Run ``work`` in a thread; meanwhile forward the worker's stderr and Ctrl-C."""
    # In the main thread Ray Train handles Ctrl-C and discards the current epoch.
    executor = ThreadPoolExecutor(1)
    try:
        future = executor.submit(work)
        with (
            (folder / _STDERR).open(encoding="utf-8", errors="replace", newline="") as worker,
            stop_on_interrupt() as stop,
        ):
            while not future.done():
                wait([future], timeout=_POLL)
                if stop.requested:
                    (folder / _STOP).touch()
                sys.stderr.write(worker.read())
                sys.stderr.flush()
        return future.result()
    finally:
        executor.shutdown(wait=False)


def _worker_loop(settings: dict[str, Any]) -> BaseException | None:
    """Train as one of the workers, with the command's trusted code."""
    with trusting(settings["trusted"]):
        return _train(settings)


def _train(settings: dict[str, Any]) -> BaseException | None:
    """Return the error that stopped the training: Ray Train retries raised ones."""
    import ray

    run: RunFolder = settings["run"]
    folder: Path = settings["folder"]
    config = run.config(TrainBackboneConfig)
    set_threads(config.threads, resumed=True)
    dataset: Dataset = ray.get(settings["dataset"])
    trainer = ParallelTrainer(
        build(config, dataset),
        dataset,
        config.training,
        epochs=config.epochs,
        seed=config.seed,
        device=ray.train.torch.get_device(),
        recipe=config.recipe,
    )
    if ray.train.get_context().get_world_rank() != LEADER:
        trainer.follow()
        return None
    outcome = None
    with redirect_stderr(_WorkerStderr(folder, interactive=settings["interactive"])):
        if (folder / _STARTED).exists():
            print_status("A worker was lost; all continue from the last checkpoint.")
        (folder / _STARTED).touch()
        try:
            train_supernet(config, trainer, dataset, run, stop=_StopFile(folder / _STOP))
        except (DfsRlError, OSError, KeyboardInterrupt) as error:
            outcome = error
    trainer.dismiss()
    return outcome
