import os

import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.utils import device

CPU = torch.device("cpu")


@pytest.fixture
def threads(monkeypatch):
    """Numbers of threads that torch was set to, on a machine with 4 CPUs."""
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return seen


def test_more_threads_than_cpus_are_refused_unstarted(threads):
    device.set_threads(4)
    with pytest.raises(ConfigError, match="threads is 100000, but this machine has 4 CPUs"):
        device.set_threads(100_000)
    assert threads == [4]


def test_resume_on_a_smaller_machine_uses_its_cpus(threads, capsys):
    device.set_threads(3, resumed=True)
    assert capsys.readouterr().err == ""
    device.set_threads(64, resumed=True)
    assert threads == [3, 4]
    said = capsys.readouterr().err
    assert "64 threads" in said
    assert "continues with 4" in said


def test_too_little_memory_names_the_largest_setting(monkeypatch):
    monkeypatch.setattr(device, "free_bytes", lambda _: 3 * 2**30)
    device.check_memory({"a is 1": 2**30, "b is 2": 2**31}, CPU)
    with pytest.raises(
        ConfigError, match=r"^b is 2, .* 2 GiB .* 3.5 GiB and 3 GiB are free on cpu"
    ):
        device.check_memory({"a is 1": 1.5 * 2**30, "b is 2": 2**31}, CPU)


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    whole = device.free_bytes(CPU)
    assert 2**27 < whole < 2**50
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "_GROUP_LIMITS", (limit, tmp_path / "missing"))
    limit.write_text("1048576\n")
    assert device.free_bytes(CPU) == 2**20
    limit.write_text("max\n")
    assert device.free_bytes(CPU) > 2**27


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu"), "cpu:0"])
def test_a_device_that_computes_is_taken(name):
    assert device.resolve_device(name) == torch.device(name)


# "meta" has no numbers, torch looks for a module of "hpu", and 5 would be the sixth GPU.
@pytest.mark.parametrize("name", ["tpu", "", "meta", torch.device("meta"), "hpu", 5, None, 1.5, []])
def test_any_other_device_is_refused(name):
    with pytest.raises(ConfigError, match="device is "):
        device.resolve_device(name)
