"""Training without plots at validation, which dominate the time of small runs."""

import pytest

from dfs_rl.experiments import session


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing at validation."""
    monkeypatch.setattr(session, "validation_pictures", lambda *_: {})
