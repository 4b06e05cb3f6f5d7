"""Search for rules over several passes, on tabulated outputs.

A rule runs the passes of a sequence of settings one after the other, and stops after a pass whose
answer is confident enough. All sequences are tried, with thresholds at quantiles of confidence. The
number of images that stop after each pass, and how many of them are right, are sums over a grid of
thresholds, so one histogram per pass evaluates all thresholds of a sequence.

In place of the confidence the predicted gain of the next pass can decide, which a ridge regression
is fitted to: fitted backward induction with a look-ahead of one pass (Tsitsiklis and Van Roy,
"Regression Methods for Pricing Complex American-Style Options", 2001).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.pass_outputs import PassOutputs, confidence_of, log_likelihoods, next_answer
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import N_READ, GainModel, Rule, certainty_of
from dfs_rl.utils.constants import Stopping

_MOST_STEPS, _GRID_POINTS = 200, 10_000
"""Largest number of thresholds of a pass, and of the combinations for a sequence."""
_ALWAYS = 2.0  # threshold below which all images are: no probability is above 1
_LIKELIHOOD_WEIGHT = 0.1
"""Weight of the mean log-likelihood beside the accuracy in [0, 1].

It varies less between samples of images: with thousands of rules and 5,000 images the chosen one is
better on other images, and of equal accuracies the surer one wins.
"""
_LEAST_GAIN = 0.001
"""What a further pass must add to the criterion; below that it is as likely to be chance."""
_RIDGE = 1e-3
"""Penalty of the squared weights of a gain's prediction, per image."""
_ROUNDING = 1e-9
_LARGEST_DEFICIT = 0.01
"""Accuracy that a setting may lack behind a cheaper one: further passes profit from variety."""


class FoundRule(NamedTuple):
    """A rule, with its means over the images of the search."""

    rule: Rule
    computation: float  # in percent
    score: float  # the criterion of ``search_rules``


def search_rules(
    outputs: PassOutputs,
    costs: CostTable,
    budgets: Sequence[float],
    passes: PassSettings,
    *,
    n_costed: int | None = None,
    stopping: Stopping = "confidence",
) -> list[FoundRule | None]:
    """Return the best rule within each budget on the mean computation, ``None`` if there is none.

    The criterion is the accuracy in [0, 1], plus a tenth of the mean log-likelihood in nats, less
    0.001 for each pass but the first. Of equal rules the cheaper one is chosen.

    ``budgets`` are in percent, ascending. With the answer "last" each pass costs more than the one
    before, which it replaces. The mean computation is that of the first ``n_costed`` images, by
    default all. Predictions of the ``stopping`` by gain are fitted on the other images, if any.
    """
    search = _Search(outputs, costs, budgets, passes, n_costed or len(outputs), stopping)
    search.run()
    return search.rules()


def useful_settings(outputs: PassOutputs, costs: CostTable) -> PassOutputs:
    """Return the outputs of the settings that are worth a pass.

    Others have less than half the accuracy of the best, or are more than a point behind one of the
    same view that costs no more.
    """
    accuracy, spent = outputs.accuracies, outputs.computations(costs)
    mirrored = torch.tensor([each.mirrored for each in outputs.settings])
    cheaper = (spent[None] <= spent[:, None]) & (mirrored[None] == mirrored[:, None])
    best = accuracy.where(cheaper, -math.inf).amax(dim=1)  # of those that cost no more
    useful = accuracy >= (best - _LARGEST_DEFICIT).clamp(min=accuracy.max().item() / 2)
    return outputs.select(useful.nonzero().flatten().tolist())


def best_rule(
    outputs: PassOutputs,
    costs: CostTable,
    budget: float,
    passes: PassSettings,
    *,
    n_costed: int | None = None,
    stopping: Stopping = "confidence",
) -> FoundRule | None:
    """Return the best rule within a budget, see ``search_rules``.

    Settings that are not useful are considered only if no other is within the budget.
    """
    for candidates in (useful_settings(outputs, costs), outputs):
        (found,) = search_rules(
            candidates, costs, [budget], passes, n_costed=n_costed, stopping=stopping
        )
        if found is not None:
            return found
    return None


