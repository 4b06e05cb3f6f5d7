"""Reward of an episode, as pure functions of options, cost and prediction."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import NonNegativeFloat, configuration, field_names
from dfs_rl.utils.registry import NameIn, Registry

if TYPE_CHECKING:  # help pages read the defaults without importing torch
    from torch import Tensor

CostTiming = Literal["step", "terminal"]
RewardTerm = Callable[["PredictionScores", "Tensor"], "Tensor"]
"""Function of the scores and spent cost fractions of a batch; see ``register_reward_term``."""
REWARD_TERMS: Registry[RewardTerm] = Registry("reward term")


def register_reward_term(name: str) -> Callable[[RewardTerm], RewardTerm]:
    """Register a term of the terminal reward.

    It gets the ``PredictionScores`` and the fractions spent in all layers, float64 ``[batch]``, and
    returns float64 ``[batch]``, which is added to the reward of the last step times the weight that
    ``RewardTerms.terms`` gives it::

        @register_reward_term("thrift")
        def thrift(scores, spent):
            return scores.correct.double() * (1.0 - spent)

    Raises:
        ConfigError: If the name is taken or malformed.
    """
    return REWARD_TERMS.register(name)


@configuration
class RewardTerms:
    """Reward weights, without the cost weight.

    Attributes:
        accuracy: Reward of a correct prediction.
        log_likelihood: Weight of the label's clipped log-likelihood, a term in [-1, 0] that
            distinguishes near misses from far ones.
        log_likelihood_floor: Natural log-likelihood at which it is clipped, below 0; -3 is a
            probability of 5 %.
        overshoot: Penalty per fraction of computation above the budget of a single image; no effect
            without a budget. The default exceeds any reward for accuracy, because the budget is not
            enforced during learning.
        cost_timing: "step" subtracts the cost of each option at its step, "terminal" subtracts the
            sum at the last step; the return is the same.
        terms: Names and weights of registered terms, for example ``--reward.terms NAME 0.5``.
    """

    accuracy: NonNegativeFloat = 0.5
    log_likelihood: NonNegativeFloat = 0.5
    log_likelihood_floor: Annotated[float, Field(lt=0)] = -3.0
    overshoot: NonNegativeFloat = 50.0
    cost_timing: CostTiming = "step"
    terms: tuple[tuple[Annotated[str, NameIn(REWARD_TERMS)], float], ...] = ()


@configuration
class RewardWeights(RewardTerms):
    """Reward weights.

    The return of an episode is
    ``accuracy * correct + log_likelihood * max(log p(label), floor) / |floor| - cost * spent -
    overshoot * max(0, spent - budget)`` and lies between ``-(log_likelihood + cost + overshoot)``
    and ``accuracy``.

    Attributes:
        cost: Cost weight: reward subtracted per unit of the gated layers' cost, a fraction of
            running all of them at 32 bit. Low bit widths cost about 0.01 of that, so useful cost
            weights are between 1 and 100.

    Raises:
        ConfigError: If a value is out of its range.
    """

    cost: NonNegativeFloat = 10.0


def reward_weights(given: object) -> RewardWeights:
    """Convert weights, a mapping of some of them, or ``None`` for the defaults.

    Raises:
        ConfigError: If the type, a name or a value is invalid.
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
    if isinstance(given.get("terms"), Mapping):
        given = {**given, "terms": tuple(given["terms"].items())}
    return RewardWeights(**given)


class PredictionScores(NamedTuple):
    """Scores of a batch of predictions against the labels.

    Attributes:
        prediction: Most likely class, int64 ``[batch]``.
        correct: True for correct predictions, bool ``[batch]``.
        log_likelihood: Natural logarithm of the label's probability, float64 ``[batch]``.
    """

    prediction: "Tensor"
    correct: "Tensor"
    log_likelihood: "Tensor"


def score_predictions(logits: "Tensor", labels: "Tensor") -> PredictionScores:
    """Score logits ``[batch, classes]`` against labels, int64 ``[batch]``."""
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
    """Return what one step subtracts from the reward, ``[batch]``, of its ``cost`` fractions.

    It is zero if ``cost_timing`` is terminal. ``cost_weight`` holds one cost weight for each
    episode, in place of ``weights.cost``.
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
    """Return the reward of the last step, without its ``step_cost``, float64 ``[batch]``.

    Args:
        weights: Reward weights.
        scores: Scores of the predictions.
        spent: Fraction spent in all layers, float64 ``[batch]``.
        gated_budget: Budget of the gated layers as a fraction.
        cost_weight: See ``step_cost``.
    """
    floor = weights.log_likelihood_floor
    likelihood = scores.log_likelihood.clamp(min=floor) / -floor  # in [-1, 0]
    reward = weights.accuracy * scores.correct.double() + weights.log_likelihood * likelihood
    if weights.cost_timing == "terminal":
        reward = reward - (weights.cost if cost_weight is None else cost_weight) * spent
    if gated_budget is not None:
        reward = reward - weights.overshoot * (spent - gated_budget).clamp(min=0.0)
    for name, weight in weights.terms:
        reward = reward + weight * REWARD_TERMS[name](scores, spent)
    return reward
