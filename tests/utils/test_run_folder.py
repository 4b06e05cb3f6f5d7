import errno
import hashlib
import json
import math
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

import dfs_rl
from dfs_rl.errors import BusyError, CheckpointError, RunFolderError
from dfs_rl.utils.config import load_config
from dfs_rl.utils.io import file_lock
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.disks import full_disk


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 5
    device: str = "cpu"
    rate: float = 1e-5


def create(path: Path | None, **options) -> RunFolder:
    command = ["python", "-m", "x"]
    return RunFolder.create(
        path, kind="train", name="demo", config=Config(), command=command, **options
    )


def test_new_run_records_config_command_and_versions(tmp_path):
    folder = create(tmp_path / "deep" / "run")
    assert load_config(folder.config_path, Config) == Config()
    record = json.loads((folder.path / "run.json").read_text())
    assert record == json.loads(json.dumps(asdict(folder.record())))
    digest = hashlib.sha256(folder.config_path.read_bytes()).hexdigest()
    assert record["files"] == {"config.yaml": digest}
    assert record["kind"] == "train"
    assert record["command"] == ["python", "-m", "x"]
    assert (record["seed"], record["device"], record["format"]) == (5, "cpu", 1)
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert torch.__version__.startswith(
        record["versions"]["torch"]
    )  # +cpu, +cu130: not in metadata
    assert record["versions"]["dfs-rl"] == dfs_rl.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["created"])


def test_default_folders_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [create(None).path for _ in range(4)]
    assert len(set(paths)) == 4
    for path in paths:
        assert re.fullmatch(r"runs/\d{8}-\d{6}-demo(-\d+)?", path.as_posix())


@pytest.mark.parametrize(
    "entry",
    ["run.json", "config.yaml", "metrics.jsonl", "checkpoints", "backbone", "backbone.json"],
)
def test_folder_with_a_run_is_refused_untouched(tmp_path, entry):
    (tmp_path / entry).write_text("mine")
    message = "holds a run already" if entry == "run.json" else f"has {entry} but no run.json"
    with pytest.raises(RunFolderError, match=message):
        create(tmp_path)
    assert (tmp_path / entry).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [entry]


def test_a_folder_with_other_files_may_be_locked_and_taken(tmp_path):
    (tmp_path / "notes.txt").touch()
    with file_lock(tmp_path):
        assert RunFolder.open(create(tmp_path).path).kind == "train"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="file is a file; a run needs a folder"):
        create(tmp_path / "file")
    with pytest.raises(RunFolderError, match=r"cannot write a run to .*: Not a directory"):
        create(tmp_path / "file" / "run")


def test_opening_checks_what_is_there(tmp_path):
    path = create(tmp_path / "run").path
    (tmp_path / "latest").symlink_to("run")
    assert RunFolder.open(path) == RunFolder.open(path, "train") == RunFolder(path, "train")
    assert RunFolder.open(tmp_path / "latest").kind == "train"
    for place, kind, complaint in [
        (path, "evaluate", "is a run of kind train; kind evaluate is needed here"),
        (tmp_path / "nope", None, "is not a folder, so it holds no run"),
        (tmp_path, None, r"holds no run: it has no run\.json"),
    ]:
        with pytest.raises(RunFolderError, match=complaint):
            RunFolder.open(place, kind)


def test_metrics_come_back_in_order_with_null_for_nan(tmp_path):
    folder = create(tmp_path / "run")
    assert folder.read_metrics() == []
    folder.log({"step": 1, "loss": math.nan, "text": "zwölf\nlines\u2028\r"})
    folder.log({"step": torch.tensor(2), "loss": 0.5})
    assert folder.read_metrics() == [
        {"step": 1, "loss": None, "text": "zwölf\nlines\u2028\r"},
        {"step": 2, "loss": 0.5},
    ]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 3, "text": "caf\xc3'])
def test_torn_last_line_is_overwritten(tmp_path, torn):
    folder = create(tmp_path / "run")
    for step in (1, 2, 3):
        folder.log({"step": step})
    with folder.metrics_path.open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in folder.read_metrics()] == [1, 2, 3]
    RunFolder.open(folder.path).log({"step": 4})
    assert [record["step"] for record in folder.read_metrics()] == [1, 2, 3, 4]


def test_truncate_metrics_to_a_checkpoint(tmp_path):
    folder = create(tmp_path / "run")
    for step in range(5):
        folder.log({"step": step})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"torn')
    folder.truncate_metrics(3)
    folder.log({"step": "again"})
    assert [record["step"] for record in folder.read_metrics()] == [0, 1, 2, "again"]
    with pytest.raises(RunFolderError, match="has 4 records, but the checkpoint was made after 9"):
        folder.truncate_metrics(9)


def test_checkpoints_by_name(tmp_path):
    folder = create(tmp_path / "run")
    assert not folder.has_checkpoint("last")
    with pytest.raises(CheckpointError, match="has no checkpoint 'last'"):
        folder.load_checkpoint("last")
    for step in (1, 2):
        folder.save_checkpoint("last", {"w": torch.full((2,), step)}, {"step": step})
    folder.save_checkpoint("best", {"w": torch.zeros(2)}, {"step": 1})
    assert folder.load_checkpoint("last").state == {"step": 2}
    assert folder.load_checkpoint("last").tensors["w"].tolist() == [2, 2]
    assert sorted(p.name for p in folder.checkpoint_dir.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]


