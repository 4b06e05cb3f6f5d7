"""The reward of a walk: pure functions of what was chosen and what the network then said."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import NonNegativeFloat, configuration
from dfs_rl.utils.config.errors import field_names

if TYPE_CHECKING:  # the commands read the defaults, and their help does not wait for torch
    from torch import Tensor

CostTiming = Literal["step", "terminal"]


@configuration
class RewardTerms:
    """Reward weights, without the price of computation.

    Attributes:
        accuracy: Reward of a correct prediction.
        log_likelihood: Weight of the label's clipped log-likelihood, a term in [-1, 0] that
            distinguishes near misses from far ones.
        log_likelihood_floor: Natural log-likelihood at which it is clipped, below 0; -3 is a
            probability of 5 %.
        overshoot: Price of each fraction of computation above the budget of a single image; without
            effect if there is none. The default costs more than any accuracy earns, because a
            budget only advises a gate that learns.
        cost_timing: "step" charges each choice when it is made, "terminal" charges the sum at the
            end; the return is the same.
    """

    accuracy: NonNegativeFloat = 0.5
    log_likelihood: NonNegativeFloat = 0.5
    log_likelihood_floor: Annotated[float, Field(lt=0)] = -3.0
    overshoot: NonNegativeFloat = 50.0
    cost_timing: CostTiming = "step"


@configuration
class RewardWeights(RewardTerms):
    """Reward weights.

    The return of an episode is
    ``accuracy * correct + log_likelihood * max(log p(label), floor) / |floor| - cost * spent -
    overshoot * max(0, spent - budget)`` and lies between ``-(log_likelihood + cost + overshoot)``
    and ``accuracy``.

    Attributes:
        cost: Price of the gated layers' cost as a fraction of running all of them at 32 bit. Low
            bit widths cost about 0.01 of that, so useful prices lie between 1 and 100.

    Raises:
        ConfigError: If a value is out of its range.
    """

    cost: NonNegativeFloat = 10.0


def reward_weights(given: object) -> RewardWeights:
    """Return reward weights as an environment may be given them.

    Args:
        given: The weights, a mapping of some of them by name, or ``None`` for the defaults.

    Raises:
        ConfigError: If it is something else, a name is unknown, or a value is not allowed.
    """
    if given is None:
        return RewardWeights()
    if isinstance(given, RewardWeights):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"reward is {given!r}; allowed are a mapping such as {{'cost': 5.0}}, RewardWeights, "
            "or None for the defaults."
        )
    names = field_names(RewardWeights)
    for name in given:
        if name not in names:
            raise ConfigError(f"reward has no {name!r}; allowed are {', '.join(names)}.")
    return RewardWeights(**given)


class PredictionScores(NamedTuple):
    """How a batch of predictions compares with the labels.

    Attributes:
        prediction: Most likely class, int64 ``[batch]``.
        correct: Whether it is the label, bool ``[batch]``.
        log_likelihood: Natural logarithm of the label's probability, float64 ``[batch]``.
    """

    prediction: "Tensor"
    correct: "Tensor"
    log_likelihood: "Tensor"


def score_predictions(logits: "Tensor", labels: "Tensor") -> PredictionScores:
    """Compare logits ``[batch, classes]`` with labels, int64 ``[batch]``."""
    log_probabilities = logits.double().log_softmax(dim=1)
    prediction = logits.argmax(dim=1)
    return PredictionScores(
        prediction=prediction,
        correct=prediction == labels,
        log_likelihood=log_probabilities.gather(1, labels[:, None]).squeeze(1),
    )


def step_cost(
    weights: RewardWeights, cost: "Tensor", *, cost_weight: "Tensor | None" = None
) -> "Tensor":
    """Return the charge for one layer's choices, to be subtracted from the reward of that step.

    Args:
        weights: The reward weights.
        cost: Fractions of the choices, float64 ``[batch]``.
        cost_weight: What counts instead of ``weights.cost`` for each walk, float64 ``[batch]``.

    Returns:
        float64 ``[batch]``, at least 0; zeros if the cost is charged at the end.
    """
    if weights.cost_timing != "step":
        return cost.new_zeros(cost.shape)
    return cost * (weights.cost if cost_weight is None else cost_weight)


def terminal_reward(
    weights: RewardWeights,
    scores: PredictionScores,
    spent: "Tensor",
    *,
    gated_budget: float | None,
    cost_weight: "Tensor | None" = None,
) -> "Tensor":
    """Return what the last step brings on top of its own ``step_cost``.

    Args:
        weights: The reward weights.
        scores: Scores of the predictions.
        spent: Fraction spent in all layers, float64 ``[batch]``.
        gated_budget: What the gated layers were allowed to spend, as a fraction; ``None`` if there
            is no budget.
        cost_weight: What counts instead of ``weights.cost`` for each walk, float64 ``[batch]``.

    Returns:
        float64 ``[batch]``.
    """
    floor = weights.log_likelihood_floor
    likelihood = scores.log_likelihood.clamp(min=floor) / -floor  # in [-1, 0]
    reward = weights.accuracy * scores.correct.double() + weights.log_likelihood * likelihood
    if weights.cost_timing == "terminal":
        reward = reward - (weights.cost if cost_weight is None else cost_weight) * spent
    if gated_budget is not None:
        reward = reward - weights.overshoot * (spent - gated_budget).clamp(min=0.0)
    return reward
