"""Gymnasium environment of static mixed precision: an episode chooses bits for all images."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dfs_rl.backbones.interfaces import GatedBackbone, activations
from dfs_rl.envs.spaces import check_options
from dfs_rl.envs.task import check_types, make_task
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScorer,
    check_table_budget,
    evenly_spaced_subset,
    fit_to_budget_haq,
    static_table_computation,
)
from dfs_rl.gating.observation import cost_scale
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.config import PositiveInt

N_DESCRIPTORS = 8
"""Number of descriptors of a layer."""
POINTS_PER_REWARD = 10.0
"""Points of accuracy for a reward of 1 with a budget; HAQ uses a factor of 0.1."""

_FIXED = {"exits", "reward", "cost_weight_range", "passes"}
"""Keywords of ``make_task`` that make no sense for one table."""

Observation = NDArray[np.float32]
Action = np.int64 | NDArray[np.float32]


class NetworkWideEnv(gymnasium.Env[Observation, Action]):
    """Choose, for all images at once, the bit width of each layer of a trained network.

    ## Description
    An episode builds one static bit table: at each gated layer of a frozen network the agent picks
    one of the bit options. 0 skips the layer, 32 runs it in full precision, the others run it with
    weights and activations quantized to that many bits. After the last layer the table is evaluated
    on a batch of images. This is static mixed precision by reinforcement learning, as in HAQ (Wang
    et al., CVPR 2019), the baseline of a gate that chooses for each image. Nothing is trained
    during an episode.

    ## Action space
    `Discrete(n)`: an index into the ascending bit options, by default 6, see
    `FractionalSkippingEnv`. With `continuous=True` it is `Box(0, 1, (1,))`, divided into `n`
    intervals of length `1 / n`, one per option.

    ## Observation space
    `Box(0, 1, (10,))`, float32. "Relative" means relative to the layer with the largest value.

    | Index | Content | Unit |
    |---|---|---|
    | 0 | layer to choose for | index / (layers - 1) |
    | 1, 2 | input channels, output channels | relative |
    | 3 | input positions (height x width) | relative |
    | 4 | removed positions | share, 0.75 for a stride of 2 |
    | 5, 6 | MACs, weights | relative |
    | 7 | change of the shape | 0 or 1 |
    | 8 | previous action, 0 at the first layer | in [0, 1]; a discrete one over (n - 1) |
    | 9 | spent so far, as chosen | log2(1 + 32 sqrt(fraction)) / log2(33) |

    After the last layer, 0 to 7 keep the values of the last layer.

    ## Reward
    0 until the last layer. Then, without a budget, the share of correctly classified images minus
    `cost_weight` times the table's cost as a fraction of running every gated layer at 32 bit: the
    mean over the images of the return of `FractionalSkippingEnv` with `RewardWeights(accuracy=1,
    log_likelihood=0, cost=cost_weight)`. With a budget, a tenth of the difference in accuracy, in
    points, between the table and the most expensive one, mostly between -8 and 0; the cost weight
    has no effect.

    ## Budget
    `budget` bounds `computation`, and is enforced before the table is evaluated, by HAQ's rule: the
    layers are lowered by one option each, from the last to the first, repeatedly, until the table
    fits.

    ## Start
    The first layer. Nothing is random: the batch consists of `images` images spread evenly over the
    split, so a table's reward never changes and is computed once.

    ## End
    Terminated after the last gated layer, so an episode has one step per gated layer. Never
    truncated.

    ## Info
    After the last step, for the evaluated table: `options` and `bits`, int64 `[layers]`,
    `accuracy` (percent) and `computation` (percent of running every gated layer at 32 bit, the
    never-gated parts included).

    ## Versions
    v0: first version.

    Args:
        images: Number of images; all if the split has fewer.
        cost_weight: Cost weight without a budget, per unit of running everything at 32 bit.
        continuous: Use actions in [0, 1] in place of indices.
        keywords: The keywords `backbone`, `backbone_weights`, `trust_code`, `dataset`, `split`,
            `budget` and `device` of `FractionalSkippingEnv`. Exits of the backbone are not used,
            because a static bit table covers every layer.

    Attributes:
        task: Backbone, split, reward weights and budget.
        scorer: Evaluator of tables on the batch, with a cache.

    Raises:
        ConfigError: If a value is invalid, or the budget is below the cost of the cheapest table.
        DataError: If the data is missing or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    @check_types
    def __init__(
        self,
        *,
        images: PositiveInt = 1000,
        cost_weight: float = 10.0,
        continuous: bool = False,
        **keywords: Any,  # noqa: ANN401
    ) -> None:
        for name in _FIXED.intersection(keywords):
            raise ConfigError(
                f"{name} is {keywords[name]!r}, but an episode of dfs_rl/NetworkWide-v0 chooses a "
                f"static bit table; it has no {name}."
            )
        weights = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=cost_weight)
        self.task = make_task(reward=weights, **keywords)
        if self.task.budget is not None:
            check_table_budget(self.task.backbone.costs, self.task.budget, exits=False)
        self.scorer = StaticTableScorer(
            self.task.backbone, evenly_spaced_subset(self.task.images, images)
        )
        self._described = layer_descriptors(self.task.backbone)
        n_options = len(self.task.backbone.options)
        self.observation_space = spaces.Box(0.0, 1.0, (N_DESCRIPTORS + 2,), np.float32)
        self.action_space = (
            spaces.Box(0.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(n_options)
        )
        self._chosen: list[int] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new table; `reset` draws nothing at random and has no options."""
        check_options(options)
        super().reset(seed=seed)
        self._chosen = []
        return self._observe(0.0), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Set the option of the next layer; after the last one, evaluate the table."""
        if self._chosen is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() first.")
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(
                f"action {action!r} is not allowed; needed is one of {self.action_space}."
            )
        options = self.task.backbone.options
        if isinstance(self.action_space, spaces.Box):
            previous = float(np.asarray(action)[0])
            option = round_to_option(previous, len(options))
        else:
            option = int(action)
            previous = option / max(1, options.full)
        self._chosen.append(option)
        observation = self._observe(previous)
        if len(self._chosen) < self.task.backbone.costs.n_layers:
            return observation, 0.0, False, False, {}
        table, self._chosen = tuple(self._chosen), None
        reward, info = self._evaluate(table)
        return observation, reward, True, False, info

    def _observe(self, previous: float) -> Observation:
        assert self._chosen is not None
        costs = self.task.backbone.costs.option_costs()
        spent = sum(float(costs[layer, option]) for layer, option in enumerate(self._chosen))
        return observe_layer(self._described, len(self._chosen), previous=previous, spent=spent)

    def _evaluate(self, table: StaticTable) -> tuple[float, dict[str, Any]]:
        """Return reward and info of a table, lowered to the budget if there is one."""
        task, costs, options = self.task, self.task.backbone.costs, self.task.backbone.options
        if task.budget is not None:
            table = fit_to_budget_haq(table, costs, task.budget)
        accuracy = self.scorer.accuracy(table)
        if task.budget is not None:
            reference = self.scorer.accuracy((options.full,) * costs.n_layers)
            reward = (accuracy - reference) / POINTS_PER_REWARD
        else:
            spent = float(costs.fractions(torch.tensor([table])))
            reward = accuracy / 100.0 - task.reward.cost * spent
        chosen = np.array(table, dtype=np.int64)
        return reward, {
            "options": chosen,
            "bits": np.array(options.values, dtype=np.int64)[chosen],
            "accuracy": np.float64(accuracy),
            "computation": np.float64(static_table_computation(costs, table)),
        }


@torch.inference_mode()
def layer_descriptors(backbone: GatedBackbone) -> NDArray[np.float32]:
    """Return HAQ's descriptors of every gated layer, float32 ``[layers, 8]``.

    Where all convolutions of a layer have the size of its output, as in a residual block, MACs over
    output positions are the number of weights.
    """
    costs = backbone.costs
    device = backbone.feature_mean.device
    empty = torch.zeros(1, *backbone.image_shape, dtype=torch.uint8, device=device)
    most = backbone.options[backbone.options.full]
    # Before each gated layer, and after the last.
    shapes = [tuple(h.shape[1:]) for h in activations(backbone, backbone.stem(empty), most)]
    positions = [prod(shape[1:]) for shape in shapes]
    channels = [shape[0] for shape in shapes]
    described = np.empty((costs.n_layers, N_DESCRIPTORS))
    described[:, 0] = np.arange(costs.n_layers) / max(1, costs.n_layers - 1)
    described[:, 1] = _relative(channels[:-1])
    described[:, 2] = _relative(channels[1:])
    described[:, 3] = _relative(positions[:-1])
    kept = [after / before for before, after in pairwise(positions)]
    described[:, 4] = np.clip(1.0 - np.array(kept), 0.0, 1.0)
    described[:, 5] = _relative(costs.layer_macs)
    weights = [m / p for m, p in zip(costs.layer_macs, positions[1:], strict=True)]
    described[:, 6] = _relative(weights)
    described[:, 7] = [before != after for before, after in pairwise(shapes)]
    return described.astype(np.float32)


def observe_layer(
    fixed: NDArray[np.float32], layer: int, *, previous: float, spent: float
) -> NDArray[np.float32]:
    """Return the observation before a layer's choice; after the last one, that of the last."""
    scaled = float(cost_scale(torch.tensor(spent, dtype=torch.float64)))
    row = fixed[min(layer, len(fixed) - 1)]
    return np.append(row, np.array([previous, scaled], dtype=np.float32))


def round_to_option(action: float, n_options: int) -> int:
    """Return the option of a continuous action in [0, 1], with equal intervals as in HAQ."""
    return min(int(action * n_options), n_options - 1)


def _relative(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64) / max(values)
