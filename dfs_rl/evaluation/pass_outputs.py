"""Outputs of passes at fixed settings, from which the results of any rule over them follow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.evaluator import BATCH_SIZE, run_options
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.scoring import StaticTable
from dfs_rl.evaluation.static_tables.shortened import shortened_tables
from dfs_rl.gating.passes import FINISHED, AnswerRule, EarlierPasses, PassSettings, write_evidence
from dfs_rl.gating.rules import Rule, RulePass

_LEAST = 1e-300  # smallest probability whose logarithm is taken


@dataclass(frozen=True, kw_only=True, eq=False)
class PassOutputs:
    """Outputs of a pass at each of several settings on every image of a split, on the CPU."""

    settings: tuple[RulePass, ...]  # the options of all layers, and the view of the image
    logits: Tensor  # float32 [settings, n, classes]
    labels: Tensor  # true classes, int64 [n]

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

    def computations(self, costs: CostTable) -> Tensor:
        """Return the computation of a pass in percent, everything included, ``[settings]``."""
        return costs.computation(torch.tensor([each.options for each in self.settings]))

    def evidence(self, sequence: Sequence[int], answer: AnswerRule) -> Tensor:
        """Return the evidence after passes at some of the settings, as a ``GainModel`` reads it.

        Later columns, which tell of settings and views, are zero.
        """
        n, limit = len(self), len(sequence)
        logits = self.logits[list(sequence)].transpose(0, 1).numpy()
        seen, finished = np.zeros((n, FINISHED + limit - 1), np.float32), np.full(n, limit)
        passes, options = PassSettings(limit=limit, answer=answer), np.zeros((n, 1), np.int64)
        write_evidence(seen, passes, logits, finished, options, full=1)
        return torch.from_numpy(seen)

    def select(self, indices: Sequence[int]) -> "PassOutputs":
        """Return the outputs of some of the settings."""
        settings = tuple(self.settings[i] for i in indices)
        return replace(self, settings=settings, logits=self.logits[list(indices)])

    def images(self, rows: slice) -> "PassOutputs":
        """Return the outputs on some of the images."""
        return replace(self, logits=self.logits[:, rows], labels=self.labels[rows])

    def with_settings(self, other: "PassOutputs") -> "PassOutputs":
        """Return these outputs and those of other settings on the same images."""
        logits = torch.cat([self.logits, other.logits])
        return replace(self, settings=self.settings + other.settings, logits=logits)

    def with_images(self, other: "PassOutputs") -> "PassOutputs":
        """Return these outputs and those of the same settings on other images."""
        logits = torch.cat([self.logits, other.logits], dim=1)
        return replace(self, logits=logits, labels=torch.cat([self.labels, other.labels]))

    def records(self, rule: Rule, answer: AnswerRule, *, name: str) -> GateRecords:
        """Return the records of a rule whose passes are among the settings."""
        index = [self.settings.index(each) for each in rule.passes]
        answers = self.probabilities[index[0]]
        again = torch.ones(len(self), dtype=torch.bool)
        followed = []
        for i, threshold in enumerate(rule.thresholds, start=1):
            certainty = confidence_of(answers)
            if rule.gains:
                seen = self.evidence(index[:i], answer)
                certainty = rule.certainty(i - 1, seen, answers.argmax(dim=1))
            again = again & (certainty < torch.tensor(threshold))
            later = next_answer(answers, self.probabilities[index[i]], i, answer)
            answers = torch.where(again[:, None], later, answers)
            followed.append(again)
        options = torch.tensor([each.options for each in rule.passes])  # [passes, layers]
        earlier, last = None, torch.zeros_like(self.labels)
        if followed:
            ran = torch.stack(followed, dim=1)  # [n, passes - 1]
            views = torch.tensor([each.mirrored for each in rule.passes[1:]])
            earlier = EarlierPasses(
                options=options[:-1] * ran[:, :, None], ran=ran, mirrored=ran & views
            )
            last = ran.sum(dim=1)
        return GateRecords(
            name=name,
            predictions=answers.argmax(dim=1),
            labels=self.labels,
            options=options[last],
            log_likelihood=log_likelihoods(answers, self.labels),
            confidence=answers.amax(dim=1),
            earlier=earlier,
        )


def run_settings(
    backbone: GatedBackbone,
    image_set: ImageSet,
    settings: Sequence[RulePass],
    *,
    batch_size: int = BATCH_SIZE,
) -> PassOutputs:
    """Run every image at each setting; backbone and images are on one device."""
    options = backbone.costs.canonicalize(torch.tensor([each.options for each in settings]))
    options = options.to(image_set.images.device)
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
    labels = image_set.labels.cpu()
    return PassOutputs(settings=tuple(settings), logits=torch.stack(logits), labels=labels)


def run_uniform(
    backbone: GatedBackbone, image_set: ImageSet, *, batch_size: int = BATCH_SIZE
) -> PassOutputs:
    """Run every image at each bit option at all layers."""
    settings = [RulePass(options=table) for table in _uniform_tables(backbone.costs)]
    return run_settings(backbone, image_set, settings, batch_size=batch_size)


def rule_settings(
    backbone: GatedBackbone, image_set: ImageSet, *, mirrored: bool
) -> list[RulePass]:
    """Return the settings that a pass of a rule may have; ``mirrored`` adds the mirror images.

    Each bit option at all layers comes first, then tables that cost less, chosen on the images, see
    ``shortened_tables``.
    """
    tables = _uniform_tables(backbone.costs) + shortened_tables(backbone, image_set)
    views = (False, True) if mirrored else (False,)
    return [RulePass(options=table, mirrored=view) for view in views for table in tables]


def _uniform_tables(costs: CostTable) -> list[StaticTable]:
    return [(option,) * costs.n_layers for option in range(len(costs.options))]


def next_answer(answers: Tensor, latest: Tensor, finished: int, rule: AnswerRule) -> Tensor:
    """Return the probabilities ``[n, classes]`` of the answer after one more pass.

    ``answers`` are those after ``finished`` passes, ``latest`` those of the new pass alone; see
    ``PassHistory.answer``.
    """
    if rule == "last":
        return latest
    if rule == "mean":
        return (answers * finished + latest) / (finished + 1)
    surer = latest.amax(dim=1, keepdim=True) > answers.amax(dim=1, keepdim=True)
    return torch.where(surer, latest, answers)


def confidence_of(answers: Tensor) -> Tensor:
    """Return the largest probabilities as gates see them, float32 ``[n]``."""
    return answers.amax(dim=1).float()


def log_likelihoods(answers: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each true class, float64 ``[n]``."""
    return answers.gather(1, labels[:, None]).squeeze(1).clamp(min=_LEAST).log()
