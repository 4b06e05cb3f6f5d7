import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.errors import BusyError, RunFolderError
from dfs_rl.utils.io import (
    check_writable,
    file_lock,
    read_json,
    remove_stale_temporaries,
    replaced_folder,
    to_json_value,
    write_bytes_atomic,
    write_json,
)
from tests.helpers.disks import full_disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes_atomic(path, b"long first content")
    write_bytes_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file"]


def test_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with replaced_folder(path) as folder:
            (folder / name).touch()
    with pytest.raises(FileNotFoundError), replaced_folder(path) as folder:
        (folder / "missing" / "third").touch()
    assert names(path) == ["second"]
    assert names(path.parent) == ["folder"]


def test_failed_write_keeps_the_previous_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def fail(_):
        assert path.read_bytes() == b"old"
        raise RuntimeError("the disk broke")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RuntimeError, match="the disk broke"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_rename_is_flushed_after_the_content(tmp_path, monkeypatch):
    flushed = []

    def flush(handle):
        flushed.append((stat.S_ISDIR(os.fstat(handle).st_mode), (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", flush)
    write_bytes_atomic(tmp_path / "file", b"new")
    assert flushed == [(False, False), (True, True)]


def test_files_get_the_umasks_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_stale_temporaries_go_and_other_files_stay(tmp_path):
    stale, kept = ".last.safetensors.x1y2.tmp", [".hidden", ".tmp-notes", "kept.tmp", "last.txt"]
    for name in [stale, *kept]:
        (tmp_path / name).touch()
    remove_stale_temporaries(tmp_path)
    assert names(tmp_path) == kept


def test_plain_form_of_arrays_paths_and_tuples():
    record = {
        "path": Path("a/b"),
        "tuple": (1, 2.5),
        "numpy": np.float32(0.5),
        "array": np.arange(3),
        "tensor": torch.tensor(7),
        "flag": np.bool_(True),
        3: None,
        "nan": math.nan,
        "deep": [{"inf": -math.inf}, torch.tensor(math.nan)],
    }
    assert to_json_value(record) == {
        "path": "a/b",
        "tuple": [1, 2.5],
        "numpy": 0.5,
        "array": [0, 1, 2],
        "tensor": 7,
        "flag": True,
        "3": None,
        "nan": None,
        "deep": [{"inf": None}, None],
    }


def test_values_without_json_form_are_refused():
    with pytest.raises(TypeError, match="a set has no JSON form"):
        to_json_value({"a": {1}})
    with pytest.raises(TypeError, match="a tuple cannot be a JSON key"):
        to_json_value({(1, 2): 1})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=json_values)
def test_json_comes_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", ""),
        (b"{", ""),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b"\xff\x00", ""),
        (b"[" * 100_000, ""),
        (b"[1e400]", "1e400 is not a finite number"),
        (b"[-9223372036854775809]", "20 characters has more than 64 bits"),
        (b"[9223372036854775808]", "19 characters has more than 64 bits"),
        (b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_damaged_json_is_one_sentence(tmp_path, content, complaint):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        read_json(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} is not valid JSON, so it is damaged, or was not ")
    assert complaint in sentence
    assert "\n" not in sentence


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # takes no space
    for name in ("pipe", "large", "/dev/zero"):
        with pytest.raises(RunFolderError, match=r"cannot be read: it (is a pipe|has more than)"):
            read_json(tmp_path / name)


def test_full_disk_names_the_requested_file(tmp_path):
    path = tmp_path / "new" / "file"
    with full_disk(10), pytest.raises(OSError, match="File too large") as caught:
        write_bytes_atomic(path, 11 * b"x")
    assert caught.value.filename == str(path)
    assert names(path.parent) == []


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "new", tmp_path / "file" / "deep" / "new"):
        with pytest.raises(OSError, match="Not a directory") as caught:
            check_writable(path)
        assert caught.value.filename == str(path)
    check_writable(tmp_path / "folder" / "new")
    assert names(tmp_path) == ["file"]


def test_missing_json_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"a\.json does not exist\.$"):
        read_json(tmp_path / "a.json")


# --- locks

HOLDER = """
import sys
from pathlib import Path
from dfs_rl.utils.io import file_lock

with file_lock(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path / "run"`` until its standard input closes."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_or_waits(holder, tmp_path):
    waited = []

    def on_wait():
        waited.append(True)
        holder.stdin.close()

    refused = pytest.raises(BusyError, match=r"another process is writing to .*run")
    with refused, file_lock(tmp_path / "run"):
        pass
    with file_lock(tmp_path / "run", on_wait=on_wait):
        assert holder.wait(timeout=30) == 0
    assert waited == [True]


def test_a_killed_process_keeps_nobody_out(holder, tmp_path):
    holder.kill()
    holder.wait(timeout=30)
    with file_lock(tmp_path / "run"):
        pass
