"""The reward of a walk: pure functions of what was chosen and what the network then said."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dfs_rl.errors import ConfigError

if TYPE_CHECKING:  # the commands read the defaults, and their help does not wait for torch
    from torch import Tensor

CostTiming = Literal["step", "terminal"]


@dataclass(frozen=True, kw_only=True)
class RewardWeights:
    """What a walk is rewarded for.

    The return of an episode is
    ``accuracy * correct + log_likelihood * max(log p(label), floor) / |floor| - cost * spent - overshoot * max(0, spent - budget)``
    and lies between ``-(log_likelihood + cost + overshoot)`` and ``accuracy``.

    Attributes:
        accuracy: Reward of a correct prediction; at least 0.
        log_likelihood: Weight of the clipped log-likelihood of the label, which is a term in [-1, 0]; at least 0.
        log_likelihood_floor: Natural log-likelihood at which it is clipped, below 0; -3 is a probability of 5 %.
        cost: Price of the gated layers' cost as a fraction of running all of them at 32 bit; at least 0. Low bit widths cost
            about 0.01 of that, so useful prices lie between 1 and 100.
        overshoot: Price of each fraction spent above the budget; at least 0, and without effect where there is no budget. A budget
            is advisory while a gate learns, so by default what is above it costs more than any accuracy is worth.
        cost_timing: ``"step"`` charges each choice when it is made, ``"terminal"`` the sum at the end; the return is the same.

    Raises:
        ConfigError: If a value is out of its range.
    """

    accuracy: float = 0.5
    log_likelihood: float = 0.5
    log_likelihood_floor: float = -3.0
    cost: float = 10.0
    overshoot: float = 50.0
    cost_timing: CostTiming = "step"

    def __post_init__(self) -> None:
        for name in ("accuracy", "log_likelihood", "cost", "overshoot"):
            value = getattr(self, name)
            if not (_is_finite(value) and value >= 0.0):
                raise ConfigError(
                    f"reward weight {name} is {value!r}; it must be a finite number of at least 0."
                )
        floor = self.log_likelihood_floor
        if not (_is_finite(floor) and floor < 0.0):
            raise ConfigError(
                f"reward setting log_likelihood_floor is {floor!r}; it must be a finite number below 0."
            )
        if self.cost_timing not in ("step", "terminal"):
            raise ConfigError(
                f"reward setting cost_timing is {self.cost_timing!r}; allowed are 'step' and 'terminal'."
            )


def _is_finite(value: Any) -> bool:  # noqa: ANN401 - whatever was given for a number
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a huge whole number
        return False


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
            f"weights is {given!r}; allowed are a mapping such as {{'cost': 5.0}}, RewardWeights, or None for the defaults."
        )
    names = [field.name for field in fields(RewardWeights)]
    for name in given:
        if name not in names:
            raise ConfigError(f"weights has no {name!r}; allowed are {', '.join(names)}.")
    return RewardWeights(**given)


class Verdict(NamedTuple):
    """How a batch of predictions compares with the labels.

    Attributes:
        prediction: Most likely class, int64 ``[batch]``.
        correct: Whether it is the label, bool ``[batch]``.
        log_likelihood: Natural logarithm of the label's probability, float64 ``[batch]``.
    """

    prediction: "Tensor"
    correct: "Tensor"
    log_likelihood: "Tensor"


def judge(logits: "Tensor", labels: "Tensor") -> Verdict:
    """Compare logits ``[batch, classes]`` with labels, int64 ``[batch]``."""
    log_probabilities = logits.double().log_softmax(dim=1)
    prediction = logits.argmax(dim=1)
    return Verdict(
        prediction=prediction,
        correct=prediction == labels,
        log_likelihood=log_probabilities.gather(1, labels[:, None]).squeeze(1),
    )


def step_cost(
    weights: RewardWeights, cost: "Tensor", *, prices: "Tensor | None" = None
) -> "Tensor":
    """Return the charge for one layer's choices, to be subtracted from the reward of that step.

    Args:
        weights: The reward weights.
        cost: Fractions of the choices, float64 ``[batch]``.
        prices: What counts instead of ``weights.cost`` for each walk, float64 ``[batch]``.

    Returns:
        float64 ``[batch]``, at least 0; zeros if the cost is charged at the end.
    """
    if weights.cost_timing != "step":
        return cost.new_zeros(cost.shape)
    return cost * (weights.cost if prices is None else prices)


def terminal_reward(
    weights: RewardWeights,
    verdict: Verdict,
    spent: "Tensor",
    *,
    gated_budget: float | None,
    prices: "Tensor | None" = None,
) -> "Tensor":
    """Return what the last step brings on top of its own ``step_cost``.

    Args:
        weights: The reward weights.
        verdict: The outcome of the walk.
        spent: Fraction spent in all layers, float64 ``[batch]``.
        gated_budget: What the gated layers were allowed to spend, as a fraction; ``None`` if there is no budget.
        prices: What counts instead of ``weights.cost`` for each walk, float64 ``[batch]``.

    Returns:
        float64 ``[batch]``.
    """
    floor = weights.log_likelihood_floor
    likelihood = verdict.log_likelihood.clamp(min=floor) / -floor  # in [-1, 0]
    reward = weights.accuracy * verdict.correct.double() + weights.log_likelihood * likelihood
    if weights.cost_timing == "terminal":
        reward = reward - (weights.cost if prices is None else prices) * spent
    if gated_budget is not None:
        reward = reward - weights.overshoot * (spent - gated_budget).clamp(min=0.0)
    return reward
