"""Task of an environment: a frozen backbone, images, reward weights and optionally a budget."""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from pydantic import BeforeValidator, ConfigDict, SkipValidation, ValidationError, validate_call
from torch import nn

from dfs_rl.backbones import PRETRAINED_DIGITS, Backbone, default_digits, load_backbone
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.backbones.storage import load_info
from dfs_rl.costs import COMPUTATION, check_cost_model
from dfs_rl.costs.latency_profile import LatencySettings, check_cost
from dfs_rl.costs.machine import load_latency_profile
from dfs_rl.data import Dataset, ImageSet, SplitName, load_dataset
from dfs_rl.data.layout import few
from dfs_rl.envs.spaces import action_space, observation_space
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import CostWeightRange
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.reward import RewardWeights, reward_weights
from dfs_rl.training.custom_model import build_calibrated_backbone
from dfs_rl.utils.config import config_from_dict, error_message
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.io import to_json_value
from dfs_rl.utils.trusted_import import is_constructor, trust_constructor, trusting

P = ParamSpec("P")
R = TypeVar("R")

# JSON has no tuples.
_Pair = Annotated[
    tuple[float, float],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list | np.ndarray) else value),
]


def check_types(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise ``ConfigError`` for arguments that do not fit its annotations."""
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    checked: Callable[..., R] = validate_call(config=strict)(function)
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        arguments |= arguments.pop(rest, {})
        for name, value in arguments.items():
            if isinstance(value, np.number | np.bool_):
                arguments[name] = value.item()
        try:
            return checked(**arguments)
        except ValidationError as error:
            raise ConfigError(error_message(error, arguments, object)[1]) from None

    return call


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
        gate_macs: MACs per image of the gate, which count only towards the budget and for further
            passes; 0 if unknown.
        passes: Passes that an episode may have.

    Raises:
        ConfigError: If the budget is below the cost of the cheapest actions.
        DataError: If images or labels do not fit the backbone.
    """

    backbone: GatedBackbone
    images: ImageSet
    reward: RewardWeights
    budget: float | None
    class_names: tuple[str, ...]
    cost_weight_range: CostWeightRange | None = None
    gate_macs: float = 0.0
    passes: PassSettings = SINGLE_PASS

    @property
    def gated_budget(self) -> float | None:
        """Budget of the gated layers, as a fraction; ``None`` if there is no budget."""
        if self.budget is None:
            return None
        return gated_budget(self.backbone.costs, self.budget, gate_macs=self.gate_macs)

    @property
    def observation_space(self) -> spaces.Dict:
        """Observation space of one environment."""
        conditioned = self.cost_weight_range is not None
        return observation_space(self.backbone, budget_conditioning=conditioned, passes=self.passes)

    @property
    def action_space(self) -> spaces.Discrete:
        """Action space of one environment."""
        return action_space(self.backbone, self.passes)

    def __post_init__(self) -> None:
        _ = self.gated_budget  # raises for a budget that is too small
        expected, n_classes = tuple(self.backbone.image_shape), self.backbone.n_classes
        if self.images.image_shape != expected:
            raise DataError(
                f"the images are {list(self.images.image_shape)} (channels, height, width), but "
                f"the backbone takes {list(expected)}."
            )
        if len(self.class_names) != n_classes:
            raise DataError(
                f"the data set has {len(self.class_names)} classes, but the backbone has "
                f"{n_classes}."
            )
        if not len(self.images):
            raise DataError("the split has no image; an environment needs at least one.")
        lowest, highest = (int(end) for end in self.images.labels.aminmax())
        if lowest < 0 or highest >= n_classes:
            raise DataError(
                f"the images have labels from {lowest} to {highest}; allowed are labels from 0 to "
                f"{n_classes - 1}."
            )


@check_types
def make_task(  # noqa: PLR0913
    *,
    backbone: SkipValidation[str | Path | GatedBackbone | None] = None,
    backbone_weights: str | Path | None = None,
    trust_code: bool = False,
    exits: bool = True,
    dataset: SkipValidation[str | Path | Dataset | ImageSet | None] = None,
    split: SplitName = "agent",
    reward: SkipValidation[RewardWeights | Mapping[str, object] | None] = None,
    budget: float | None = None,
    cost_weight_range: _Pair | None = None,
    cost: str | None = None,
    latency: SkipValidation[LatencySettings | Mapping[str, object] | None] = None,
    passes: SkipValidation[PassSettings | Mapping[str, object] | int | None] = None,
    device: SkipValidation[str | torch.device] = "cpu",
) -> Task:
    """Build a task from the keywords of ``FractionalSkippingEnv``, which names the errors too."""
    weights, place = reward_weights(reward), resolve_device(device)
    data = _resolve_dataset(dataset, PRETRAINED_DIGITS if backbone is None else backbone)
    if is_constructor(backbone):
        backbone = _custom_backbone(str(backbone), backbone_weights, data, device=str(place))
    elif backbone_weights is not None:
        given = backbone if isinstance(backbone, str | Path | None) else type(backbone).__name__
        raise ConfigError(
            f"backbone_weights is {backbone_weights}, but backbone is {given}; give the weights of "
            "module:function only."
        )
    with trusting(trust_code):
        frozen = _resolve_backbone(backbone, place, exits=exits, cost=cost, latency=latency)
    if isinstance(data, ImageSet):
        images, class_names = data, tuple(str(label) for label in range(frozen.n_classes))
    else:
        images, class_names = data.split(split), data.class_names
    range_ = None
    if cost_weight_range is not None:
        range_ = CostWeightRange(lowest=cost_weight_range[0], highest=cost_weight_range[1])
    return Task(
        backbone=frozen,
        images=images.to(place),
        reward=weights,
        budget=budget,
        class_names=class_names,
        cost_weight_range=range_,
        passes=pass_settings(passes),
    )


def pass_settings(given: object) -> PassSettings:
    """Convert a number of passes, a mapping of some settings, or ``None`` for a single pass.

    Raises:
        ConfigError: If the type, a name or a value is invalid.
    """
    if isinstance(given, PassSettings):
        return given
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return PassSettings(limit=1 if given is None else given)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"passes is {given!r}; allowed are a number from 1 on, a mapping such as {{'limit': 3, "
            "'mirrored': True}, PassSettings, or None for a single pass."
        )
    return config_from_dict(to_json_value(given), PassSettings, "passes")


