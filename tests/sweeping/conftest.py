"""One Ray for all tests of this folder that need one."""

import pytest

from dfs_rl.utils.ray import start_ray


@pytest.fixture(scope="session")
def ray_here():
    """Ray on this machine with two cores, which commands find and use, of other tests too."""
    with start_ray(cpus=2, store_bytes=2**24):
        yield
