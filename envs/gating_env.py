"""Gymnasium's single environment."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dfs_rl.data import SplitName
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.keywords import BackboneLike, DatasetLike, DeviceLike, Pair, RewardLike
from dfs_rl.envs.sampling import ImageSampler
from dfs_rl.envs.spaces import (
    METADATA,
    EpisodeResult,
    ObservationBatch,
    action_space,
    check_options,
    observation_space,
    per_environment,
    sample_preferences,
)
from dfs_rl.envs.task import make_task
from dfs_rl.errors import ConfigError

Observation = dict[str, Any]


class FractionalSkippingEnv(gymnasium.Env[Observation, np.int64]):
    """Choose, for one image, how many bits each layer of a trained network runs at.

    ## Description
    An episode walks one image through the gated layers of a frozen network. At each layer the agent
    picks a bit width from a
    menu: 0 skips the layer, 32 runs it in full precision, the others run it with weights and
        activations quantized to that
    many bits. Few bits are cheap, and wrong for some images. The aim is to be right at little cost.

    ## Action space
    `Discrete(n)`: an index into the ascending menu, by default of 6 options.

    | Action | 0 | 1 | 2 | 3 | 4 | 5 |
    |---|---|---|---|---|---|---|
    | Bits | 0 (skip) | 2 | 3 | 4 | 8 | 32 |
    | Cost relative to 32 bit | 0 | 0.0039 | 0.0088 | 0.0156 | 0.0625 | 1 |

    Where the network has exits, see `train_exits`, the space is `Discrete(n + 1)`, and action `n`
    leaves: the exit before the layer answers, and no layer after it runs. At a layer without an
    exit, `n` means the cheapest option, action 0: it asks to spend no more, which the cheapest
    comes nearest to, and the cheapest is within every budget that can be kept. `action_masks()`
    allows `n` only where there is an exit.

    ## Observation space
    A `Dict`; `gymnasium.wrappers.FlattenObservation` makes it a vector.

    | Key | Space | What | Unit |
    |---|---|---|---|
    | `features` | `Box(-10, 10, (width,))` | confidence of a probe, mean of every channel that
    enters | deviations from usual | | `layer` | `Discrete(layers)` | the layer to choose for |
    index | | `context[0]` | 0 to 1 | spent so far | log2(1 + 32 sqrt(fraction)) / log2(33): 0.31,
    0.46, 0.63, 1 for 2, 4, 8, 32 bit everywhere | | `context[1]` | 0 to 1 | budget less everything
    that is never gated, 1 without one | the same | | `context[2]` | 0 to 1 | previous option, 0 at
    the first layer | index / (n - 1) | | `context[3]` | 0 to 1 | with `cost_weight_range` alone:
    the episode's price, 0 is the highest | logarithmic |

    The probe is a linear classifier of the channels' means over parts of the image. Its confidence
    are three numbers: the highest class probability, the lead over the second highest and the
    entropy. Before an exit they are the exit's own, told in the mean and the deviation of the probe
    that it stands in for. After the last layer `features` is zero and `layer` stays at the last
    one; after leaving, at the one that would have been next.

    ## Reward
    Minus `weights.cost` times the chosen option's share of the cost of all layers at 32 bit, at
    every step; leaving costs the exit's head less the network's own, which does not run. At the
    last step `weights.accuracy` is added for a correct prediction, `weights.log_likelihood` times
    the label's log-likelihood clipped and scaled to [-1, 0], and `weights.overshoot` times the
    fraction above the budget is subtracted. Ranges: `RewardWeights`.

    With `cost_weight_range=(lowest, highest)` each episode draws its price of computation between
    them, log-uniformly and independently of the image, and `weights.cost` plays no part: one gate
    then learns all trade-offs at once.

    ## Start
    An image of the split, drawn uniformly with replacement. `reset(options={"index": i})` shows
    image `i` and leaves the stream of draws where it is.

    ## End
    Terminated after the last gated layer, so without exits an episode always has as many steps as
    there are gated layers, or after leaving. Never truncated.

    ## Info
    After `reset`: `index`, the image, and with `cost_weight_range` the episode's `cost_weight`.
    After the last step: `index`, `label`, `prediction`, `correct`, `is_success` (the same, by the
    name that Stable-Baselines3 logs), `computation` (percent of running every gated layer at 32
    bit, the never-gated parts included, no gate) and `bits`, int64 `[layers]`, 0 for layers that
    did not run; with exits `walked` as well, how many layers the image came through. Numbers are
    NumPy scalars.

    ## Budget
    `budget` bounds `computation`. It is advisory: `action_masks()` tells which actions keep the
    cheapest way to an answer within it, other actions run all the same, and what they overshoot is
    charged by `weights.overshoot`.

    ## Arguments
    Listed below. All of them can be written in JSON, so that `env.spec.to_json()` holds the
    environment. A training form of a backbone is frozen anew by each environment; pass
    `backbone.to_inference()` to many. A network of yours is calibrated by each, on the train split
    of the data set, which may not be an `ImageSet` then; its weights stay as they are. A folder
    that holds one needs `trust_code=True`.

    ## Versions
    v0: first version.

    Args:
        backbone: A folder that `save_backbone` wrote, or a run with one; `module:function` that
            makes a network of yours; a backbone; or `None` for the digits network that ships.
        backbone_weights: Safetensors file or state dict for the network that `module:function`
            makes.
        trust_code: Whether to import the constructor, `module:function`, that a folder names.
        exits: Whether images may leave where the backbone has exits; `False` walks all of them to
            the end.
        dataset: What `load_dataset` takes, a `Dataset`, an `ImageSet`, or `None` for the digits.
        split: Which images of a data set to draw from: `train`, `agent`, `val` or `test`.
        reward: What is rewarded: a mapping of some fields of `RewardWeights`, such as `{"cost":
            5.0}`, or one of these; `None` for the defaults.
        budget: Upper bound on computation in percent; `None` for none.
        cost_weight_range: Lowest and highest price of computation; `None` for `weights.cost` in
            every episode.
        render_mode: `None` or `"rgb_array"`.
        device: Where the backbone runs.

    Raises:
        ConfigError: If a value is not allowed.
        DataError: If the data cannot be found or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    metadata = METADATA

    def __init__(  # noqa: PLR0913 - each is one choice of the user's
        self,
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
        render_mode: str | None = None,
        device: DeviceLike = "cpu",
    ) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.task = make_task(
            backbone=backbone,
            backbone_weights=backbone_weights,
            trust_code=trust_code,
            exits=exits,
            dataset=dataset,
            split=split,
            reward=reward,
            budget=budget,
            cost_weight_range=cost_weight_range,
            device=device,
        )
        self.observation_space = observation_space(
            self.task.backbone, budget_conditioning=self.task.cost_weight_range is not None
        )
        self.action_space = action_space(self.task.backbone)
        self._batched_episodes = BatchedEpisodes(self.task, 1)
        self._sampler = ImageSampler(1)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Show the next image.

        Args:
            seed: Start the stream of images anew from this seed.
            options: `{"index": i}` shows image `i` of the split; `{"cost_weight": w}` makes
                computation cost `w`, which must lie within the `cost_weight_range` of the
                environment.
        """
        chosen = check_options(options, "index", "cost_weight")
        super().reset(seed=seed)
        self._sampler.seed([seed])
        wanted = chosen.get("index")
        if wanted is None:
            indices = self._sampler.draw(len(self.task.images))
        else:
            indices = per_environment("index", wanted, 1, np.int64)
        preferences = sample_preferences(self.task, self._sampler, chosen.get("cost_weight"))
        observation = self._batched_episodes.reset(indices, preferences)
        self._running = True
        info: dict[str, Any] = {"index": self._batched_episodes.indices[0]}
        if self._batched_episodes.cost_weight is not None:
            info["cost_weight"] = self._batched_episodes.cost_weight[0]
        return _unbatch(observation), info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run the next layer at option `action`, or leave by the exit before it."""
        if not self._running:
            raise gymnasium.error.ResetNeeded(
                "the episode is over or none was begun: call reset() first."
            )
        transition = self._batched_episodes.advance(np.asarray(action).reshape(-1))
        self._running = transition.result is None
        info = {} if transition.result is None else single_info(transition.result, 0)
        return (
            _unbatch(transition.observation),
            float(transition.reward[0]),
            not self._running,
            False,
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are there and keep the cheapest way to an answer within the budget, bool `[n]`."""
        masks: NDArray[np.bool_] = self._batched_episodes.action_masks()[0]
        return masks

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture of the walk, uint8 `[360, 640, 3]`, or `None` without a render mode."""
        if self.render_mode is None:
            return None
        from dfs_rl.envs.rendering import render_episode

        return render_episode(self._batched_episodes, 0)


def check_render_mode(render_mode: str | None) -> None:
    """Refuse a render mode that does not exist."""
    if render_mode is not None and render_mode not in METADATA["render_modes"]:
        raise ConfigError(
            f"render_mode is {render_mode!r}; allowed are None and {METADATA['render_modes']}."
        )


def single_info(result: EpisodeResult, i: int) -> dict[str, Any]:
    """Return the last step's `info` of walk `i`, in NumPy's number types and arrays."""
    values = {key: value[i] for key, value in result.info().items()}
    # Gymnasium's vector environments batch Python's truth values and not NumPy's.
    return {
        key: bool(value) if isinstance(value, np.bool_) else value for key, value in values.items()
    }


def _unbatch(observation: ObservationBatch) -> Observation:
    return {key: value[0] for key, value in observation.items()}
