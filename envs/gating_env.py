"""Gymnasium environment for single images."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space, flatten_space
from numpy.typing import NDArray

from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.spaces import METADATA, RenderMode, check_options, flatten_observations
from dfs_rl.envs.task import check_types, make_task

Observation = dict[str, Any] | NDArray[np.float64]


class FractionalSkippingEnv(gymnasium.Env[Observation, np.int64]):
    """Choose, for one image, the bit width of each layer of a trained network.

    ## Description
    An episode runs one image through the gated layers of a frozen network. At each layer the agent
    picks one of the bit options: 0 skips the layer, 32 runs it in full precision, the others run it
    with weights and activations quantized to that many bits. Few bits are cheap, but wrong for some
    images. The aim is a correct prediction at a low cost.

    ## Action space
    `Discrete(n)`: an index into the ascending bit options, by default 6.

    | Action | 0 | 1 | 2 | 3 | 4 | 5 |
    |---|---|---|---|---|---|---|
    | Bits | 0 (skip) | 2 | 3 | 4 | 8 | 32 |
    | Cost relative to 32 bit | 0 | 0.0039 | 0.0088 | 0.0156 | 0.0625 | 1 |

    With `passes` above 1 an episode may run the network several times. At the end of a pass, at the
    head or at an exit, `layer` is the number of layers, and an action decides how to go on: 0
    answers, 1 starts another pass, 2 starts one on the mirror image, where `passes` allows it; all
    others answer. After the last pass the episode ends by itself. The space is then at least
    `Discrete(3)`, and actions that a layer lacks mean its cheapest option.

    For a network with exits, see `train_exits`, the space is `Discrete(n + 1)`, and action `n`
    takes the exit: the exit before the layer answers, and no later layer runs. At a layer without
    an exit, `n` means the cheapest option, action 0, which is the nearest to no cost and within
    every valid budget. `action_masks()` allows `n` only at an exit.

    ## Observation space
    A `Dict`, or with `flat=True` a vector, see below.

    | Key | Space | Content | Unit |
    |---|---|---|---|
    | `features` | `Box(-10, 10, (width,))` | confidence of a probe, channel means | z-score |
    | `layer` | `Discrete(layers)`, one more with passes | layer to choose for | index |
    | `context[0]` | 0 to 1 | spent so far | logarithmic, see below |
    | `context[1]` | 0 to 1 | budget of the gated layers, 1 without a budget | the same |
    | `context[2]` | 0 to 1 | previous option, 0 at the first layer | index / (n - 1) |
    | `context[3]` | 0 to 1 | preference, 0 is the highest cost weight | logarithmic |

    The channel means are those of the layer's input. Features are in standard deviations from their
    mean. Costs are scaled by log2(1 + 32 sqrt(fraction)) / log2(33): 0.31, 0.46, 0.63, 1 for 2, 4,
    8, 32 bit at all layers. `context[3]` exists only with `cost_weight_range`.

    With several passes the rest of `context` says what the finished ones show, zeros in the first:
    the three largest probabilities of the answer so far, its entropy over that of equal odds, the
    logarithm of the distance of the largest one from 1 over that of a millionth, the share of
    passes that agree with it, the mean option of the last pass over the largest, whether the
    present pass is mirrored, and for each number of passes below the limit whether as many have
    finished.

    The probe is a linear classifier of the channels' means over parts of the image. Its confidence
    consists of three numbers: the highest class probability, its margin over the second highest,
    and the entropy. Before an exit they come from the exit's classifier, normalised by the mean and
    the deviation of the probe that it replaces. After the last layer `features` is zero and `layer`
    stays at the last one; after an exit, `layer` is the one that would have been next.

    With `flat=True` the space is what `gymnasium.spaces.flatten_space` makes of the `Dict`: a
    float64 `Box` with `context`, `features`, and `layer` as a one-hot vector, in this order.
    Rewards, infos and random streams stay the same.

    ## Reward
    At every step, minus `reward.cost` times the cost of the chosen option as a fraction of the cost
    of all layers at 32 bit; the exit action costs the exit's head minus the network's head, which
    does not run. The last step adds `reward.accuracy` for a correct prediction and
    `reward.log_likelihood` times the label's log-likelihood, clipped and scaled to [-1, 0], and
    subtracts `reward.overshoot` times the fraction above the budget. Ranges: `RewardWeights`.
    Starting another pass costs the never-gated parts again.

    With `cost_weight_range=(lowest, highest)` each episode draws its cost weight between them,
    log-uniformly and independently of the image, and `reward.cost` has no effect: one gate then
    learns all trade-offs at once.

    ## Start
    An image of the split, drawn uniformly with replacement. `reset(options={"index": i})` shows
    image `i` and does not advance the random stream of images.

    ## End
    Terminated after the last gated layer or after an exit. Without exits an episode has one step
    per gated layer. With several passes it ends with the answer, at the latest after the last pass.
    Never truncated.

    ## Info
    After `reset`: `index`, the image, and with `cost_weight_range` the episode's `cost_weight`.
    After the last step: `index`, `label`, `prediction`, `correct`, `is_success` (the same, under
    the name that Stable-Baselines3 logs), `computation` (percent of running every gated layer at 32
    bit, the never-gated parts included, without a gate) and `bits`, int64 `[layers]`, 0 for layers
    that did not run; with exits also `n_layers_run`, the number of layers that the image passed.
    With several passes `n_passes` is their number, and `bits` and `n_layers_run` are those of the
    last one. Numbers are NumPy scalars.

    ## Budget
    `budget` bounds `computation`. It is not enforced: `action_masks()` returns the actions that
    keep the cheapest way to an answer within it, other actions run as well, and `reward.overshoot`
    penalizes the excess.

    ## Arguments
    See the list below. JSON can represent all of them, so `env.spec.to_json()` describes the
    environment. Each environment converts a training form of a backbone to its inference form; pass
    `backbone.to_inference()` to several environments. Each environment calibrates a custom network
    on the train split of the data set, which then cannot be an `ImageSet`; the network's weights
    stay unchanged. A folder with a custom network needs `trust_code=True`.

    ## Versions
    v0: first version.

    Args:
        backbone: A folder that `save_backbone` wrote, or a run with one; `module:function` that
            builds a custom network; a backbone; or `None` for the digits network of the package.
        backbone_weights: Safetensors file or state dict for the network that `module:function`
            builds.
        trust_code: Allow the import of the constructor, `module:function`, that a folder names.
        exits: Keep the exits of the backbone; `False` runs all images to the last layer.
        dataset: An argument of `load_dataset`, a `Dataset`, an `ImageSet`, or `None` for the
            digits.
        split: Split of the data set to draw images from: `train`, `agent`, `val` or `test`.
        reward: Reward weights: a mapping of some fields of `RewardWeights`, such as `{"cost":
            5.0}`, or a `RewardWeights`; `None` for the defaults.
        budget: Upper bound on computation in percent; `None` for none.
        cost_weight_range: Lowest and highest cost weight; `None` for `reward.cost` in every
            episode.
        cost: Registered cost model, such as `"computation"` or `"macs"`; `None` for that of the
            backbone.
        latency: Measured times for the cost `"latency"`: a mapping of some fields of
            `LatencySettings`, such as `{"profile": "profile.json"}`, or a `LatencySettings`.
        passes: Largest number of passes, or a mapping of some fields of `PassSettings`, such as
            `{"limit": 3, "mirrored": True, "answer": "mean"}`; `None` for a single pass.
        flat: Return observations as vectors.
        render_mode: `None` or `"rgb_array"`.
        device: Device of the backbone.

    Raises:
        ConfigError: If a value is invalid.
        DataError: If the data is missing or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    metadata = METADATA

    @check_types
    def __init__(
        self,
        *,
        flat: bool = False,
        render_mode: RenderMode | None = None,
        **keywords: Any,  # noqa: ANN401
    ) -> None:
        self.render_mode = render_mode
        self.task = make_task(**keywords)
        self._dict_space = self.task.observation_space
        self._flat = flat
        space: Space[Any] = flatten_space(self._dict_space) if flat else self._dict_space
        self.observation_space = space
        self.action_space = self.task.action_space
        self._episodes = BatchedEpisodes(self.task, 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode on the next image.

        Args:
            seed: New seed of the random stream of images; `None` continues it.
            options: `{"index": i}` shows image `i` of the split; `{"cost_weight": w}` sets the cost
                weight, which must be within the `cost_weight_range` of the environment.
        """
        chosen = check_options(options, "index", "cost_weight")
        super().reset(seed=seed)
        self._episodes.sampler.seed([seed])
        info = self._episodes.start(**chosen)
        return self._observation(), {key: value[0] for key, value in info.items()}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run the next layer at option `action`, or take the exit before it."""
        if self._episodes.ended[0]:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() first.")
        rewards, result = self._episodes.advance(np.asarray(action).reshape(-1))
        info = {} if result is None else result.infos()[0]
        return self._observation(), float(rewards[0]), result is not None, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the actions that keep the cheapest way to an answer within the budget, bool `[n]`.

        The exit action is allowed only at an exit.
        """
        mask: NDArray[np.bool_] = self._episodes.action_masks()[0]
        return mask

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture, uint8 `[360, 640, 3]`, or `None` without a render mode."""
        return None if self.render_mode is None else self._episodes.render(0)

    def _observation(self) -> Observation:
        batch = self._episodes.observation
        if self._flat:
            flat: NDArray[np.float64] = flatten_observations(self._dict_space, batch)[0]
            return flat
        return {key: value[0] for key, value in batch.items()}
