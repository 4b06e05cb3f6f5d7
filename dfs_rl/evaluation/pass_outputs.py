"""Tabulated outputs of passes at fixed settings: what any rule over them does costs no more runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.evaluator import BATCH_SIZE, run_options
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.passes import AnswerRule, EarlierPasses
from dfs_rl.gating.rules import Rule, RulePass

_LEAST = 1e-300
"""Smallest probability whose logarithm is taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PassOutputs:
    """Outputs of a pass at each of several settings on every image of a split, on the CPU.

    Attributes:
        settings: The settings: options of every layer, and the view of the image.
        logits: float32 ``[settings, n, classes]``.
        labels: True classes, int64 ``[n]``.
        computations: Computation of a pass in percent, everything included, ``[settings]``.
    """

    settings: tuple[RulePass, ...]
    logits: Tensor
    labels: Tensor
    computations: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> Tensor:
        """Class probabilities, float64 ``[settings, n, classes]``."""
        return self.logits.double().softmax(dim=2)

    @cached_property
    def accuracies(self) -> Tensor:
        """Share of correct predictions of each setting, float64 ``[settings]``."""
        return (self.logits.argmax(dim=2) == self.labels).double().mean(dim=1)

    def select(self, indices: Sequence[int]) -> "PassOutputs":
        """Return the outputs of some of the settings."""
        return PassOutputs(
            settings=tuple(self.settings[i] for i in indices),
            logits=self.logits[list(indices)],
            labels=self.labels,
            computations=tuple(self.computations[i] for i in indices),
        )

    def records(self, rule: Rule, answer: AnswerRule, *, name: str) -> GateRecords:
        """Return the records of a rule whose passes are among the settings."""
        n, index = len(self), [self.settings.index(each) for each in rule.passes]
        again = torch.ones(n, dtype=torch.bool)
        ran = [again]
        answers = self.probabilities[index[0]]
        for finished, setting in enumerate(index[1:], start=1):
            threshold = torch.tensor(rule.thresholds[finished - 1])
            again = again & (confidence_of(answers) < threshold)
            later = next_answer(answers, self.probabilities[setting], finished, answer)
            answers = torch.where(again[:, None], later, answers)
            ran.append(again)
        passes = torch.tensor([each.options for each in rule.passes])  # [passes, layers]
        n_passes = torch.stack(ran).sum(dim=0)  # [n]
        followed = torch.stack(ran[1:], dim=1) if len(index) > 1 else None  # [n, passes - 1]
        return GateRecords(
            name=name,
            predictions=answers.argmax(dim=1),
            labels=self.labels,
            options=passes[n_passes - 1],
            log_likelihood=log_likelihoods(answers, self.labels),
            confidence=answers.amax(dim=1),
            earlier=None
            if followed is None
            else EarlierPasses(options=passes[:-1] * followed[:, :, None], ran=followed),
        )


def uniform_settings(costs: CostTable, *, mirrored: bool) -> tuple[RulePass, ...]:
    """Return each bit option at all layers, on the image or on its mirror image."""
    return tuple(
        RulePass(options=(option,) * costs.n_layers, mirrored=mirrored)
        for option in range(len(costs.options))
    )


def run_settings(
    backbone: GatedBackbone,
    image_set: ImageSet,
    settings: Sequence[RulePass],
    *,
    batch_size: int = BATCH_SIZE,
) -> PassOutputs:
    """Run every image at each setting; backbone and images are on one device."""
    costs = backbone.costs
    options = costs.canonicalize(torch.tensor([each.options for each in settings]))
    logits = []
    for each, chosen in zip(settings, options, strict=True):
        parts = [
            run_options(
                backbone,
                batch.images.flip(-1) if each.mirrored else batch.images,
                chosen.expand(len(batch), -1),
            )
            for batch in batches(image_set, batch_size)
        ]
        logits.append(torch.cat(parts).float().cpu())
    return PassOutputs(
        settings=tuple(settings),
        logits=torch.stack(logits),
        labels=image_set.labels.cpu(),
        computations=tuple(costs.computation(options).tolist()),
    )


def joined_outputs(first: PassOutputs, second: PassOutputs, *, same_images: bool) -> PassOutputs:
    """Return the outputs of other settings on the same images, or of other images."""
    if same_images:
        return PassOutputs(
            settings=first.settings + second.settings,
            logits=torch.cat([first.logits, second.logits]),
            labels=first.labels,
            computations=first.computations + second.computations,
        )
    return PassOutputs(
        settings=first.settings,
        logits=torch.cat([first.logits, second.logits], dim=1),
        labels=torch.cat([first.labels, second.labels]),
        computations=first.computations,
    )


def next_answer(answers: Tensor, latest: Tensor, finished: int, rule: AnswerRule) -> Tensor:
    """Return the probabilities ``[n, classes]`` of the answer after one more pass.

    ``answers`` are those after ``finished`` passes, ``latest`` those of the new pass alone; see
    ``PassHistory.answer``.
    """
    if rule == "last":
        return latest
    if rule == "mean":
        return (answers * finished + latest) / (finished + 1)
    return torch.where(latest.amax(1, keepdim=True) > answers.amax(1, keepdim=True), latest, answers)


def confidence_of(answers: Tensor) -> Tensor:
    """Return the largest probabilities as gates see them, float32 ``[n]``."""
    return answers.amax(dim=1).float()


def log_likelihoods(answers: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each true class, float64 ``[n]``."""
    return answers.gather(1, labels[:, None]).squeeze(1).clamp(min=_LEAST).log()
