"""Rules: fixed settings for each pass, and what decides whether another one runs.

Either the confidence of the answer so far decides, or what the next pass is predicted to gain, by a
model that is fitted to tabulated outputs.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.budget_conditioning import BudgetConditioning, preference_grid
from dfs_rl.gating.observation import CONTEXT_SIZE
from dfs_rl.gating.passes import (
    AGAIN,
    AGAIN_MIRRORED,
    AGREEMENT,
    ANSWER,
    CONFIDENCE,
    FINISHED,
    AnswerRule,
    PassSettings,
)
from dfs_rl.utils.config import NonNegativeInt, configuration

_ROUNDING = 1e-4
"""Rounding tolerance of a preference, in steps from one rule to the next."""


@configuration
class RulePass:
    """One pass of a rule.

    Attributes:
        options: Option index for each layer; the index after the last option takes an exit.
        mirrored: True to run the mirror image; never in the first pass.
    """

    options: tuple[NonNegativeInt, ...]
    mirrored: bool = False


N_READ = AGREEMENT + 1
"""Number of columns of the evidence that a ``GainModel`` reads, the first ones."""


@configuration
class GainModel:
    """Prediction of what another pass gains, linear in the evidence and in the predicted class.

    The gain is that of the criterion of ``search_rules``: accuracy in [0, 1] and a tenth of the
    log-likelihood.

    Attributes:
        weights: Weight of each of the first ``N_READ`` columns of the evidence.
        offsets: Addend for each class that the answer so far predicts.
    """

    weights: Annotated[tuple[float, ...], Field(min_length=N_READ, max_length=N_READ)]
    offsets: tuple[float, ...]


@configuration
class Rule:
    """Passes in order, each run where the answer so far is not certain enough.

    Attributes:
        passes: The passes, at least one.
        thresholds: For every pass but the last, the certainty of the answer so far below which
            another one runs; above 1 all images run again.
        gains: For every pass but the last, what predicts the gain of another one. The certainty is
            1 minus this gain; without models it is the confidence.
    """

    passes: tuple[RulePass, ...]
    thresholds: tuple[float, ...] = ()
    gains: tuple[GainModel, ...] = ()

    def __post_init__(self) -> None:
        if not self.passes or len(self.thresholds) != len(self.passes) - 1:
            raise ConfigError(
                f"a rule has {len(self.passes)} passes and {len(self.thresholds)} thresholds; "
                "needed are one pass or more, and one threshold between two of them."
            )
        if not all(0 <= threshold < math.inf for threshold in self.thresholds):
            raise ConfigError(
                f"thresholds are {list(self.thresholds)}; allowed are numbers from 0 on, where a "
                "confidence is at most 1."
            )
        if self.passes[0].mirrored:
            raise ConfigError("the first pass of a rule is mirrored; it must run the image itself.")
        if len(self.gains) not in (0, len(self.thresholds)):
            raise ConfigError(
                f"a rule has {len(self.gains)} models of gains and {len(self.thresholds)} "
                "thresholds; needed is one model for each threshold, or none."
            )

    def certainty(self, index: int, evidence: Tensor, classes: Tensor) -> Tensor:
        """Return what a threshold is compared with, float32 ``[n]``.

        Args:
            index: Index of the threshold.
            evidence: Evidence of the passes so far, float32 ``[n, evidence_size]``.
            classes: Predicted classes, int64 ``[n]``.
        """
        if not self.gains:
            return evidence[:, CONFIDENCE]
        model = self.gains[index]
        offsets = torch.tensor(model.offsets)[classes]
        return certainty_of(evidence, torch.tensor(model.weights), offsets)

    def description(self, options: BitOptions) -> str:
        """Return a short description for tables."""
        parts = []
        for i, each in enumerate(self.passes):
            bits = [str(options[o]) for o in each.options if o <= options.full]
            exits = ["exit"] * (len(bits) < len(each.options))
            one = len(set(bits)) == 1 and not exits
            text = f"{bits[0]} bit" if one else f"{'-'.join(bits + exits)} bit"
            text += " mirrored" if each.mirrored else ""
            if i and self.thresholds[i - 1] > 1.0:  # no confidence is larger
                text = f"then {text} for all"
            elif i and self.gains:
                points = 100.0 * (1.0 - self.thresholds[i - 1])
                text = f"then {text} for a predicted gain above {points:.3g} points"
            elif i:
                text = f"then {text} below a confidence of {self.thresholds[i - 1]:.3g}"
            parts.append(text)
        return ", ".join(parts) if len(parts) > 1 else f"{parts[0]} for all"


def certainty_of(evidence: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return 1 minus the predicted gain, in [0, 1]; weights ``[N_READ]`` or ``[n, N_READ]``."""
    gain = (evidence[:, :N_READ] * weights).sum(dim=1) + offsets
    return (1.0 - gain).clamp(0.0, 1.0)


