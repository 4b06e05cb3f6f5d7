"""Decisions of a gate, given to other images: its marginals, without the relation to the image."""

from collections.abc import Callable

import torch
from torch import Tensor

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.observation import CONTEXT_SIZE
from dfs_rl.gating.passes import (
    AGAIN,
    AGAIN_MIRRORED,
    ANSWER,
    FINISHED,
    NOT_RUN,
    AnswerRule,
    PassSettings,
)

Decisions = tuple[Tensor, Tensor]
"""Options of every pass, int64 ``[n, limit, layers]``, NOT_RUN if an image has it not, and a mask
of the passes on the mirror image, bool ``[n, limit]``."""
Shuffle = Callable[[Decisions, torch.Generator, CostTable], Decisions]
"""Function that returns the decisions of a gate with other images."""


def decisions_of(records: GateRecords) -> Decisions:
    """Return the decisions of a gate on the images of its records."""
    first, earlier = torch.zeros(len(records), 1, dtype=torch.bool), records.earlier
    if earlier is None:
        return records.options[:, None], first
    return earlier.with_last(records.options), torch.cat([first, earlier.mirrored], dim=1)


def passes_run(options: Tensor) -> Tensor:
    """Return a mask of the passes that each image has, bool ``[n, limit]``."""
    return options[:, :, 0] != NOT_RUN


def shuffle_patterns(
    decisions: Decisions, generator: torch.Generator, _costs: CostTable
) -> Decisions:
    """Return all decisions of an image together for another image.

    A gate that does not use the image keeps its accuracy.
    """
    options, mirrored = decisions
    rows = torch.randperm(len(options), generator=generator)
    return options[rows], mirrored[rows]


def shuffle_decisions(
    decisions: Decisions, generator: torch.Generator, costs: CostTable
) -> Decisions:
    """Return decisions with the same marginals, each layer shuffled independently of the others.

    The number of passes and their views stay together. The options of a pass go to images with as
    many passes, so the marginals of each layer and pass and the mean cost stay the same.
    """
    options = decisions[0]
    several = options.shape[1] > 1
    moved, mirrored = shuffle_patterns(decisions, generator, costs) if several else decisions
    before, after = passes_run(options), passes_run(moved)
    shuffled = moved.clone()
    for i in range(options.shape[1]):
        found = shuffle_options(options[before[:, i], i], generator, costs.exit_action)
        shuffled[after[:, i], i] = found
    return shuffled, mirrored


def shuffle_options(options: Tensor, generator: torch.Generator, exit_action: int) -> Tensor:
    """Shuffle each layer's actions, int64 ``[n, layers]``, independently of the other layers.

    Marginals and mean cost stay the same; only the relation of options to images is lost. With
    exits, the images that reach a layer receive the actions of those that reached it before.
    """
    rank = torch.rand(options.shape, generator=generator).argsort(dim=0)
    shuffled = torch.full_like(options, exit_action)
    arrived = arrived_before = torch.ones(len(options), dtype=torch.bool)
    for layer in range(options.shape[1]):
        order = rank[:, layer]
        shuffled[arrived, layer] = options[order[arrived_before[order]], layer]
        arrived = shuffled[:, layer] != exit_action
        arrived_before = options[:, layer] != exit_action
    return shuffled


class ReplayGate:
    """Gate that takes given decisions for consecutive batches of images."""

    macs = 0.0

    def __init__(self, decisions: Decisions, *, answer: AnswerRule, name: str) -> None:
        self.name = name
        self._options, self._mirrored = decisions
        limit = self._options.shape[1]
        self.passes = PassSettings(limit=limit, mirrored=limit > 1, answer=answer)
        self._batch = slice(0, 0)

    def reset(self, batch_size: int) -> None:
        """Take the decisions for the next images."""
        self._batch = slice(self._batch.stop, self._batch.stop + batch_size)

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:  # noqa: ARG002
        """Return the option of each image in its present pass, or its step at the end of one."""
        options, mirrored = self._options[self._batch], self._mirrored[self._batch]
        images, limit = torch.arange(len(options)), options.shape[1]
        finished = context[:, CONTEXT_SIZE:][:, FINISHED:].cpu().sum(dim=1).long()
        present = finished.clamp(max=limit - 1)  # after as many passes, the next one
        if layer < options.shape[2]:
            return options[images, present, layer].clamp(min=0).to(context.device)
        view = torch.where(mirrored[images, present], AGAIN_MIRRORED, AGAIN)
        runs = passes_run(options)[images, present]
        return torch.where(runs, view, ANSWER).to(context.device)
