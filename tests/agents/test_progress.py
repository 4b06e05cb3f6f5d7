"""A bar in a terminal, lines elsewhere."""

import io
import sys

import pytest

from dfs_rl.agents.callbacks import Lifecycle, UpdateLog, learn
from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.agents.logging import Progress, ProgressBar
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data import ImageSet
from tests.agents.conftest import small_agent

RECORD = {"accuracy": 91.25, "computation": 1.2345, "reward": 0.5, "patterns": 7}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_progress_is_shown(
    planted_backbone: WalkableBackbone,
    planted_images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    said: list[str] = []
    bar = ProgressBar(192, print_status=said.append)
    bar.report(0, RECORD)
    model = small_agent(planted_backbone, planted_images, PPOConfig())
    learn(model, 192, [UpdateLog(Lifecycle()), Progress(bar)], fresh=True)
    if stream.isatty():
        assert "192/192" in stream.getvalue()
        assert "val accuracy=91.2 %" in stream.getvalue()
        assert said == []
    else:
        assert stream.getvalue() == ""
        assert said == [
            (
                "step 0 of 192: val accuracy 91.25 %, computation 1.234 %, reward 0.5000, distinct "
                "patterns 7"
            )
        ]
