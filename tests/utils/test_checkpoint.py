import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from dfs_rl.errors import CheckpointError
from dfs_rl.utils.checkpoint import (
    load_checkpoint,
    load_tensors,
    read_manifest,
    save_checkpoint,
    save_tensors,
    write_manifest,
)
from tests.helpers.disks import full_disk

TENSORS = {
    "bfloat16": torch.linspace(-3, 3, 12).reshape(3, 4).bfloat16(),
    "float16": torch.linspace(-3, 3, 5).half(),
    "float32": torch.tensor([-math.inf, math.inf, -0.0, 1e-45]),
    "float64": torch.tensor(math.pi, dtype=torch.float64),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "int8": torch.arange(-128, 128, dtype=torch.int8),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(5),
    "empty": torch.zeros(0, 3),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": torch.arange(20).reshape(4, 5)[::2, 1::2],
    "expanded": torch.arange(3).expand(4, 3),
    "parameter": torch.nn.Parameter(torch.randn(3)),
}


def bits(tensor: torch.Tensor) -> bytes:
    """The values' own bytes, so that NaN equals NaN and -0 does not equal 0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_dtypes_and_layouts_are_restored_exactly(tmp_path):
    save_tensors(tmp_path / "t.safetensors", TENSORS)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor), name
        assert loaded[name].is_contiguous()
        assert not loaded[name].requires_grad


def test_tensors_that_share_memory_are_each_stored(tmp_path):
    base = torch.arange(6.0)
    save_tensors(tmp_path / "t", {"all": base, "same": base, "part": base[2:4]})
    loaded = load_tensors(tmp_path / "t")
    assert loaded["part"].tolist() == [2.0, 3.0]
    loaded["all"].zero_()
    assert loaded["same"].tolist() == base.tolist()


def test_loaded_tensors_outlive_the_file(tmp_path):
    path = tmp_path / "t"
    save_tensors(path, {"a": torch.ones(1000)})
    loaded = load_tensors(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded["a"].sum() == 1000


def test_files_of_other_writers_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    plain = tmp_path / "plain.safetensors"
    assert load_tensors(plain, ours=False)["a"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="has no checksum"):
        load_tensors(plain)


def write_example(path: Path) -> None:
    save_checkpoint(
        path, {"w": torch.arange(5.0), "b": torch.tensor([7, 8])}, {"step": 3, "x": 0.1}
    )


@given(
    state=st.dictionaries(
        st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_states_come_back_exactly(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("c") / "c"
    save_checkpoint(path, {"w": torch.arange(3.0)}, state)
    loaded = load_checkpoint(path)
    assert loaded.state == state
    assert loaded.tensors["w"].tolist() == [0, 1, 2]


def test_state_without_json_form_is_refused(tmp_path):
    write_example(tmp_path / "c")
    with pytest.raises(CheckpointError, match="contains a number that is not finite"):
        save_checkpoint(tmp_path / "c", {}, {"best": -math.inf})
    assert load_checkpoint(tmp_path / "c").state["step"] == 3


def test_truncations_are_detected(tmp_path):
    path = tmp_path / "c"
    write_example(path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(path)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_changes_what_is_loaded(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("c") / "c"
    write_example(path)
    content = bytearray(path.read_bytes())
    intact = load_checkpoint(path)
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(path)
    except CheckpointError:
        return
    # The flip hit a blank between the parts of the file.
    assert loaded.state == intact.state
    values, expected = ({k: bits(v) for k, v in c.tensors.items()} for c in (loaded, intact))
    assert values == expected


@pytest.mark.parametrize(
    "altered",
    [
        {"b": torch.arange(6.0)},
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0).view(torch.int32)},
    ],
)
def test_names_shapes_and_dtypes_have_a_checksum(tmp_path, altered):
    save_tensors(tmp_path / "t", {"a": torch.arange(6.0)})
    with safe_open(tmp_path / "t", framework="pt") as file:
        metadata = file.metadata()
    save_file(altered, tmp_path / "t", metadata)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_tensors(tmp_path / "t")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04. a pickle", b"{}" * 50])
def test_foreign_files_are_one_sentence(tmp_path, content):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or not a safetensors file: ") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


def test_manifests_have_a_kind_and_a_format(tmp_path):
    path = tmp_path / "gate.json"
    wanted = {"what": "gate", "kinds": ("ff", "lstm"), "version": 3}
    write_manifest(path, kind="lstm", version=3, parts={"hidden": 4})
    assert read_manifest(path, **wanted)["hidden"] == 4
    for kind, version in (("table", 3), ("lstm", 2), ("lstm", 4)):
        write_manifest(path, kind=kind, version=version, parts={})
        with pytest.raises(CheckpointError, match="a gate of kind 'ff' or 'lstm' in format 3"):
            read_manifest(path, **wanted)


def test_tensors_alone_are_no_checkpoint(tmp_path):
    save_tensors(tmp_path / "t", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="no training state, so it is no checkpoint"):
        load_checkpoint(tmp_path / "t")


def test_full_disk_is_a_system_error(tmp_path):
    path = tmp_path / "c"
    write_example(path)
    with full_disk(1000), pytest.raises(OSError, match="File too large") as caught:
        save_tensors(path, {"a": torch.ones(1000)})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert load_checkpoint(path).state["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_nan_is_refused_by_the_name_of_its_tensor(tmp_path, dtype):
    values = torch.ones(2, 3)
    values[1, 2] = math.nan
    save_tensors(tmp_path / "t", {"fine": torch.ones(2), "broken": values.to(dtype)})
    with pytest.raises(CheckpointError, match="NaN in broken"):
        load_tensors(tmp_path / "t")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "does not exist or is not a file"),
        ("link", "cannot be read: Too many levels"),  # even by the superuser
        ("pipe", "cannot be read: it is a pipe"),
    ],
)
def test_what_is_no_file_is_not_called_damaged(tmp_path, name, complaint):
    (tmp_path / "link").symlink_to("link")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_tensors(tmp_path / name)
    assert "damaged" not in str(caught.value)
