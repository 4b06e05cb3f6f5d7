"""The 5,000 MNIST digits that ship with the package."""

from pathlib import Path

import numpy as np
import torch

from dfs_rl.data.images import Dataset, ImageSet
from dfs_rl.data.splits import SplitFractions, plan_splits
from dfs_rl.utils.constants import MNIST5K

_FILE = Path(__file__).parent / "mnist5k" / "mnist5k.npz"
_FRACTIONS = SplitFractions(agent=0.2, val=0.1, test=0.3)


def load_mnist5k() -> Dataset:
    """Return 2,000 train, 1,000 agent, 500 val and 1,500 test images of 28 x 28 pixels."""
    with np.load(_FILE, allow_pickle=False) as stored:
        images, labels = stored["images"][:, None], stored["labels"].astype(np.int64)
    names = tuple("0123456789")
    plan = plan_splits(labels, None, _FRACTIONS, class_names=names)
    train, agent, val, test = (
        ImageSet(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]))
        for rows in (plan.train, plan.agent, plan.val, plan.test)
    )
    return Dataset(
        name=MNIST5K,
        class_names=names,
        train=train,
        agent=agent,
        val=val,
        test=test,
        flip=False,
    )
