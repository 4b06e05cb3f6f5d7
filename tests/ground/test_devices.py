import pytest
import torch

from dfs_rl.devices import resolve_device
from dfs_rl.errors import ConfigError


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu"), "cpu:0"])
def test_a_device_that_computes_is_taken(name):
    assert resolve_device(name) == torch.device(name)


# "meta" has no numbers, torch looks for a module of "hpu", and 5 would be the sixth GPU.
@pytest.mark.parametrize("name", ["tpu", "", "meta", torch.device("meta"), "hpu", 5, None, 1.5, []])
def test_any_other_device_is_refused(name):
    with pytest.raises(ConfigError, match="device is "):
        resolve_device(name)
