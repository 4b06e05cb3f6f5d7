"""Passes: an episode may run the network several times before it answers.

At the end of a pass, at the head or at an exit, a gate decides to answer or to run again, on the
same image or on its mirror image. Averaged answers of several passes are better than the last one
alone (Wang et al., "Wisdom of Committees", ICLR 2022), and the right to answer with an earlier one,
recall, bounds the loss against the best stopping rule (T-Tamer, 2025).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dfs_rl.costs import CostTable
from dfs_rl.utils.config import configuration
from dfs_rl.utils.constants import AnswerRule as AnswerRule

ANSWER, AGAIN, AGAIN_MIRRORED = range(3)
"""Actions at the end of a pass; all others answer too."""
N_END_ACTIONS = 3

CONFIDENCE = 0
"""Column of the evidence with the largest probability of the answer so far."""
_TOP = 3  # probabilities of the answer so far, the largest first
_ENTROPY, _CERTAINTY, _AGREEMENT, _LAST_OPTION, _MIRRORED, FINISHED = range(_TOP, _TOP + 6)
_RESOLUTION = 1e-6
"""Distance of a probability from 1 at which the certainty is 1."""


@configuration
class PassSettings:
    """Passes that an episode may have.

    Attributes:
        limit: Largest number of passes, at least 1.
        mirrored: True if a further pass may run on the mirror image.
        answer: Answer after several passes: the "mean" of their probabilities, that of the "last"
            pass, or that of the "surest", which has the largest probability (recall).
    """

    limit: Annotated[int, Field(ge=1)] = 1
    mirrored: bool = False
    answer: AnswerRule = "mean"

    @property
    def evidence_size(self) -> int:
        """Number of values in ``PassHistory.evidence``; 0 for a single pass."""
        return 0 if self.limit == 1 else FINISHED + self.limit - 1

    def n_actions(self, costs: CostTable) -> int:
        """Return the number of actions, those at the end of a pass included."""
        return costs.n_actions if self.limit == 1 else max(costs.n_actions, N_END_ACTIONS)

    def runs_again(self, actions: Tensor) -> Tensor:
        """Return a mask of the actions at the end of a pass that start another one."""
        return (actions == AGAIN) | self.is_mirrored(actions)

    def is_mirrored(self, actions: Tensor) -> Tensor:
        """Return a mask of the actions that start a pass on the mirror image."""
        return (actions == AGAIN_MIRRORED) & self.mirrored


SINGLE_PASS = PassSettings()


def passes_of(gate: object) -> PassSettings:
    """Return the passes that a gate may run; gates of users may have no attribute ``passes``."""
    settings = getattr(gate, "passes", SINGLE_PASS)
    return settings if isinstance(settings, PassSettings) else SINGLE_PASS


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlierPasses:
    """Passes before the last one of each image.

    Attributes:
        options: Options of those passes, int64 ``[n, limit - 1, layers]``.
        ran: True for passes of an image that were followed by another, bool ``[n, limit - 1]``.
    """

    options: Tensor
    ran: Tensor

    @property
    def n_passes(self) -> Tensor:
        """Number of passes of each image, int64 ``[n]``."""
        return 1 + self.ran.sum(dim=1)

    def total(self, cost_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum over the earlier passes, ``[n]``; ``cost_of`` maps options to costs."""
        costs = [cost_of(options) for options in self.options.unbind(dim=1)]
        return (torch.stack(costs, dim=1) * self.ran).sum(dim=1)

    def cpu(self) -> "EarlierPasses":
        """Return a copy on the CPU."""
        return EarlierPasses(options=self.options.cpu(), ran=self.ran.cpu())


