"""Settings of every test: one torch thread, no spinning OpenMP workers, no windows, and which of them share a process."""

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# All are read once, when the libraries are first imported or started.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MPLBACKEND"] = "Agg"
# Ray's own 15 starves its workers, until they time out, beside other tests.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
# Tests start clusters beside the Ray of the commands: all closed to other machines, all with one token.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.helpers.custom_models import forgotten_trust

torch.set_num_threads(1)

# The processes of ``pytest -n`` ignore Ctrl-C, and so would the commands that tests run and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


_HERE = Path(__file__).parent
_START_RAY = ("sweeping", "experiments/test_worker_training.py", "test_readme.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the processes of ``pytest -n`` share files, whose fixtures are costly; there is one Ray at a time."""
    for item in items:
        path = item.path.relative_to(_HERE).as_posix()
        group = "ray" if path.startswith(_START_RAY) else path
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]:
    """Return what a command says to bad input: one sentence, with exit code 2 and nothing left on the disk."""

    def said(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> str:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert main(_keep_last_of_each_flag(arguments)) == 2
        sentence = capsys.readouterr().err.strip()
        assert sentence
        assert "\n" not in sentence
        assert not (tmp_path / "runs").exists()
        return sentence

    return said


def _keep_last_of_each_flag(arguments: Sequence[str]) -> list[str]:
    """Return arguments with each flag where it stands last, for a command takes it once; its values go with it."""
    settings: dict[str, list[str]] = {}
    flag = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument
            settings[flag] = []
        settings.setdefault(flag, []).append(argument)
    return [word for words in settings.values() for word in words]


@pytest.fixture
def no_allowed_constructors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, where no constructor was allowed yet and none of ``own_nets`` is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with forgotten_trust():
        yield
    for module in ("ownnets", "othernets"):
        sys.modules.pop(module, None)
