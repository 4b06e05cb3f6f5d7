"""Start of Ray: closed to other machines and users, or an error in one sentence."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import grpc
import pytest

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="lists sockets in /proc"),
]

_STARTED = """
import json, os, signal, sys
from dfs_rl.utils.ray import start_ray
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
with start_ray(cpus=1):
    import ray
    ray.get(ray.remote(lambda: 0).remote())  # so that a worker listens as well
    address = ray.get_runtime_context().gcs_address
    print(json.dumps([address, os.environ["RAY_AUTH_TOKEN_PATH"]]), flush=True)
    sys.stdin.read()
"""


def listeners(pid: int) -> dict[int, set[str]]:
    """Return the hexadecimal addresses that a process and its descendants listen on."""
    family, generation = {pid}, [pid]
    while generation:
        children = (Path(f"/proc/{parent}/task").glob("*/children") for parent in generation)
        generation = [
            int(c) for files in children for file in files for c in file.read_text().split()
        ]
        family.update(generation)
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    listening = {row[9]: row[1].partition(":")[0] for row in rows if row[3] == "0A"}
    found: dict[int, set[str]] = {}
    for member in family:
        links = [
            str(fd.readlink()) for fd in Path(f"/proc/{member}/fd").iterdir() if fd.is_symlink()
        ]
        inodes = [link[8:-1] for link in links if link.startswith("socket:[")]
        if addresses := {listening[inode] for inode in inodes if inode in listening}:
            found[member] = addresses
    return found


def test_local_ray_is_closed_to_others():
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", _STARTED],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        address, token = json.loads(process.stdout.readline())
        found = listeners(process.pid)
        # 127.0.0.1 as in /proc/net/tcp, and mapped into IPv6 as in /proc/net/tcp6.
        assert len(found) >= 4  # driver, GCS, raylet, worker
        assert set().union(*found.values()) <= {"0100007F", "0000000000000000FFFF00000100007F"}
        private = Path(token).parent
        assert [private.stat().st_mode & 0o777, Path(token).stat().st_mode & 0o777] == [
            0o700,
            0o600,
        ]
        assert list(private.glob("ray/session_*/sockets"))

        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            bearer = ("authorization", f"Bearer {Path(token).read_text()}")
            assert ask(b"", metadata=[bearer], timeout=10)
            for metadata in ([], [("authorization", f"Bearer {'0' * 64}")]):
                with pytest.raises(grpc.RpcError) as refused:
                    ask(b"", metadata=metadata, timeout=10)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        process.terminate()
        process.communicate()
    assert process.returncode == 3  # by the handler from before Ray's
    assert not private.exists()


def test_failed_start_is_one_sentence():
    # Ray's processes end with their driver, a separate process; no machine has a pebibyte.
    program = """
        from dfs_rl.errors import TrainingError
        from dfs_rl.utils.ray import start_ray
        try:
            with start_ray(cpus=1, store_bytes=2**50):
                pass
        except TrainingError as error:
            print(error)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    assert "memory" in ended.stdout