def confidence(logits: Tensor) -> Tensor:
    """Return the largest class probability, float64 ``[batch]``, of logits ``[batch, classes]``."""
    return logits.double().log_softmax(dim=-1).amax(dim=-1).exp()


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return images with some of them mirrored, ``[batch, ..., width]``; bool ``[batch]``."""
    if not bool(mirrored.any()):
        return images
    shape = (-1,) + (1,) * (images.dim() - 1)
    return torch.where(mirrored.view(shape), images.flip(-1), images)


class PassHistory:
    """Finished passes of a batch of ``n`` episodes.

    Args:
        settings: Passes that an episode may have.
        costs: Cost table of the backbone.
        n: Number of episodes.
        n_classes: Number of classes.
        gate_macs: MACs of the gate in a pass, which every further pass costs again.
        device: Device of the results.

    Attributes:
        finished: Number of finished passes, int64 ``[n]``.
        options: Options of the passes, int64 ``[n, limit, layers]``; 0 for those not yet run.
        spent: Cost of all passes as a fraction of the gated layers, without the never-gated parts
            of the first pass and its gate, float64 ``[n]``.
        evidence: What the finished passes say, in [0, 1], float32 ``[n, evidence_size]``; zeros in
            the first pass. The columns are the three largest probabilities of the answer so far,
            its entropy over that of equal odds, the scaled logarithm of the distance of the largest
            one from 1, the share of passes that agree with it, the mean option of the last pass
            over the largest, whether the present pass is mirrored, and for each number of passes
            below the limit, whether as many have finished.
    """

    def __init__(
        self,
        settings: PassSettings,
        costs: CostTable,
        n: int,
        n_classes: int,
        *,
        gate_macs: float = 0.0,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.restart_cost = costs.fixed_cost(gate_macs=gate_macs)
        self.finished = torch.zeros(n, dtype=torch.int64, device=device)
        self.options = self.finished.new_zeros(n, settings.limit, costs.n_layers)
        self.spent = torch.zeros(n, dtype=torch.float64, device=device)
        self.evidence = torch.zeros(n, settings.evidence_size, device=device)
        self._logits = torch.zeros(n, settings.limit, n_classes, device=device)
        self._full = max(1, costs.options.full)

    def reset(self, rows: Tensor) -> None:
        """Forget the passes of episodes, int64 ``rows``."""
        for values in (self.finished, self.options, self.spent, self.evidence, self._logits):
            values[rows] = 0

    def start(self, rows: Tensor, mirrored: Tensor) -> Tensor:
        """Start another pass of episodes, and return the cost so far, float64 ``[rows]``."""
        self.spent[rows] += self.restart_cost
        self.evidence[rows, _MIRRORED] = mirrored.float()
        return self.spent[rows]

    def finish(self, rows: Tensor, logits: Tensor, options: Tensor, spent: Tensor) -> None:
        """Record a pass of episodes: its logits, its options and the cost so far."""
        index = self.finished[rows]
        self.options[rows, index], self.spent[rows] = options, spent
        self.record(rows, logits)
        seen = self.evidence[rows]
        log_answer = self.answer(rows).double().log_softmax(dim=1)  # [rows, classes]
        answer = log_answer.exp()
        top = answer.topk(min(_TOP, answer.shape[1])).values
        seen[:, : top.shape[1]] = top.float()
        most = torch.tensor(answer.shape[1], dtype=torch.float64).log().clamp(min=_RESOLUTION)
        entropy = -(answer * log_answer.clamp(min=-1e3)).sum(dim=1) / most
        certainty = (1.0 - top[:, 0]).clamp(min=_RESOLUTION, max=1.0).log()
        passes = torch.arange(self.settings.limit, device=rows.device)
        votes = self._logits[rows].argmax(dim=2) == answer.argmax(dim=1, keepdim=True)
        votes &= passes <= index[:, None]
        seen[:, _ENTROPY] = entropy.clamp(0.0, 1.0).float()
        seen[:, _CERTAINTY] = (certainty / torch.tensor(_RESOLUTION).log()).float()
        seen[:, _AGREEMENT] = votes.sum(dim=1) / (index + 1)
        ran = options.masked_fill(options > self._full, 0)  # no option: layers after an exit
        seen[:, _LAST_OPTION] = ran.float().mean(dim=1) / self._full
        seen[:, FINISHED:] = (passes[1:] <= index[:, None] + 1).float()
        self.evidence[rows] = seen

    def record(self, rows: Tensor, logits: Tensor) -> None:
        """Record the logits of a pass of episodes alone."""
        index = self.finished[rows]
        self._logits[rows, index] = logits.float()
        self.finished[rows] = index + 1

    def confidence(self, rows: Tensor) -> Tensor:
        """Return the largest probability of the answer so far, float32 ``[rows]``."""
        return confidence(self.answer(rows)).float()

    def answer(self, rows: Tensor) -> Tensor:
        """Return the logits of the answer so far, float32 ``[rows, classes]``."""
        logits, finished = self._logits[rows], self.finished[rows]
        each = torch.arange(len(rows), device=rows.device)
        if self.settings.answer == "surest":
            confidence = logits.double().log_softmax(dim=2).amax(dim=2)  # [rows, limit]
            passes = torch.arange(self.settings.limit, device=rows.device)
            confidence[passes >= finished[:, None]] = -torch.inf
            return logits[each, confidence.argmax(dim=1)]
        last = logits[each, finished - 1]
        if self.settings.answer == "last":
            return last
        ran = torch.arange(self.settings.limit, device=rows.device) < finished[:, None]
        probabilities = logits.double().softmax(dim=2) * ran[:, :, None]
        mean = (probabilities.sum(dim=1) / finished[:, None]).log().float()
        # One pass answers with its own logits, which have the same probabilities.
        return torch.where(finished[:, None] > 1, mean, last)

    def last_options(self, rows: Tensor) -> Tensor:
        """Return the options of the last finished pass, int64 ``[rows, layers]``."""
        return self.options[rows, self.finished[rows] - 1]

    def earlier(self, rows: Tensor) -> EarlierPasses:
        """Return the passes before the last finished one."""
        passes = torch.arange(self.settings.limit - 1, device=rows.device)
        ran = passes < self.finished[rows][:, None] - 1
        options = self.options[rows, :-1] * ran[:, :, None]
        return EarlierPasses(options=options, ran=ran)
