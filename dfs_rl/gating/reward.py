"""Reward of an episode, as pure functions of options, cost and prediction."""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, cast

from pydantic import Field

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import NonNegativeFloat, configuration
from dfs_rl.utils.config.errors import field_names
from dfs_rl.utils.registry import Registry

if TYPE_CHECKING:  # help pages read the defaults without importing torch
    from torch import Tensor

CostTiming = Literal["step", "terminal"]


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
        cost: Cost weight: reward subtracted per unit of the gated layers' cost, a fraction of
            running all of them at 32 bit. Low bit widths cost about 0.01 of that, so useful cost
            weights are between 1 and 100.

    Raises:
        ConfigError: If a value is out of its range.
    """

    cost: NonNegativeFloat = 10.0


def reward_weights(given: object) -> RewardWeights:
    """Convert the reward argument of an environment into ``RewardWeights``.

    Args:
        given: Reward weights, a mapping of some of its fields, or ``None`` for the defaults.

    Raises:
        ConfigError: If the type, a name or a value is invalid.
    """
    if given is None:
        return weights_type()()
    if isinstance(given, RewardWeights):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"reward is {given!r}; allowed are a mapping such as {{'cost': 5.0}}, RewardWeights, "
            "or None for the defaults."
        )
    names = field_names(weights_type())
    for name in given:
        if name not in names:
            raise ConfigError(f"reward has no {name!r}; allowed are {', '.join(names)}.")
    return weights_type()(**given)


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


class EpisodeEnd(NamedTuple):
    """Batch of episodes at their last step, the argument of reward terms.

    Attributes:
        weights: Reward weights.
        scores: Scores of the predictions.
        spent: Fraction spent in all layers, float64 ``[batch]``.
        gated_budget: Budget of the gated layers as a fraction; ``None`` for no budget.
        cost_weight: Cost weight of all episodes, or of each one, float64 ``[batch]``.
    """

    weights: RewardWeights
    scores: PredictionScores
    spent: "Tensor"
    gated_budget: float | None
    cost_weight: "float | Tensor"


RewardTerm = Callable[[EpisodeEnd, float], "Tensor"]
"""Function of ended episodes and the term's weight: its reward of each one, float64 ``[batch]``."""
TermT = TypeVar("TermT", bound=RewardTerm)

REWARD_TERMS: Registry[RewardTerm] = Registry("reward term")


def register_reward_term(name: str, *, weight: float = 0.0) -> Callable[[TermT], TermT]:
    """Register a term of the reward; its weight is the setting ``reward.NAME``.

    Args:
        name: Name of the term, a Python identifier.
        weight: Default of its weight; 0 leaves the term out unless a user asks for it.

    Raises:
        ConfigError: If another term or another setting of the reward has the name.
    """
    if not name.isidentifier() or (name in field_names(RewardWeights) and name not in _OWN):
        raise ConfigError(
            f"name is {name!r}; allowed is a Python identifier other than "
            f"{', '.join(field_names(RewardWeights))}."
        )

    def register(term: TermT) -> TermT:
        REWARD_TERMS.add(name, term)
        if name not in _OWN:
            _DEFAULTS[name] = weight
        return term

    return register


_OWN = ("accuracy", "log_likelihood", "cost", "overshoot")
"""Terms whose weights are fields of ``RewardWeights``."""
_DEFAULTS: dict[str, float] = {}
"""Default weights of all other terms."""


@register_reward_term("accuracy")
def _accuracy(end: EpisodeEnd, weight: float) -> "Tensor":
    return weight * end.scores.correct.double()


@register_reward_term("log_likelihood")
def _log_likelihood(end: EpisodeEnd, weight: float) -> "Tensor":
    floor = end.weights.log_likelihood_floor
    return weight * (end.scores.log_likelihood.clamp(min=floor) / -floor)  # in [-weight, 0]


@register_reward_term("cost")
def _cost(end: EpisodeEnd, weight: float) -> "Tensor":  # noqa: ARG001 - each episode has its own
    if end.weights.cost_timing == "step":  # ``step_cost`` has subtracted it
        return end.spent.new_zeros(end.spent.shape)
    return -(end.cost_weight * end.spent)


@register_reward_term("overshoot")
def _overshoot(end: EpisodeEnd, weight: float) -> "Tensor":
    if end.gated_budget is None:
        return end.spent.new_zeros(end.spent.shape)
    return -(weight * (end.spent - end.gated_budget).clamp(min=0.0))


def terms_type() -> type[RewardTerms]:
    """Return ``RewardTerms`` with the weight of every registered term."""
    return cast("type[RewardTerms]", _with_terms(RewardTerms, tuple(REWARD_TERMS)))


def weights_type() -> type[RewardWeights]:
    """Return ``RewardWeights`` with the weight of every registered term."""
    return cast("type[RewardWeights]", _with_terms(RewardWeights, tuple(REWARD_TERMS)))


@functools.cache
def _with_terms(cls: type, names: tuple[str, ...]) -> Any:  # noqa: ANN401 - a class
    """Return a subclass with a field for each term whose weight is no field of the class."""
    added = [name for name in names if name not in _OWN]
    if not added:
        return cls
    texts = (inspect.getdoc(REWARD_TERMS[name]) or "Weight of the term." for name in added)
    lines = (
        f"    {name}: {' '.join(text.split())}" for name, text in zip(added, texts, strict=True)
    )
    fields = {name: _DEFAULTS[name] for name in added}
    body = {
        "__module__": cls.__module__,
        "__doc__": "\n".join(["Reward with terms of plugins.", "", "Attributes:", *lines]),
        "__annotations__": dict.fromkeys(added, float),
        "__reduce__": lambda self: (_rebuilt, (cls, dict(vars(self)))),
        **fields,
    }
    return configuration(type(cls.__name__, (cls,), body))


def _rebuilt(cls: type, values: Mapping[str, object]) -> object:
    """Rebuild a pickled configuration in another process."""
    return _with_terms(cls, tuple(REWARD_TERMS))(**values)


def step_cost(
    weights: RewardWeights, cost: "Tensor", *, cost_weight: "Tensor | None" = None
) -> "Tensor":
    """Return the cost that is subtracted from the reward of one step.

    Args:
        weights: Reward weights.
        cost: Cost fractions of the options, float64 ``[batch]``.
        cost_weight: Cost weight of each episode in place of ``weights.cost``, float64 ``[batch]``.

    Returns:
        float64 ``[batch]``, at least 0 for options; zeros if the cost is subtracted at the end.
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
    """Return the reward of the last step, without its ``step_cost``: the sum of all terms.

    Args:
        weights: Reward weights.
        scores: Scores of the predictions.
        spent: Fraction spent in all layers, float64 ``[batch]``.
        gated_budget: Budget of the gated layers as a fraction; ``None`` for no budget.
        cost_weight: Cost weight of each episode in place of ``weights.cost``, float64 ``[batch]``.

    Returns:
        float64 ``[batch]``.
    """
    charged = weights.cost if cost_weight is None else cost_weight
    end = EpisodeEnd(weights, scores, spent, gated_budget, charged)
    terms = [term(end, getattr(weights, name, 0.0)) for name, term in REWARD_TERMS.items()]
    return functools.reduce(operator.add, terms)
