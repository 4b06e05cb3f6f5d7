"""One Ray for all tests of this folder that need one."""

import pytest

from dfs_rl.utils.ray import start_ray


@pytest.fixture(scope="session")
def ray_here():
    """Ray on this machine with one core, which commands find and use."""
    with start_ray(cpus=1, store_bytes=2**24):
        yield
