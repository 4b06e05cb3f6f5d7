"""Task of an environment: a frozen backbone, images, reward weights and optionally a budget."""

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from dfs_rl.backbones import Backbone, default_digits, load_backbone
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.backbones.storage import load_info
from dfs_rl.costs import COST_MODELS
from dfs_rl.data import Dataset, ImageSet, SplitName, load_dataset
from dfs_rl.envs.keywords import (
    BackboneLike,
    DatasetLike,
    DeviceLike,
    Pair,
    RewardLike,
    check_types,
)
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import CostWeightRange
from dfs_rl.gating.reward import RewardWeights, reward_weights
from dfs_rl.training.custom_model import build_calibrated_backbone
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.trusted_import import is_constructor, trust_constructor, trusting


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Data shared by all environments of one problem.

    Attributes:
        backbone: The network, in its inference form.
        images: Images that episodes draw from, on the backbone's device.
        reward: Reward weights.
        budget: Upper bound on computation in percent, fixed parts and gate included; ``None`` for
            none.
        class_names: Name of each class, in label order.
        cost_weight_range: Range that each episode draws its cost weight from, in place of
            ``reward.cost``; ``None`` for ``reward.cost`` in every episode.
        gate_macs: MACs per image of the gate, which count only towards the budget; 0 if unknown.

    Raises:
        ConfigError: If the budget is below the cost of the cheapest actions.
        DataError: If images or labels do not fit the backbone.
    """

    backbone: WalkableBackbone
    images: ImageSet
    reward: RewardWeights
    budget: float | None
    class_names: tuple[str, ...]
    cost_weight_range: CostWeightRange | None = None
    gate_macs: float = 0.0

    @property
    def gated_budget(self) -> float | None:
        """Budget of the gated layers, as a fraction; ``None`` if there is no budget."""
        if self.budget is None:
            return None
        return gated_budget(self.backbone.costs, self.budget, gate_macs=self.gate_macs)

    def __post_init__(self) -> None:
        _ = self.gated_budget  # raises for a budget that is too small
        expected = tuple(self.backbone.image_shape)
        if self.images.image_shape != expected:
            raise DataError(
                f"the images are {list(self.images.image_shape)} (channels, height, width), but "
                "the backbone takes "
                f"{list(expected)}."
            )
        if len(self.class_names) != self.backbone.n_classes:
            raise DataError(
                f"the data set has {len(self.class_names)} classes, but the backbone tells "
                f"{self.backbone.n_classes} apart."
            )
        highest = int(self.images.labels.max()) if len(self.images) else -1
        if not 0 <= highest < self.backbone.n_classes:
            raise DataError(
                f"the images hold label {highest}; the backbone needs some, and knows the labels 0 "
                f"to {self.backbone.n_classes - 1}."
            )


@check_types
def make_task(  # noqa: PLR0913
    *,
    backbone: BackboneLike = None,
    backbone_weights: str | Path | None = None,
    trust_code: bool = False,
    exits: bool = True,
    dataset: DatasetLike = None,
    split: SplitName = "agent",
    reward: RewardLike = None,
    budget: float | None = None,
    cost_weight_range: Pair | None = None,
    cost_model: str | None = None,
    device: DeviceLike = "cpu",
) -> Task:
    """Build a task from the arguments of an environment.

    Args:
        backbone: A folder that ``save_backbone`` wrote; ``module:function`` that builds a custom
            network; a backbone (a training form is converted to its inference form); or ``None``
            for the digits network of the package.
        backbone_weights: Weights of a custom network.
        trust_code: Allow the import of the constructor that a folder names.
        exits: Keep the exits of the backbone.
        dataset: An argument of ``load_dataset``, a data set, a set of images, or ``None`` for the
            digits.
        split: Split of the data set to draw images from.
        reward: Reward weights, as ``RewardWeights`` or a mapping of some of its fields; ``None``
            for the defaults.
        budget: Upper bound on computation in percent; ``None`` for none.
        cost_weight_range: Lowest and highest cost weight; each episode draws one in between.
            ``None`` for ``reward.cost`` in every episode.
        cost_model: Registered cost model; ``None`` for that of the backbone.
        device: Device of backbone and images.

    Returns:
        The task.

    Raises:
        ConfigError: If a value is invalid.
        DataError: If the data is missing or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """
    rewarded, place = reward_weights(reward), resolve_device(device)
    data = _resolve_dataset(dataset, backbone)
    if is_constructor(backbone):
        backbone = _users_backbone(str(backbone), backbone_weights, data, device=str(place))
    elif backbone_weights is not None:
        given = backbone if isinstance(backbone, str | Path | None) else type(backbone).__name__
        raise ConfigError(
            f"backbone_weights is {backbone_weights}, but backbone is {given}; weights go with "
            "module:function."
        )
    with trusting(trust_code):
        frozen = _resolve_backbone(backbone, place, exits=exits, cost_model=cost_model)
    if isinstance(data, ImageSet):
        images, class_names = data, tuple(str(label) for label in range(frozen.n_classes))
    else:
        images, class_names = data.split(split), data.class_names
    return Task(
        backbone=frozen,
        images=images.to(place),
        reward=rewarded,
        budget=budget,
        class_names=class_names,
        cost_weight_range=None
        if cost_weight_range is None
        else CostWeightRange(lowest=cost_weight_range[0], highest=cost_weight_range[1]),
    )


def _users_backbone(
    name: str, checkpoint: str | Path | None, data: Dataset | ImageSet, *, device: str
) -> Backbone:
    """Build and calibrate a custom network on the train split of a data set."""
    if isinstance(data, ImageSet):
        raise ConfigError(
            f"backbone is {name!r}, which is calibrated on a train split, but dataset is an "
            "ImageSet; give a name or folder, or a Dataset."
        )
    trust_constructor(name)
    file = None if checkpoint is None else Path(checkpoint)
    return build_calibrated_backbone(name, data, weights=file, device=device).backbone


def _resolve_backbone(
    backbone: object, device: torch.device, *, exits: bool, cost_model: str | None
) -> WalkableBackbone:
    if backbone is None:
        backbone = _default_backbone() if cost_model is None else default_digits()
    elif isinstance(backbone, str | Path):
        backbone = load_backbone(Path(backbone))
    if not exits:
        backbone = _without_exits(backbone)
    if cost_model is not None:
        backbone = _with_cost_model(backbone, cost_model)
    if hasattr(backbone, "to_inference"):
        backbone = backbone.to_inference()
    if not isinstance(backbone, WalkableBackbone):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}; allowed are a folder, module:function, a "
            "WalkableBackbone, or None for the digits."
        )
    if isinstance(backbone, nn.Module):
        backbone.to(device)
    return backbone


def _with_cost_model(backbone: object, cost_model: str) -> object:
    """Return a copy of a backbone with another cost model; the argument keeps its own."""
    COST_MODELS.find(cost_model, setting="cost_model")
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"cost_model is {cost_model!r}, but the backbone is a {type(backbone).__name__}, whose "
            "costs cannot be replaced; give its training form, or a folder."
        )
    changed = copy.deepcopy(backbone)
    changed.set_cost_model(cost_model)
    return changed


def _without_exits(backbone: object) -> object:
    """Return a copy of a backbone without exits; the argument keeps its own."""
    if not isinstance(backbone, WalkableBackbone) or not backbone.costs.exits:
        return backbone
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"exits is False, but the backbone is a {type(backbone).__name__} with exits after "
            f"{list(backbone.costs.exits_after)} layers "
            "that cannot be taken away; give its training form, or a folder."
        )
    changed = copy.deepcopy(backbone)
    changed.set_exits(())
    return changed


def _resolve_dataset(dataset: object, backbone: object) -> Dataset | ImageSet:
    """Load a data set by name, at the image size of a stored backbone."""
    stored = isinstance(backbone, str | Path) and not is_constructor(backbone)
    image_size = load_info(Path(str(backbone))).image_size if stored else None
    if image_size is None and (dataset is None or dataset == DIGITS):
        dataset = _digits()
    elif dataset is None or isinstance(dataset, str | Path):
        dataset = load_dataset(str(dataset or DIGITS), image_size=image_size)
    if not isinstance(dataset, Dataset | ImageSet):
        raise ConfigError(
            f"dataset is a {type(dataset).__name__}; allowed are a name or folder, a Dataset, an "
            "ImageSet, or None for the digits."
        )
    return dataset


# Cached, because a vector of n single environments loads the defaults n times.
@cache
def _default_backbone() -> WalkableBackbone:
    return default_digits().to_inference()


@cache
def _digits() -> Dataset:
    return load_dataset(DIGITS)
