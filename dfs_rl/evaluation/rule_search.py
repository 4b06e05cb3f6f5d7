"""Search for threshold rules over several passes, on tabulated outputs.

A rule runs the passes of a sequence of settings one after the other, and stops after a pass whose
answer is confident enough. All sequences are tried, with thresholds at quantiles of confidence. The
number of images that stop after each pass, and how many of them are right, are sums over a grid of
thresholds, so one histogram per pass evaluates all thresholds of a sequence.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.evaluation.pass_outputs import (
    PassOutputs,
    confidence_of,
    log_likelihoods,
    next_answer,
)
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import Rule

_MOST_STEPS, _GRID_POINTS = 200, 10_000
"""Largest number of thresholds of a pass, and of the combinations for a sequence."""
_ALWAYS = 2.0
"""Threshold below which all images are: no probability is above 1."""
_LIKELIHOOD_WEIGHT = 0.1
"""Weight of the mean log-likelihood beside the accuracy in [0, 1].

It varies less between samples of images: with thousands of rules and 5,000 images the chosen one is
better on other images, and of equal accuracies the surer one wins.
"""
_ROUNDING = 1e-9
_LARGEST_DEFICIT = 0.01
"""Accuracy that a setting may lack behind a cheaper one: further passes profit from variety."""


class FoundRule(NamedTuple):
    """A rule, with its means over the images of the search."""

    rule: Rule
    computation: float  # in percent
    score: float  # accuracy in [0, 1], plus the weighted log-likelihood


def search_rules(
    outputs: PassOutputs, budgets: Sequence[float], passes: PassSettings
) -> list[FoundRule | None]:
    """Return the best rule within each budget on the mean computation, ``None`` if there is none.

    The criterion is the accuracy in [0, 1], plus a tenth of the mean log-likelihood. A rule that is
    no better than a cheaper one, or one with fewer passes, is not returned.

    Args:
        outputs: Outputs of all settings on the images of the search.
        budgets: Budgets in percent, ascending.
        passes: Passes that a rule may have. With the answer "last" each costs more than the one
            before, which it replaces.
    """
    search = _Search(outputs, budgets, passes)
    for setting, each in enumerate(outputs.settings):
        if not each.mirrored:
            search.visit(search.first(setting))
    return search.best()


class _Sequence(NamedTuple):
    """Settings of consecutive passes, with what they do at all combinations of thresholds."""

    settings: tuple[int, ...]
    answers: Tensor  # probabilities after all passes, float64 [n, classes]
    value: Tensor  # share in the score of each image, float64 [n]
    cell: Tensor  # combination of thresholds below which an image got here, int64 [n]
    thresholds: tuple[Tensor, ...]  # of each pass but the last, float32 [steps]
    means: Tensor  # computation and score, float64 [2, steps, ...], one axis per threshold


class _Search:
    """Depth-first search over sequences of settings; keeps the best rules for each budget."""

    def __init__(
        self, outputs: PassOutputs, budgets: Sequence[float], passes: PassSettings
    ) -> None:
        self.outputs, self.passes = outputs, passes
        self.budgets = torch.tensor(budgets, dtype=torch.float64)
        thresholds = max(1, passes.limit - 1)
        self.steps = min(_MOST_STEPS, round(_GRID_POINTS ** (1 / thresholds)))
        shape = (passes.limit, len(budgets))
        self._costs = torch.full(shape, math.inf, dtype=torch.float64)
        self._scores = torch.full(shape, -math.inf, dtype=torch.float64)
        self._found: list[list[FoundRule | None]] = [[None] * shape[1] for _ in range(shape[0])]

    def best(self) -> list[FoundRule | None]:
        """Return the best rule within each budget."""
        best: list[FoundRule | None] = []
        for column in zip(*self._found, strict=True):
            chosen = best[-1] if best else None
            for found in column:
                if found and (chosen is None or found.score > chosen.score + _ROUNDING):
                    chosen = found
            best.append(chosen)
        return best

    def first(self, setting: int) -> _Sequence:
        """Return the sequence of a single pass."""
        answers = self.outputs.probabilities[setting]
        value = self._value(answers)
        means = torch.tensor([self.outputs.computations[setting], value.mean().item()]).double()
        cell = torch.zeros(len(value), dtype=torch.int64)
        return _Sequence((setting,), answers, value, cell, (), means)

    def visit(self, sequence: _Sequence) -> None:
        """Keep the best rules of a sequence and of its extensions."""
        self._keep(sequence)
        if len(sequence.settings) < self.passes.limit:
            for longer in self._extensions(sequence):
                self.visit(longer)

    def _extensions(self, sequence: _Sequence) -> Iterator[_Sequence]:
        """Yield the sequences with one more pass."""
        outputs, n, depth = self.outputs, len(self.outputs), len(sequence.settings)
        confidence = confidence_of(sequence.answers)
        thresholds = _thresholds(confidence, self.steps)
        # Images of cell i are below the thresholds from i on; the last cell is below none.
        cell = torch.searchsorted(thresholds, confidence, right=True)
        cell += sequence.cell * (self.steps + 1)
        for setting, each in enumerate(outputs.settings):
            cost = outputs.computations[setting]
            replaced = outputs.computations[sequence.settings[-1]]
            if (
                setting in sequence.settings
                or (each.mirrored and not self.passes.mirrored)
                or (self.passes.answer == "last" and cost <= replaced)
            ):
                continue
            latest = outputs.probabilities[setting]
            answers = next_answer(sequence.answers, latest, depth, self.passes.answer)
            value = self._value(answers)
            changes = torch.full_like(value, cost), value - sequence.value
            more = torch.stack([self._sums(cell, change, depth) for change in changes]) / n
            yield _Sequence(
                settings=(*sequence.settings, setting),
                answers=answers,
                value=value,
                cell=cell,
                thresholds=(*sequence.thresholds, thresholds),
                means=sequence.means[..., None] + more,
            )

    def _value(self, answers: Tensor) -> Tensor:
        labels = self.outputs.labels
        correct = (answers.argmax(dim=1) == labels).double()
        return correct + _LIKELIHOOD_WEIGHT * log_likelihoods(answers, labels)

    def _sums(self, cell: Tensor, values: Tensor, n_axes: int) -> Tensor:
        """Return the sum over the images below each combination of thresholds, ``[steps, ...]``."""
        shape = (self.steps + 1,) * n_axes
        sums = torch.bincount(cell, values, minlength=math.prod(shape)).view(shape)
        for axis in range(n_axes):
            sums = sums.cumsum(axis)
        return sums[(slice(self.steps),) * n_axes]

    def _keep(self, sequence: _Sequence) -> None:
        """Keep the best combination of thresholds for each budget, the cheapest of equals."""
        costs, scores = sequence.means.reshape(2, -1)
        row, n_budgets = len(sequence.settings) - 1, len(self.budgets)
        least = torch.searchsorted(self.budgets, costs - _ROUNDING)  # the lowest sufficient budget
        top = self._scores.new_full((n_budgets + 1,), -math.inf)
        top = top.scatter_reduce(0, least, scores, "amax")
        equal = scores >= top[least] - _ROUNDING
        cheapest = self._costs.new_full((n_budgets + 1,), math.inf)
        cheapest = cheapest.scatter_reduce(0, least[equal], costs[equal], "amin")
        gain = top[:-1] - self._scores[row]
        better = (gain > _ROUNDING) | ((gain > -_ROUNDING) & (cheapest[:-1] < self._costs[row]))
        for budget in better.nonzero()[:, 0].tolist():
            chosen = int((equal & (least == budget) & (costs == cheapest[budget])).nonzero()[0])
            thresholds = []
            for each in reversed(sequence.thresholds):
                chosen, step = divmod(chosen, self.steps)
                thresholds.insert(0, each[step].item())
            settings = tuple(self.outputs.settings[i] for i in sequence.settings)
            self._scores[row, budget], self._costs[row, budget] = top[budget], cheapest[budget]
            self._found[row][budget] = FoundRule(
                rule=Rule(passes=settings, thresholds=tuple(thresholds)),
                computation=cheapest[budget].item(),
                score=top[budget].item(),
            )


def _thresholds(confidence: Tensor, steps: int) -> Tensor:
    """Return ascending thresholds, float32 ``[steps]``, from one below all images to one above all.

    The number of images below grows quadratically, since few images need a dear pass. A threshold
    lies halfway between two images, so rounding on another machine moves neither across it.
    """
    n, ordered = len(confidence), confidence.double().sort().values
    below = ((torch.arange(steps) / (steps - 1)).square() * n).round().long()
    thresholds = (ordered[(below - 1).clamp(min=0)] + ordered[below.clamp(max=n - 1)]) / 2
    thresholds[below == 0], thresholds[below == n] = 0.0, _ALWAYS
    return thresholds.float()


def useful_settings(outputs: PassOutputs) -> list[int]:
    """Return the indices of settings worth a pass.

    Left out are those with less than half the accuracy of the best, and those more than a point
    behind another one of the same view that costs no more.
    """
    accuracy, costs = outputs.accuracies.tolist(), outputs.computations
    views = [each.mirrored for each in outputs.settings]

    def is_useful(i: int) -> bool:
        others = [
            accuracy[j]
            for j in range(len(costs))
            if costs[j] <= costs[i] + _ROUNDING and views[j] == views[i]
        ]
        return (
            accuracy[i] >= max(accuracy) / 2 and accuracy[i] >= max(others) - _LARGEST_DEFICIT
        )

    return [i for i in range(len(costs)) if is_useful(i)]
