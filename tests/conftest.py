"""Settings of every test: one torch thread, no spinning OpenMP workers, no windows."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Both are read once, when the libraries are first imported.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from hypothesis import HealthCheck, settings

from dfs_rl import constructors

torch.set_num_threads(1)

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture
def refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]:
    """Return what a command says to bad input: one sentence, with exit code 2 and nothing left on the disk."""

    def said(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> str:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert main(arguments) == 2
        sentence = capsys.readouterr().err.strip()
        assert sentence
        assert "\n" not in sentence
        assert not (tmp_path / "runs").exists()
        return sentence

    return said


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, where no constructor was allowed yet and none of ``own_nets`` is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(constructors.ALLOWED, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for module in ("ownnets", "othernets"):
        sys.modules.pop(module, None)
