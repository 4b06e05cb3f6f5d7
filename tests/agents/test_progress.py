"""Progress bar in a terminal, lines elsewhere."""

import io
import sys

import pytest

from dfs_rl.agents.callbacks import UpdateCallback
from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.agents.logging import ProgressBar
from tests.helpers.planted_task import make_agent

RECORD = {"accuracy": 91.25, "computation": 1.2345, "reward": 0.5, "patterns": 7}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_progress_is_shown(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    bar = ProgressBar(256, cost="latency")
    bar.report({**RECORD, "timesteps": 0})
    bar.report({**RECORD, "timesteps": 256})
    make_agent(PPOConfig()).learn(256, UpdateCallback(bar=bar), log_interval=sys.maxsize)
    if stream.isatty():
        assert "256/256" in stream.getvalue()
        assert "val accuracy=91.2 %" in stream.getvalue()
        assert "latency=1.23 %" in stream.getvalue()
        assert "step 0 of 256" not in stream.getvalue()
    else:
        first, last = stream.getvalue().splitlines()
        assert first.startswith("step 0 of 256: val accuracy 91.25 %, latency 1.234 %")
        assert last.startswith("step 256 of 256: ")
