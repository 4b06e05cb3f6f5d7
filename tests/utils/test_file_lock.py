import subprocess
import sys
import textwrap
import time

import pytest

from dfs_rl.errors import RunFolderError
from dfs_rl.utils.io import file_lock


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path / "run"`` until its standard input closes."""
    program = """
        import sys
        from pathlib import Path
        from dfs_rl.utils.io import file_lock
        with file_lock(Path(sys.argv[1])):
            print("in", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        yield process
        process.kill()


def test_a_second_process_is_refused(holder, tmp_path):
    with (
        pytest.raises(RunFolderError, match=r"another process is writing to .*run"),
        file_lock(tmp_path / "run"),
    ):
        pass


def test_a_second_process_may_wait(holder, tmp_path):
    heard = []

    def on_wait():
        heard.append(time.monotonic())
        holder.stdin.close()

    with file_lock(tmp_path / "run", on_wait=on_wait):
        assert holder.wait(timeout=30) == 0
    assert len(heard) == 1


def test_a_killed_process_keeps_nobody_out(holder, tmp_path):
    holder.kill()
    holder.wait(timeout=30)
    with file_lock(tmp_path / "run"):
        pass