def test_leftovers_of_a_killed_save_are_deleted(tmp_path):
    folder = create(tmp_path / "run")
    folder.save_checkpoint("last", {"w": torch.ones(3)}, {"step": 1})
    complete = (folder.checkpoint_dir / "last.safetensors").read_bytes()
    for number, left in enumerate([b"", complete[:40], complete]):
        (folder.checkpoint_dir / f".last.safetensors.{number}.tmp").write_bytes(left)
    assert folder.load_checkpoint("last").state == {"step": 1}
    folder.save_checkpoint("last", {"w": torch.ones(3)}, {"step": 2})
    assert folder.load_checkpoint("last").state == {"step": 2}
    assert [p.name for p in folder.checkpoint_dir.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("file", ["config.yaml", "own.yaml"])
@pytest.mark.parametrize("change", ["edited", "missing", "empty", "huge"])
def test_changed_initial_files_are_refused(tmp_path, file, change):
    folder = create(tmp_path / "run", files={"own.yaml": b"a: 10\n"})
    assert RunFolder.open(folder.path) == folder
    path = folder.path / file
    match change:
        case "missing":
            path.unlink()
        case "edited":
            path.write_bytes(path.read_bytes()[:-2] + b"\n")  # still YAML
        case "empty":
            path.write_bytes(b"")
        case "huge":
            os.truncate(path, 2**40)
    with pytest.raises(RunFolderError, match=re.escape(f"{path} is not what the run stored")):
        RunFolder.open(folder.path)


@pytest.mark.parametrize("write", range(4))  # of three, before the kill
def test_kill_while_the_configuration_is_replaced(tmp_path, monkeypatch, write):
    folder = create(tmp_path / "run")
    renamed, rename = [], Path.replace

    def kill(source, target):
        if len(renamed) == write:
            raise KeyboardInterrupt
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(Path, "replace", kill)
    with nullcontext() if write == 3 else pytest.raises(KeyboardInterrupt):
        folder.replace_config(Config(seed=7))
    monkeypatch.undo()
    assert RunFolder.open(folder.path).config(Config).seed == (7 if write > 1 else Config.seed)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("timing.json", '{"seconds": "5"}', "seconds is '5'"),
        ("timing.json", '{"seconds": true}', "seconds is true"),
        ("timing.json", '{"seconds": 1e999}', "1e999 is not a finite number"),
        ("timing.json", "{}", "seconds is missing"),
        ("timing.json", "[3]", "not a mapping"),
        ("timing.json", "", "not valid JSON"),
        ("run.json", "{", "is not valid JSON"),
        ("run.json", "[]", "is not a mapping"),
        (
            "run.json",
            '{"kind": "t", "format": 2, "command": [], "created": "", "files": {}}',
            "has run format 2; this version",
        ),
        ("run.json", '{"kind": "train", "format": 1}', "command is missing"),
        ("run.json", '{"kind": "train", "format": 1, "command": "x"}', "command is 'x'"),
    ],
)
def test_records_are_checked_on_opening(tmp_path, file, content, named):
    path = create(tmp_path / "run").path / file
    path.write_text(content)
    with pytest.raises(RunFolderError, match=re.escape(named)) as caught:
        RunFolder.open(path.parent)
    assert str(path.parent) in str(caught.value)


def test_seconds_add_up_over_resumptions(tmp_path):
    folder = create(tmp_path / "run")
    assert folder.add_seconds(1.5) == 1.5
    assert RunFolder.open(folder.path).add_seconds(2) == 3.5


@pytest.mark.parametrize("name", ["checkpoints", "gates", "metrics.jsonl"])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_inside_a_run_are_refused(tmp_path, name, dangling):
    folder = create(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
        (elsewhere / ".last.safetensors.x1.tmp").touch()
    (folder.path / name).symlink_to(elsewhere)
    with pytest.raises(RunFolderError, match=re.escape(f"{folder.path / name} is a symbolic link")):
        RunFolder.open(folder.path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / name).symlink_to(elsewhere)
    with pytest.raises(RunFolderError):
        create(fresh)
    assert [path.name for path in fresh.iterdir()] == [name]
    assert dangling or [path.name for path in elsewhere.iterdir()] == [".last.safetensors.x1.tmp"]


def test_lock_deletes_leftovers_and_names_the_run(tmp_path):
    folder = create(tmp_path / "run")
    stale = [
        "checkpoints/.last.safetensors.q1.tmp",
        ".summary.json.q2.tmp",
        "gate/.gate.json.q3.tmp",
        "plots/.options.png.q4.tmp",
        "backbone/.backbone.json.q5.tmp",
    ]
    kept = ["gates/ppo/.summary.json.q6.tmp", "plots/options.png", "notes.tmp"]
    for name in stale + kept:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()
    with folder.lock():
        assert [name for name in stale if (folder.path / name).exists()] == []
        assert all((folder.path / name).exists() for name in kept)
        with pytest.raises(BusyError), folder.lock():
            pass
    with pytest.raises(OSError, match="No space") as caught, folder.lock():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(folder.path)


def test_full_disk_leaves_no_partial_record(tmp_path):
    folder = create(tmp_path / "run")
    folder.log({"step": 1})
    whole = folder.metrics_path.read_bytes()
    with full_disk(len(whole) + 5), pytest.raises(OSError, match="File too large") as caught:
        folder.log({"step": 2, "padding": "x" * 100})
    assert caught.value.filename == str(folder.metrics_path)
    assert folder.metrics_path.read_bytes() == whole


def test_damaged_metrics_are_refused(tmp_path):
    folder = create(tmp_path / "run")
    for step in range(3):
        folder.log({"step": step})
    content = folder.metrics_path.read_bytes().replace(b'{"step": 1}', b'{"step" 1}')
    folder.metrics_path.write_bytes(content)
    for read in (folder.read_metrics, lambda: folder.truncate_metrics(3)):
        with pytest.raises(RunFolderError, match="is damaged in line 2"):
            read()
    assert folder.metrics_path.read_bytes() == content
