"""Passes: an episode may run the network several times before it answers.

At the end of a pass, at the head or at an exit, a gate decides to answer or to run again, on the
same image or on its mirror image. Averaged answers of several passes are better than the last one
alone (Wang et al., "Wisdom of Committees", ICLR 2022), and the right to answer with an earlier one,
recall, bounds the loss against the best stopping rule (T-Tamer, 2025).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.gating.execution import ExecutionState, Finished, gather_state, run_stem
from dfs_rl.utils.config import configuration
from dfs_rl.utils.constants import MAX_PASSES
from dfs_rl.utils.constants import AnswerRule as AnswerRule

ANSWER, AGAIN, AGAIN_MIRRORED = range(3)
"""Actions at the end of a pass; all others answer too."""
N_END_ACTIONS = 3

NOT_RUN = -1
"""Stands for the options of a pass that did not run."""
CONFIDENCE = 0
"""Column of the evidence with the largest probability of the answer so far."""
N_TOP = 3  # probabilities of the answer so far, the largest first
ENTROPY, CERTAINTY, AGREEMENT, LAST_OPTION, MIRRORED, FINISHED = range(N_TOP, N_TOP + 6)
RESOLUTION = 1e-6
"""Distance of a probability from 1 at which the certainty is 1."""
_Logits = NDArray[np.float32]
_Integers = NDArray[np.int64]


@configuration
class PassSettings:
    """Passes that an episode may have.

    Attributes:
        limit: Largest number of passes, 1 to 5.
        mirrored: True if a further pass may run on the mirror image.
        answer: Answer after several passes: the "mean" of their probabilities, that of the "last"
            pass, or that of the "surest", which has the largest probability (recall).
    """

    limit: Annotated[int, Field(ge=1, le=MAX_PASSES)] = 1
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
        mirrored: True where the pass that followed ran on the mirror image, likewise.
    """

    options: Tensor
    ran: Tensor
    mirrored: Tensor

    @property
    def n_passes(self) -> Tensor:
        """Number of passes of each image, int64 ``[n]``."""
        return 1 + self.ran.sum(dim=1)

    def with_last(self, options: Tensor) -> Tensor:
        """Return the options of all passes, int64 ``[n, limit, layers]``, given the last ones."""
        earlier = self.options.masked_fill(~self.ran[:, :, None], NOT_RUN)
        passes = torch.cat([earlier, torch.full_like(options, NOT_RUN)[:, None]], dim=1)
        passes[torch.arange(len(options), device=options.device), self.n_passes - 1] = options
        return passes

    def total(self, cost_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum over the earlier passes, ``[n]``; ``cost_of`` maps options to costs."""
        costs = [cost_of(options) for options in self.options.unbind(dim=1)]
        return (torch.stack(costs, dim=1) * self.ran).sum(dim=1)

    def cpu(self) -> "EarlierPasses":
        """Return a copy on the CPU."""
        return EarlierPasses(
            options=self.options.cpu(), ran=self.ran.cpu(), mirrored=self.mirrored.cpu()
        )


def confidence(logits: Tensor) -> Tensor:
    """Return the largest class probability, float64 ``[batch]``, of logits ``[batch, classes]``."""
    return logits.double().log_softmax(dim=-1).amax(dim=-1).exp()


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return images with some of them mirrored, ``[batch, ..., width]``; bool ``[batch]``."""
    if not bool(mirrored.any()):
        return images
    shape = (-1,) + (1,) * (images.dim() - 1)
    return torch.where(mirrored.view(shape), images.flip(-1), images)


def combine(
    logits: _Logits, finished: _Integers, rule: AnswerRule
) -> tuple[_Logits, NDArray[np.float64]]:
    """Return the logits of the answers so far and their probabilities, ``[n, classes]`` each.

    Args:
        logits: Logits of the passes, ``[n, limit, classes]``.
        finished: Number of finished passes, at least 1, ``[n]``.
        rule: How the passes answer, see ``PassSettings``.
    """
    probabilities = logits.astype(np.float64)
    probabilities -= probabilities.max(axis=2, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    probabilities *= (np.arange(logits.shape[1]) < finished[:, None])[:, :, None]
    each, chosen = np.arange(len(logits)), finished - 1
    if rule == "surest":
        chosen = probabilities.max(axis=2).argmax(axis=1)
    answers = logits[each, chosen]
    if rule != "mean":
        return answers, probabilities[each, chosen]
    mean = probabilities.sum(axis=1)
    mean /= finished[:, None]
    with np.errstate(divide="ignore"):
        # One pass answers with its own logits, which have the same probabilities.
        answers = np.where(finished[:, None] > 1, np.log(mean).astype(np.float32), answers)
    return answers, mean


def write_evidence(
    evidence: NDArray[np.float32],
    settings: PassSettings,
    logits: _Logits,
    finished: _Integers,
    options: _Integers,
    *,
    full: int,
) -> None:
    """Write what finished passes say into ``[n, evidence_size]``, see ``PassHistory``.

    It is in NumPy, which is faster than torch for single images. Whether the present pass is
    mirrored stays as it is.

    Args:
        evidence: Where to write.
        settings: Passes of the episodes.
        logits: Logits of the passes, ``[n, limit, classes]``.
        finished: Number of finished passes, at least 1, ``[n]``.
        options: Options of the last finished pass, ``[n, layers]``.
        full: Index of the largest bit option.
    """
    _, answer = combine(logits, finished, settings.answer)
    passes, full = np.arange(settings.limit), max(1, full)
    top = -np.sort(-answer, axis=1)[:, :N_TOP]
    evidence[:, : top.shape[1]] = top
    surprise = np.log(np.maximum(answer, np.finfo(np.float64).tiny))
    most = max(math.log(answer.shape[1]), RESOLUTION)
    evidence[:, ENTROPY] = (-(answer * surprise).sum(axis=1) / most).clip(0.0, 1.0)
    certainty = np.log((1.0 - top[:, 0]).clip(RESOLUTION, 1.0))
    evidence[:, CERTAINTY] = certainty / math.log(RESOLUTION)
    votes = logits.argmax(axis=2) == answer.argmax(axis=1)[:, None]
    votes &= passes < finished[:, None]
    evidence[:, AGREEMENT] = votes.sum(axis=1) / finished
    ran = options * (options <= full)  # no option: layers after an exit
    evidence[:, LAST_OPTION] = ran.mean(axis=1) / full
    evidence[:, FINISHED:] = passes[1:] <= finished[:, None]


class PassHistory:
    """Finished passes of a batch of ``n`` episodes.

    Every further pass costs the MACs of the gate in a pass, ``gate_macs``, again.

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
        backbone: GatedBackbone,
        n: int,
        *,
        gate_macs: float = 0.0,
        device: torch.device,
    ) -> None:
        costs = backbone.costs
        self.settings = settings
        self.restart_cost = costs.fixed_cost(gate_macs=gate_macs)
        self.finished = torch.zeros(n, dtype=torch.int64, device=device)
        self.options = self.finished.new_zeros(n, settings.limit, costs.n_layers)
        self.spent = torch.zeros(n, dtype=torch.float64, device=device)
        of_float32 = partial(torch.zeros, dtype=torch.float32, device=device)
        self.evidence = of_float32(n, settings.evidence_size)
        self._logits = of_float32(n, settings.limit, backbone.n_classes)
        self._mirrored = torch.zeros(n, settings.limit, dtype=torch.bool, device=device)
        self._full = costs.options.full

    def reset(self, rows: Tensor) -> None:
        """Forget the passes of episodes, int64 ``rows``."""
        seen = self.finished, self.options, self.spent, self.evidence, self._logits, self._mirrored
        for values in seen:
            values[rows] = 0

    def start(self, rows: Tensor, mirrored: Tensor) -> Tensor:
        """Start another pass of episodes, and return the cost so far, float64 ``[rows]``."""
        self.spent[rows] += self.restart_cost
        self.evidence[rows, MIRRORED] = mirrored.float()
        self._mirrored[rows, self.finished[rows]] = mirrored
        return self.spent[rows]

    def finish(self, rows: Tensor, logits: Tensor, options: Tensor, spent: Tensor) -> None:
        """Record a pass of episodes: its logits, its options and the cost so far."""
        index = self.finished[rows]
        self.options[rows, index], self.spent[rows] = options, spent
        self._logits[rows, index] = logits.float()
        self.finished[rows] = index + 1
        seen = self.evidence[rows].cpu()
        finished = self._finished_logits(rows)
        chosen = options.cpu().numpy()
        write_evidence(seen.numpy(), self.settings, *finished, chosen, full=self._full)
        self.evidence[rows] = seen.to(rows.device)

    def end(self, finished: Finished) -> ExecutionState:
        """Record a pass of episodes, and return their state at its end."""
        state, logits = finished
        assert state.rows is not None, "several passes need the rows of a state"
        self.finish(state.rows, logits, state.options, state.spent)
        nothing = state.spent.new_empty(len(logits), 0)  # the activation is no longer needed
        return state._replace(hidden=nothing, layer=self.options.shape[2])

    def answered(self, state: ExecutionState, which: Tensor) -> Finished:
        """Return some episodes of a state at the end of a pass, bool ``which``, as finished."""
        last = gather_state(state, which.nonzero()[:, 0])
        assert last.rows is not None, "several passes need the rows of a state"
        return Finished(last, self.answer(last.rows))

    def run_again(
        self,
        backbone: GatedBackbone,
        state: ExecutionState,
        actions: Tensor,
        images: Callable[[Tensor], Tensor],
    ) -> ExecutionState:
        """Start another pass of those episodes of a state at the end of a pass that choose one.

        ``images`` maps indices of episodes to their images.
        """
        assert state.rows is not None, "several passes need the rows of a state"
        again = self.settings.runs_again(actions)
        rows, mirrored = state.rows[again], self.settings.is_mirrored(actions)[again]
        if len(rows) == 0:
            return gather_state(state, rows)
        started = run_stem(backbone, mirror(images(rows), mirrored))
        return started._replace(rows=rows, spent=self.start(rows, mirrored))

    def answer(self, rows: Tensor) -> Tensor:
        """Return the logits of the answer so far, float32 ``[rows, classes]``."""
        answers, _ = combine(*self._finished_logits(rows), self.settings.answer)
        return torch.from_numpy(answers).to(rows.device)

    def _finished_logits(self, rows: Tensor) -> tuple[_Logits, _Integers]:
        """Return the logits of the passes of episodes, and how many have finished."""
        logits, finished = self._logits[rows].cpu().numpy(), self.finished[rows].cpu().numpy()
        return cast("_Logits", logits), cast("_Integers", finished)

    def last_options(self, rows: Tensor) -> Tensor:
        """Return the options of the last finished pass, int64 ``[rows, layers]``."""
        return self.options[rows, self.finished[rows] - 1]

    def earlier(self, rows: Tensor) -> EarlierPasses:
        """Return the passes before the last finished one."""
        passes = torch.arange(self.settings.limit - 1, device=rows.device)
        ran = passes < self.finished[rows][:, None] - 1
        options = self.options[rows, :-1] * ran[:, :, None]
        return EarlierPasses(options=options, ran=ran, mirrored=self._mirrored[rows, 1:] & ran)
