"""Settings of all tests: threads, plots, Ray, hypothesis, and groups of test processes."""

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# The libraries read these variables once, at their first import or start.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MPLBACKEND"] = "Agg"
# With Ray's default of 15, its workers starve next to other tests until they time out.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
# Clusters that tests start share these settings with Ray in commands: local only, with one token.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.helpers.custom_models import forgotten_trust
from tests.helpers.halves import halves, together

__all__ = ["halves", "together"]

torch.set_num_threads(1)

# Processes of ``pytest -n`` ignore Ctrl-C, and commands that tests interrupt would inherit that.
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
_LONGEST = ("sweeping/test_faults.py", "sweeping/test_sweep_command.py", "test_plugins.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no process of ``pytest -n`` waits for one at the end."""
    items.sort(key=lambda item: item.path.relative_to(_HERE).as_posix() not in _LONGEST)


@pytest.fixture
def refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]:
    """Return a function that runs a command on invalid input and returns its error message.

    The function asserts exit code 2, a message of one line, and no new run folder.
    """

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
    """Keep the last occurrence of each flag and its values; commands reject repeated flags."""
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
    """Run the test in an empty folder, without trusted constructors or imported test modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with forgotten_trust():
        yield
    for module in ("ownnets", "othernets"):
        sys.modules.pop(module, None)
