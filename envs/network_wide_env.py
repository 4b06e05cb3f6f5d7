"""Gymnasium's environment of static mixed precision: one episode gives every layer its bits, for all images."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dfs_rl.data import SplitName
from dfs_rl.envs.descriptors import N_DESCRIPTORS, layer_descriptors, observe_layer, round_to_menu
from dfs_rl.envs.keywords import BackboneLike, DatasetLike, DeviceLike, check_types
from dfs_rl.envs.spaces import check_options
from dfs_rl.envs.task import make_task
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.static_tables.budget import fit_to_budget_haq, static_table_computation
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScorer,
    evenly_spaced_subset,
)
from dfs_rl.gating.reward import RewardWeights

POINTS_PER_REWARD = 10.0
"""With a budget, so many points of accuracy are a reward of 1, as in HAQ, whose factor is 0.1."""

Observation = NDArray[np.float32]
Action = np.int64 | NDArray[np.float32]


class NetworkWideEnv(gymnasium.Env[Observation, Action]):
    """Choose, for all images at once, how many bits each layer of a trained network runs at.

    ## Description
    An episode makes one table: it walks through the gated layers of a frozen network and gives each
    a bit width from a menu. 0 skips the layer, 32 runs it in full precision, the others run it with
    weights and activations quantized to that many bits. After the last layer the table is tried on
    a batch of images. This is static mixed precision by reinforcement, as in HAQ (Wang et al., CVPR
    2019), which a gate that chooses for each image has to beat. Nothing is trained while an episode
    runs.

    ## Action space
    `Discrete(n)`: an index into the ascending menu, by default of 6 options, see
    `FractionalSkippingEnv`. With `continuous=True` `Box(0, 1, (1,))`, of which each of the `n`
    options has a stretch of length `1 / n`.

    ## Observation space
    `Box(0, 1, (10,))`, float32. "Relative" is relative to the layer that has most.

    | Index | What | Unit |
    |---|---|---|
    | 0 | layer to choose for | index / (layers - 1) |
    | 1, 2 | channels that enter, that leave | relative |
    | 3 | positions (height x width) that enter | relative |
    | 4 | positions that are lost | share, 0.75 for a stride of 2 |
    | 5, 6 | MACs, weights | relative |
    | 7 | whether the shape changes | 0 or 1 |
    | 8 | previous action, 0 at the first layer | in [0, 1]; a discrete one over (n - 1) |
    | 9 | spent so far, as chosen | log2(1 + 32 sqrt(fraction)) / log2(33), as in
    `FractionalSkippingEnv` |

    After the last layer 0 to 7 stay at the last one.

    ## Reward
    0 until the last layer. Then, without a budget, the share of images that are classified rightly
    minus `cost_weight` times the table's cost as a fraction of running every gated layer at 32 bit:
    the mean over the images of what `FractionalSkippingEnv` returns with `RewardWeights(accuracy=1,
    log_likelihood=0, cost=cost_weight)`. With a budget, a tenth of the points of accuracy between
    the table and the dearest one, mostly between -8 and 0, and computation has no price.

    ## Budget
    `budget` bounds `computation`, and is enforced before the table is tried, by HAQ's rule: the
    layers are lowered by one option each, from the last to the first and round again, until the
    table fits.

    ## Start
    The first layer. Nothing is drawn at random: the batch is `images` images spread evenly over the
    split, so a table's reward never changes and is computed once.

    ## End
    Terminated after the last gated layer, so an episode always has as many steps as there are gated
    layers. Never truncated.

    ## Info
    After the last step, of the table as it was tried: `options` and `bits`, int64 `[layers]`,
    `accuracy` (percent) and `computation` (percent of running every gated layer at 32 bit, the
    never-gated parts included).

    ## Versions
    v0: first version.

    Args:
        backbone: As in `FractionalSkippingEnv`; exits that it has are not used, because a table
            says what every layer does.
        backbone_weights: As in `FractionalSkippingEnv`.
        trust_code: Whether to import the constructor, `module:function`, that a folder names.
        dataset: What `load_dataset` takes, a `Dataset`, an `ImageSet`, or `None` for the digits.
        split: Which images of a data set to try tables on: `train`, `agent`, `val` or `test`.
        images: How many of them, all where there are fewer.
        cost_weight: Price of computation where there is no budget; 1 is the price of running
            everything at 32 bit.
        budget: Upper bound on computation in percent; `None` for none.
        continuous: Whether an action is a number in [0, 1] and not an index.
        device: Where the backbone runs.

    Attributes:
        task: Backbone, split, reward and budget.
        scorer: Tries tables on the batch, each once.

    Raises:
        ConfigError: If a value is not allowed, or the budget does not suffice for the cheapest
            table.
        DataError: If the data cannot be found or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    @check_types
    def __init__(
        self,
        *,
        backbone: BackboneLike = None,
        backbone_weights: str | Path | None = None,
        trust_code: bool = False,
        dataset: DatasetLike = None,
        split: SplitName = "agent",
        images: int = 1000,
        cost_weight: float = 10.0,
        budget: float | None = None,
        continuous: bool = False,
        device: DeviceLike = "cpu",
    ) -> None:
        if images < 1:
            raise ConfigError(f"images is {images}; at least 1 is needed.")
        self.task = make_task(
            backbone=backbone,
            backbone_weights=backbone_weights,
            trust_code=trust_code,
            dataset=dataset,
            split=split,
            reward=RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=cost_weight),
            budget=budget,
            device=device,
        )
        self.scorer = StaticTableScorer(
            self.task.backbone, evenly_spaced_subset(self.task.images, images)
        )
        self._described = layer_descriptors(self.task.backbone)
        n_options = len(self.task.backbone.options)
        self.observation_space = spaces.Box(0.0, 1.0, (N_DESCRIPTORS,), np.float32)
        self.action_space = (
            spaces.Box(0.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(n_options)
        )
        self._chosen: list[int] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new table; there is nothing to draw, and no option to give."""
        check_options(options)
        super().reset(seed=seed)
        self._chosen = []
        return self._observe(0.0), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Give the next layer its option; after the last one, try the table."""
        if self._chosen is None:
            raise gymnasium.error.ResetNeeded(
                "the episode is over or none was begun: call reset() first."
            )
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(
                f"action {action!r} is not allowed; needed is one of {self.action_space}."
            )
        menu, n_layers = self.task.backbone.options, self.task.backbone.costs.n_layers
        if isinstance(self.action_space, spaces.Box):
            previous = float(np.asarray(action)[0])
            option = round_to_menu(previous, len(menu))
        else:
            option = int(action)
            previous = option / max(1, menu.full)
        self._chosen.append(option)
        observation = self._observe(previous)
        if len(self._chosen) < n_layers:
            return observation, 0.0, False, False, {}
        table, self._chosen = tuple(self._chosen), None
        reward, info = self._evaluate(table)
        return observation, reward, True, False, info

    def _observe(self, previous: float) -> Observation:
        assert self._chosen is not None
        costs = self.task.backbone.costs
        price = costs.option_costs()
        spent = sum(float(price[layer, option]) for layer, option in enumerate(self._chosen))
        return observe_layer(self._described, len(self._chosen), previous=previous, spent=spent)

    def _evaluate(self, chosen: StaticTable) -> tuple[float, dict[str, Any]]:
        """Return the reward and the info of a table, lowered to the budget if there is one."""
        task, costs, menu = self.task, self.task.backbone.costs, self.task.backbone.options
        table = chosen
        if task.budget is not None:
            table = fit_to_budget_haq(chosen, costs, task.budget)
        accuracy = self.scorer.accuracy(table)
        if task.budget is not None:
            reference = self.scorer.accuracy((menu.full,) * costs.n_layers)
            reward = (accuracy - reference) / POINTS_PER_REWARD
        else:
            spent = float(costs.fractions(torch.tensor([table])))
            reward = accuracy / 100.0 - task.reward.cost * spent
        options = np.array(table, dtype=np.int64)
        return reward, {
            "options": options,
            "bits": np.array(menu.values, dtype=np.int64)[options],
            "accuracy": np.float64(accuracy),
            "computation": np.float64(static_table_computation(costs, table)),
        }