class _Search:
    """Depth-first search over sequences of settings.

    Of each sequence, ``_optima`` has the thresholds of all passes but the last, float32 ``[steps]``
    each, and their best combination for each budget: its number, int64, cost and score, float64
    ``[budgets]``. The score is -inf where there is none.
    """

    def __init__(
        self,
        outputs: PassOutputs,
        costs: CostTable,
        budgets: Sequence[float],
        passes: PassSettings,
        n_costed: int,
        stopping: Stopping,
    ) -> None:
        self.outputs, self.passes = outputs, passes
        self._by_gain = stopping == "gain"
        self._fitted = slice(n_costed if n_costed < len(outputs) else 0, None)
        self._gains: dict[tuple[int, ...], GainModel] = {}
        self._share = torch.zeros(len(outputs), dtype=torch.float64)  # in the mean computation
        self._share[:n_costed] = 1.0 / n_costed
        self.costs = outputs.computations(costs).tolist()
        self.budgets = torch.tensor(budgets, dtype=torch.float64)
        n_thresholds = max(1, passes.limit - 1)
        self.steps = min(_MOST_STEPS, round(_GRID_POINTS ** (1 / n_thresholds)))
        self._optima: dict[tuple[int, ...], tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]] = {}

    def run(self) -> None:
        """Keep the best rules of all sequences."""
        for setting, each in enumerate(self.outputs.settings):
            if not each.mirrored:
                answers = self.outputs.probabilities[setting]
                means = [self.costs[setting], self._value(answers).mean().item()]
                cell = torch.zeros(len(answers), dtype=torch.int64)
                self._visit((setting,), answers, cell, (), torch.tensor(means, dtype=torch.float64))

    def _visit(
        self,
        sequence: tuple[int, ...],
        answers: Tensor,
        cell: Tensor,
        thresholds: tuple[Tensor, ...],
        means: Tensor,
    ) -> None:
        """Keep the best rules of a sequence and of its extensions.

        ``answers`` are the probabilities after all passes, float64 ``[n, classes]``. ``cell`` is
        the combination of ``thresholds`` below which an image got here, int64 ``[n]``. ``means``
        are computation and score, float64 ``[2, steps, ...]``, one axis per threshold.
        """
        self._keep(sequence, thresholds, means)
        if len(sequence) == self.passes.limit:
            return
        depth, value = len(sequence), self._value(answers)
        certainty, regression = confidence_of(answers), None
        if self._by_gain:
            regression = self._regression(sequence, answers)
        else:
            next_thresholds, next_cell = self._divide(certainty, cell)
        for setting, each in enumerate(self.outputs.settings):
            cost = self.costs[setting]
            if (
                setting in sequence
                or (each.mirrored and not self.passes.mirrored)
                or (self.passes.answer == "last" and cost <= self.costs[sequence[-1]])
            ):
                continue
            latest = self.outputs.probabilities[setting]
            after = next_answer(answers, latest, depth, self.passes.answer)
            gain = self._value(after) - value
            if regression is not None:
                self._gains[(*sequence, setting)], certainty = regression.fit(gain)
                next_thresholds, next_cell = self._divide(certainty, cell)
            changes = cost * self._share, gain / len(value)
            more = torch.stack([self._sums(next_cell, change, depth) for change in changes])
            self._visit(
                (*sequence, setting),
                after,
                next_cell,
                (*thresholds, next_thresholds),
                means[..., None] + more,
            )

    def _regression(self, sequence: tuple[int, ...], answers: Tensor) -> "_GainRegression":
        evidence = self.outputs.evidence(sequence, self.passes.answer)
        return _GainRegression(evidence, answers, self._fitted)

    def _divide(self, certainty: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return thresholds of a certainty, and the combination below which each image is."""
        thresholds = _thresholds(certainty, self.steps)
        # Images of cell i are below the thresholds from i on; the last cell is below none.
        below = torch.searchsorted(thresholds, certainty, right=True)
        return thresholds, below + cell * (self.steps + 1)

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

    def _keep(
        self, sequence: tuple[int, ...], thresholds: tuple[Tensor, ...], means: Tensor
    ) -> None:
        """Keep the best combination of thresholds for each budget, the cheapest of equals."""
        costs, scores = means.reshape(2, -1)
        order = costs.argsort()
        best = scores[order].cummax(0).values
        last = torch.searchsorted(costs[order], self.budgets + _ROUNDING, right=True) - 1
        reached = best[last.clamp(min=0)]
        for_passes = _LEAST_GAIN * (len(sequence) - 1)
        cells = order[torch.searchsorted(best, reached - _ROUNDING)]
        scores = (reached - for_passes).masked_fill(last < 0, -math.inf)
        self._optima[sequence] = thresholds, cells, costs[cells], scores

    def rules(self) -> list[FoundRule | None]:
        """Return the best rule within each budget, of equals the one with the fewest passes."""
        sequences = sorted(self._optima, key=len)
        scores = torch.stack([self._optima[each][3] for each in sequences])  # [sequences, budgets]
        found: list[FoundRule | None] = []
        for budget, column in enumerate(scores.unbind(dim=1)):
            row = int((column >= column.max() - _ROUNDING).int().argmax())  # the first of equals
            there = column[row] > -math.inf
            found.append(self._rule(sequences[row], budget) if there else None)
        return found

    def _rule(self, sequence: tuple[int, ...], budget: int) -> FoundRule:
        candidates, *figures = self._optima[sequence]
        cell, cost, score = (each[budget].item() for each in figures)
        thresholds: list[float] = []
        for each in reversed(candidates):
            cell, step = divmod(int(cell), self.steps)
            thresholds.insert(0, each[step].item())
        n = (*thresholds, 0.0).index(0.0)  # below 0 is no image
        settings = tuple(self.outputs.settings[i] for i in sequence[: n + 1])
        gains = tuple(self._gains[sequence[: i + 2]] for i in range(n)) if self._by_gain else ()
        rule = Rule(passes=settings, thresholds=tuple(thresholds[:n]), gains=gains)
        return FoundRule(rule, cost, score)


class _GainRegression:
    """Ridge regression of the gain of a pass on the evidence so far and on the predicted class.

    Args:
        evidence: The evidence, float32 ``[n, evidence_size]``.
        answers: Probabilities of the answer so far, ``[n, classes]``.
        fitted: Images that models are fitted to.
    """

    def __init__(self, evidence: Tensor, answers: Tensor, fitted: slice) -> None:
        self._evidence, self._classes, self._fitted = evidence, answers.argmax(dim=1), fitted
        predicted = functional.one_hot(self._classes, answers.shape[1])
        columns = torch.cat([evidence[:, :N_READ].double(), predicted.double()], dim=1)[fitted]
        penalty = _RIDGE * len(columns) * torch.eye(columns.shape[1], dtype=torch.float64)
        self._solver = torch.linalg.solve(columns.T @ columns + penalty, columns.T)

    def fit(self, gain: Tensor) -> tuple[GainModel, Tensor]:
        """Return the model of a gain, float64 ``[n]``, and its certainty of each image."""
        found = (self._solver @ gain[self._fitted]).float()
        weights, offsets = found[:N_READ], found[N_READ:]
        model = GainModel(weights=tuple(weights.tolist()), offsets=tuple(offsets.tolist()))
        return model, certainty_of(self._evidence, weights, offsets[self._classes])


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
