"""What an environment is about: a frozen backbone, images, a reward and perhaps a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from dfs_rl.backbones import default_digits, load_backbone
from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data import Dataset, ImageSet, SplitName, load_dataset
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.gating.dial import PriceRange
from dfs_rl.gating.masks import gated_budget
from dfs_rl.gating.reward import RewardWeights

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Everything that environments over the same problem share.

    Attributes:
        backbone: The network, frozen.
        images: The images that episodes draw from, on the backbone's device.
        weights: What a walk is rewarded for.
        budget: Upper bound on computation in percent, fixed parts and gate included; ``None`` for none.
        prices: Of computation, of which each episode draws one, instead of ``weights.cost``; ``None`` for that alone.
        class_names: Name of each class, in label order.
        gate_macs: MACs per image of the gate that walks, which count towards the budget alone; 0 where it is not known.

    Raises:
        ConfigError: If the budget does not suffice for the cheapest choices.
        DataError: If images or labels do not fit the backbone.
    """

    backbone: WalkableBackbone
    images: ImageSet
    weights: RewardWeights
    budget: float | None
    class_names: tuple[str, ...]
    prices: PriceRange | None = None
    gate_macs: float = 0.0

    @property
    def gated_budget(self) -> float | None:
        """What the gated layers may spend, as a fraction; ``None`` if there is no budget."""
        if self.budget is None:
            return None
        return gated_budget(self.backbone.costs, self.budget, gate_macs=self.gate_macs)

    def __post_init__(self) -> None:
        _ = self.gated_budget  # refuses one that is not enough
        expected = tuple(self.backbone.image_shape)
        if self.images.image_shape != expected:
            raise DataError(
                f"the images are {list(self.images.image_shape)} (channels, height, width), but the backbone takes "
                f"{list(expected)}."
            )
        if len(self.class_names) != self.backbone.n_classes:
            raise DataError(
                f"the data set has {len(self.class_names)} classes, but the backbone tells {self.backbone.n_classes} apart."
            )
        highest = int(self.images.labels.max()) if len(self.images) else -1
        if not 0 <= highest < self.backbone.n_classes:
            raise DataError(
                f"the images hold label {highest}; the backbone needs some, and knows the labels 0 to {self.backbone.n_classes - 1}."
            )


def make_task(
    *,
    backbone: str | Path | WalkableBackbone | None = None,
    dataset: str | Dataset | ImageSet | None = None,
    split: SplitName = "agent",
    weights: RewardWeights | None = None,
    budget: float | None = None,
    cost_weights: tuple[float, float] | None = None,
    device: str | torch.device = "cpu",
) -> Task:
    """Build a task from what a user may pass to an environment.

    Args:
        backbone: A folder that ``save_backbone`` wrote, a backbone (the training form is frozen first), or ``None`` for the
            digits network that ships with the package.
        dataset: What ``load_dataset`` takes, a data set, a set of images, or ``None`` for the digits.
        split: Which images of a data set to draw from.
        weights: What a walk is rewarded for; ``None`` for the defaults.
        budget: Upper bound on computation in percent; ``None`` for none.
        cost_weights: Lowest and highest price of computation, of which each episode draws one; ``None`` for ``weights.cost``.
        device: Where backbone and images live.

    Raises:
        ConfigError: If a value is not allowed.
        DataError: If the data cannot be found or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """
    frozen = _resolve_backbone(backbone, torch.device(device))
    images, class_names = _resolve_images(dataset, split, frozen.n_classes)
    prices = None if cost_weights is None else _price_range(cost_weights)
    return Task(
        backbone=frozen,
        images=images.to(device),
        weights=RewardWeights() if weights is None else weights,
        budget=budget,
        class_names=class_names,
        prices=prices,
    )


def _price_range(cost_weights: object) -> PriceRange:
    if not isinstance(cost_weights, Sequence) or len(cost_weights) != 2:  # noqa: PLR2004 - two ends
        raise ConfigError(
            f"cost_weights is {cost_weights!r}; allowed is a pair, the lowest and the highest."
        )
    return PriceRange(lowest=float(cost_weights[0]), highest=float(cost_weights[1]))


def _resolve_backbone(backbone: object, device: torch.device) -> WalkableBackbone:
    if backbone is None:
        backbone = _default_backbone()
    elif isinstance(backbone, str | Path):
        backbone = load_backbone(Path(backbone))
    if hasattr(backbone, "prepare"):
        backbone = backbone.prepare()
    if not isinstance(backbone, WalkableBackbone):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}; allowed are a folder, a WalkableBackbone, or None for the digits."
        )
    if isinstance(backbone, nn.Module):
        backbone.to(device)
    return backbone


def _resolve_images(
    dataset: object, split: SplitName, n_classes: int
) -> tuple[ImageSet, tuple[str, ...]]:
    if isinstance(dataset, ImageSet):
        return dataset, tuple(str(label) for label in range(n_classes))
    if dataset is None or dataset == DIGITS:
        dataset = _digits()
    elif isinstance(dataset, str | Path):
        dataset = load_dataset(str(dataset))
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"dataset is a {type(dataset).__name__}; allowed are a name or folder, a Dataset, an ImageSet, or None for the digits."
        )
    return dataset.split(split), dataset.class_names


# The defaults are read once per process: a vector of n single environments asks n times.
@cache
def _default_backbone() -> WalkableBackbone:
    return default_digits().prepare()


@cache
def _digits() -> Dataset:
    return load_dataset(DIGITS)