class RuleGate:
    """Gate of one rule, or of one for each of several budgets.

    A cascade is the rule with two passes of which the last one answers.

    Args:
        rules: The rule, or rules for evenly spaced preferences from 0 to 1, the cheapest first.
        answer: How the passes answer, see ``PassSettings``.
        options: Bit options that the indices refer to.
        exits: Numbers of gated layers after which the network has exits, if a rule takes one.
        budget_conditioning: Measured costs of the rules; ``None`` for a single rule.
        preference: Preference in [0, 1], without effect for a single rule.
        name: Name in tables and plots.

    Attributes:
        n_classes: Number of classes of the network if the rules predict gains. At the end of a pass
            the features are then the logits of the answer so far.

    Raises:
        ConfigError: If an index or the preference is out of range, the rules differ in their number
            of layers or in how they stop, or the costs are not those of these rules.
    """

    macs = 0.0  # it compares two numbers; all passes count as backbone computation
    budget: float | None = None  # the mean costs are known, and an image may need every pass

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        answer: AnswerRule,
        options: BitOptions,
        exits: Sequence[int] = (),
        budget_conditioning: BudgetConditioning | None = None,
        preference: float = 1.0,
        name: str = "cascade",
    ) -> None:
        if not rules or (budget_conditioning is None) != (len(rules) == 1):
            costs = "without" if budget_conditioning is None else "with"
            raise ConfigError(
                f"a rule gate has {len(rules)} rules {costs} measured costs; needed are one rule "
                "alone, or several with their costs."
            )
        if not 0.0 <= preference <= 1.0:
            raise ConfigError(f"preference is {preference}; it must be between 0 and 1.")
        measured = () if budget_conditioning is None else budget_conditioning.preferences
        if measured and measured != preference_grid(len(rules)):
            raise ConfigError(
                f"the costs of the rules were measured at the preferences {list(measured)}; needed "
                f"is one for each of {len(rules)} rules, evenly spaced."
            )
        sizes = {len(each.options) for rule in rules for each in rule.passes}
        if len(sizes) > 1:
            raise ConfigError(
                f"the passes of the rules have {sorted(sizes)} layers; they must be of one network."
            )
        highest = options.full + bool(exits)
        for rule in rules:
            for each in rule.passes:
                if max(each.options) > highest:
                    raise ConfigError(
                        f"a pass of the rules is {list(each.options)}; allowed are indices of the "
                        f"bit options {list(options)}, 0 to {highest}."
                    )
        self.rules = tuple(rules)
        self.options = options
        self.exits = tuple(exits)
        self.budget_conditioning = budget_conditioning
        self.preference = preference
        self.name = name
        limit = max(len(rule.passes) for rule in rules)
        mirrored = any(each.mirrored for rule in rules for each in rule.passes)
        self.passes = PassSettings(limit=limit, mirrored=mirrored, answer=answer)
        (self.n_layers,) = sizes
        self.n_classes = _n_classes(rules)
        self._keep_as_tensors()

    def _keep_as_tensors(self) -> None:
        """Keep the rules as tensors, with a row for each rule and for each of its passes."""
        shape = (len(self.rules), self.passes.limit)
        self._options = torch.zeros(*shape, self.n_layers, dtype=torch.int64)
        self._mirrored = torch.zeros(shape, dtype=torch.bool)
        self._thresholds = torch.zeros(shape)  # 0: no further pass; float32 as the evidence
        self._weights = torch.zeros(*shape, N_READ)
        self._offsets = torch.zeros(*shape, self.n_classes or 0)
        for i, rule in enumerate(self.rules):
            self._thresholds[i, : len(rule.thresholds)] = torch.tensor(rule.thresholds)
            for j, each in enumerate(rule.passes):
                self._options[i, j] = torch.tensor(each.options)
                self._mirrored[i, j] = each.mirrored
            for j, model in enumerate(rule.gains):
                self._weights[i, j] = torch.tensor(model.weights)
                self._offsets[i, j] = torch.tensor(model.offsets)

    @property
    def description(self) -> str:
        """Short description for tables of the rule at the present preference."""
        return self.rule.description(self.options)

    @property
    def rule(self) -> Rule:
        """The rule at the present preference."""
        return self.rules[int(self._index(torch.tensor([self.preference])))]

    def reset(self, batch_size: int) -> None:
        """Do nothing: the gate has no state."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the option of the present pass for every image, or at the end the next step."""
        seen, n_inputs = context.cpu(), CONTEXT_SIZE
        rule = torch.zeros(len(seen), dtype=torch.int64)
        if self.budget_conditioning is not None:
            rule, n_inputs = self._index(seen[:, CONTEXT_SIZE]), CONTEXT_SIZE + 1
        evidence = seen[:, n_inputs:]  # it may be that of more passes than the rules have
        finished = evidence[:, FINISHED:].sum(dim=1).long()
        present = finished.clamp(max=self.passes.limit - 1)
        if layer < self.n_layers:
            return self._options[rule, present, layer].to(context.device)
        last = (finished - 1).clamp(0, self.passes.limit - 1)
        certainty = evidence[:, CONFIDENCE]
        if self.n_classes is not None:
            offsets = self._offsets[rule, last, features.argmax(dim=1).cpu()]
            certainty = certainty_of(evidence, self._weights[rule, last], offsets)
        again = certainty < self._thresholds[rule, last]
        view = torch.where(self._mirrored[rule, present], AGAIN_MIRRORED, AGAIN)
        return torch.where(again, view, ANSWER).to(context.device)

    def _index(self, preferences: Tensor) -> Tensor:
        """Return the index of each preference's rule: the most expensive one that it pays for."""
        last = len(self.rules) - 1
        return (preferences.double() * last + _ROUNDING).long().clamp(0, last)


def _n_classes(rules: Sequence[Rule]) -> int | None:
    """Return the number of classes that rules predict gains for, ``None`` if they do not."""
    kinds = {
        len(each.gains[0].offsets) if each.gains else None for each in rules if each.thresholds
    }
    if len(kinds) > 1:
        raise ConfigError(
            "some of the rules predict gains and some do not, or for other classes; needed is one "
            "kind of rules."
        )
    return kinds.pop() if kinds else None


def cascade(
    first: Sequence[int], second: Sequence[int], *, threshold: float, options: BitOptions
) -> RuleGate:
    """Return a cascade: a static bit table, and a second one for unsure answers.

    Args:
        first: Option index for each layer in the first pass.
        second: Option index for each layer in the second pass, whose answer counts.
        threshold: Confidence below which an image gets a second pass; above 1 all images do.
        options: Bit options that the indices refer to.

    Raises:
        ConfigError: If an index is out of range, or the tables differ in length.
    """
    passes = tuple(RulePass(options=tuple(table)) for table in (first, second))
    return RuleGate([Rule(passes=passes, thresholds=(threshold,))], answer="last", options=options)
