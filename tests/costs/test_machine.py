"""A latency profile belongs to a machine and to versions of libraries."""

from dataclasses import replace

import pytest
import torch

from dfs_rl.costs.latency_profile import LatencyProfile, PartLatency
from dfs_rl.costs.machine import check_machine, library_versions, machine_name
from dfs_rl.errors import ConfigError

HERE = LatencyProfile(
    machine=machine_name("cpu"),
    device="cpu",
    runtime="torch",
    threads=1,
    versions=library_versions("torch"),
    calls=1,
    layer_macs=(10,),
    fixed_macs=(),
    fixed_bits=(),
    gate_macs=1.0,
    parts=(PartLatency(part="stem", batch_size=1, median=1.0, low=1.0, high=1.0),),
)


def test_a_profile_of_this_machine_is_accepted():
    check_machine(HERE)
    assert HERE.versions[0] == f"torch {torch.__version__}"


@pytest.mark.parametrize(
    "change", [{"machine": "Abacus 1"}, {"versions": ("torch 1.0", HERE.versions[1])}]
)
def test_a_profile_of_another_machine_is_refused(change):
    other = replace(HERE, **change)
    with pytest.raises(ConfigError) as error:
        check_machine(other)
    for name in (other.machine, *other.versions, HERE.machine, *HERE.versions):
        assert name in str(error.value)
