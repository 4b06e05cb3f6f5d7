"""The command with two workers of Ray: the same run as with one, whatever stops it on the way."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed

from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.supernet_training import build, train_supernet
from dfs_rl.train_backbone import main
from dfs_rl.training.distributed import ParallelTrainer
from dfs_rl.utils.checkpoint import load_tensors
from dfs_rl.utils.device import check_devices
from dfs_rl.utils.ray import start_ray
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.signals import StopRequest

EPOCHS = 8
SETTINGS = {"backbone": "resnet8", "width": 2, "bits": (0, 4, 32), "epochs": EPOCHS}
TINY = ["--backbone", "resnet8", "--width", "2", "--bits", "0", "4", "32", "--epochs", str(EPOCHS)]


def _workers() -> list[int]:
    """Return the process ids of this process's workers, in the order of their start."""
    parents, found = {}, []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                pid, stat = int(path.name), (path / "stat").read_text()
                parents[pid] = int(stat.rpartition(")")[2].split()[1])
                if (path / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                    found.append(pid)
            except OSError:  # it has just ended
                continue

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sorted(filter(ours, found))


def wait_for_epochs(run: Path, n: int) -> None:
    deadline = time.monotonic() + 280
    while len(RunFolder.open(run).read_metrics()) < n:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _train_without_ray(path: Path, *, stop: bool = False) -> bool:
    """What two workers do, in the processes of the group; returns whether it came to the end."""
    config = TrainBackboneConfig(**SETTINGS, workers=2)
    dataset = load_dataset("digits")
    trainer = ParallelTrainer(
        build(config, dataset),
        dataset,
        config.training,
        epochs=config.epochs,
        seed=config.seed,
        device=torch.device("cpu"),
    )
    if distributed.get_rank() != 0:
        trainer.follow()
        return True
    request = StopRequest()
    request.requested = stop
    if path.exists():
        run = RunFolder.open(path)
    else:
        run = RunFolder.create(path, kind=config.KIND, name="", config=config, command=())
    try:
        train_supernet(config, trainer, dataset, run, stop=request)
    except KeyboardInterrupt:
        return False
    finally:
        trainer.dismiss()
    return True


@pytest.fixture(scope="module")
def whole(together, tmp_path_factory) -> Path:
    """A run with two workers that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert together(_train_without_ray, run)[0]
    return run


def test_workers_make_the_run_that_one_process_makes(whole, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*TINY, "--run-dir", str(run)]) == 0
    ours, theirs = RunFolder.open(whole).read_metrics(), RunFolder.open(run).read_metrics()
    assert [record["epoch"] for record in ours] == list(range(1, EPOCHS + 1))
    for name in ("loss/labels", "loss/distillation"):
        # Rounding to codes enlarges differences of summation; over 8 steps they stay small.
        assert ours[0][name] == pytest.approx(theirs[0][name], abs=0.02)
        assert ours[-1][name] == pytest.approx(theirs[-1][name], abs=0.2)


@pytest.mark.timeout(300)  # Ray starts some twenty processes here
def test_ray_kills_and_ctrl_c_change_nothing(together, whole, tmp_path, capsys):
    run = tmp_path / "run"
    assert not together(partial(_train_without_ray, stop=True), run)[0]
    assert RunFolder.open(run).read_metrics() == []  # stopped in the middle of the first epoch
    capsys.readouterr()

    def disturb() -> None:
        wait_for_epochs(run, 1)
        os.kill(_workers()[-1], signal.SIGKILL)
        wait_for_epochs(run, 3)  # which takes another worker
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=disturb)
    with start_ray(cpus=2, gpus=0):
        thread.start()
        assert main(["--resume", str(run)]) == 130
    thread.join()
    *others, last = capsys.readouterr().err.splitlines()
    assert f"Go on with: python -m dfs_rl.train_backbone --resume {run}" in last
    told = [line for line in others if not line.startswith("epoch ")]
    assert told == ["A worker was lost; all continue from the last checkpoint."]

    assert together(_train_without_ray, run)[0]
    assert RunFolder.open(run).read_metrics() == RunFolder.open(whole).read_metrics()
    ours, theirs = (load_tensors(r / "backbone" / "backbone.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_worker_needs_a_gpu_of_its_own():
    cuda, one = torch.device("cuda"), torch.device("cuda:1")
    check_devices(cuda, workers=2, gpus=2)
    check_devices(one, workers=1, gpus=2)
    check_devices(torch.device("cpu"), workers=9, gpus=0)
    with pytest.raises(
        ConfigError, match="workers is 3, but each needs a GPU and this machine has 2"
    ):
        check_devices(cuda, workers=3, gpus=2)
    with pytest.raises(ConfigError, match="device is 'cuda:1', which 2 workers cannot share"):
        check_devices(one, workers=2, gpus=2)
