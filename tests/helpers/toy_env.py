"""Problem on ``ToyBackbone``, small enough for exact comparisons of environments."""

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from dfs_rl.data import ImageSet
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.toy_backbone import ToyBackbone, toy_images

N_IMAGES = 40
WEIGHTS = RewardWeights(cost=20.0, overshoot=3.0)


def toy_image_set() -> ImageSet:
    labels = torch.randint(0, 3, (N_IMAGES,), generator=torch.Generator().manual_seed(1))
    return ImageSet(toy_images(N_IMAGES), labels)


def toy_kwargs(*, after=(), **changes) -> dict:
    """Return keyword arguments for any of the environments, with exits ``after`` some layers."""
    backbone = ToyBackbone(exits=after)
    return {"backbone": backbone, "dataset": toy_image_set(), "reward": WEIGHTS, **changes}


def random_actions(env, steps, n, seed=0):
    """Return actions for each step and environment, ``[steps, n]``."""
    n_actions = env.task.passes.n_actions(env.task.backbone.costs)
    return np.random.default_rng(seed).integers(n_actions, size=(steps, n))


def assert_same(ours, theirs):
    """Compare nested results of reset or step, types included."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, tuple | list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        assert_same(tuple(ours), tuple(theirs))
    elif isinstance(ours, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs


def assert_steps_equal(ours, theirs, actions):
    """Step two vector environments and compare everything; return how many ended at each step."""
    ended = []
    for row in actions:
        if ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            masks = np.stack(theirs.call("action_masks"))
            np.testing.assert_array_equal(ours.action_masks(), masks)
        result = ours.step(row)
        assert_same(result, theirs.step(row))
        ended.append(int(result[2].sum()))
    return ended