def _custom_backbone(
    name: str, weights: str | Path | None, data: Dataset | ImageSet, *, device: str
) -> Backbone:
    """Build a custom network and calibrate it on the train split of a data set."""
    if isinstance(data, ImageSet):
        raise ConfigError(
            f"backbone is {name!r}, which is calibrated on a train split, but dataset is an "
            "ImageSet; give a name or folder, or a Dataset."
        )
    trust_constructor(name)
    file = None if weights is None else Path(weights)
    return build_calibrated_backbone(name, data, weights=file, device=device).backbone


def _resolve_backbone(
    backbone: object, device: torch.device, *, exits: bool, cost: str | None, latency: object
) -> GatedBackbone:
    if backbone is None:
        backbone = _default_backbone() if cost is None else default_digits()
    elif isinstance(backbone, str | Path):
        backbone = load_backbone(Path(backbone))
    if not exits and isinstance(backbone, GatedBackbone) and backbone.costs.exits:
        changed = _own_copy(backbone, "exits is False, but the exits")
        changed.set_exits(())
        backbone = changed
    measured = _latency_settings(latency)
    if cost is not None or measured.profile is not None:
        cost = cost or COMPUTATION
        check_cost_model(cost)
        check_cost(cost, measured)
        changed = _own_copy(backbone, f"cost is {cost!r}, but the costs")
        changed.set_cost_model(cost, load_latency_profile(measured))
        backbone = changed
    if hasattr(backbone, "to_inference"):
        backbone = backbone.to_inference()
    if not isinstance(backbone, GatedBackbone):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}; allowed are a folder, module:function, a "
            "GatedBackbone, or None for the digits."
        )
    if isinstance(backbone, nn.Module):
        backbone.to(device)
    return backbone


def _latency_settings(given: object) -> LatencySettings:
    if given is None or isinstance(given, LatencySettings):
        return given or LatencySettings()
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"latency is {given!r}; allowed are a mapping such as {{'profile': 'profile.json'}}, "
            "LatencySettings, or None."
        )
    return config_from_dict(to_json_value(given), LatencySettings, "latency")


def _own_copy(backbone: object, problem: str) -> Backbone:
    """Return a copy that may change, or raise ``ConfigError``; the argument stays as it is."""
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"{problem} of a {type(backbone).__name__} cannot be changed; give its training form, "
            "or a folder."
        )
    return copy.deepcopy(backbone)


def _resolve_dataset(dataset: object, backbone: object) -> Dataset | ImageSet:
    """Load a data set by name, at the image size of a stored backbone, and check its classes."""
    stored = isinstance(backbone, str | Path) and not is_constructor(backbone)
    info = load_info(Path(str(backbone))) if stored else None
    image_size = None if info is None else info.image_size
    if image_size is None and (dataset is None or dataset == DIGITS):
        dataset = _digits()
    elif dataset is None or isinstance(dataset, str | Path):
        dataset = load_dataset(str(dataset or DIGITS), image_size=image_size)
    if not isinstance(dataset, Dataset | ImageSet):
        raise ConfigError(
            f"dataset is a {type(dataset).__name__}; allowed are a name or folder, a Dataset, an "
            "ImageSet, or None for the digits."
        )
    if info is None or isinstance(dataset, ImageSet) or info.class_names == dataset.class_names:
        return dataset
    raise DataError(
        f"backbone {backbone} tells the classes of {info.dataset!r} apart "
        f"({few(info.class_names)}), but data set {dataset.name!r} has {few(dataset.class_names)}."
    )


# Cached, because a vector of n single environments loads the defaults n times.
@cache
def _default_backbone() -> GatedBackbone:
    return default_digits().to_inference()


@cache
def _digits() -> Dataset:
    return load_dataset(DIGITS)
