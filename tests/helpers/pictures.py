"""Trainings whose validations draw no picture, which takes most of the time of small ones."""

import numpy as np
import pytest

from dfs_rl.agents import evaluation_callback


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log one black pixel per validation in place of the histogram of options."""
    pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    monkeypatch.setattr(evaluation_callback, "option_histogram_image", lambda *_: pixel)
