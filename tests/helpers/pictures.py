"""Training without plots at validation, which dominate the time of small runs."""

import numpy as np
import pytest

from dfs_rl.experiments import session


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the histogram of options at validation by one black pixel."""
    pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    monkeypatch.setattr(session, "option_histogram_image", lambda *_: pixel)
