"""Spaces of observations without a network."""

import numpy as np
from gymnasium import spaces


def observation_space(n_features: int) -> spaces.Dict:
    """Return the space of an agent's observations of three layers."""
    return spaces.Dict(
        {
            "features": spaces.Box(-10.0, 10.0, (n_features,), np.float32),
            "layer": spaces.Discrete(3),
            "context": spaces.Box(0.0, 1.0, (3,), np.float32),
        }
    )
