"""Answer and evidence of several passes, in operators that ONNX has.

The results are those of ``combine`` and ``write_evidence``, which are in NumPy.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.gating.passes import (
    AGREEMENT,
    CERTAINTY,
    ENTROPY,
    FINISHED,
    LAST_OPTION,
    MIRRORED,
    N_TOP,
    RESOLUTION,
    AnswerRule,
    PassSettings,
)


def answer_of(history: Tensor, finished: Tensor, rule: AnswerRule) -> tuple[Tensor, Tensor]:
    """Return logits, float32 ``[n, classes]``, and probabilities, float64, of the answer so far.

    Args:
        history: Logits of the passes, ``[n, limit, classes]``.
        finished: Number of finished passes, at least 1, int64 ``[n]``.
        rule: How the passes answer, see ``PassSettings``.
    """
    passes = torch.arange(history.shape[1])
    ran = (passes < finished[:, None])[:, :, None]
    shares = history.double().softmax(dim=2) * ran
    chosen = finished - 1
    if rule == "surest":
        chosen = shares.amax(dim=2).argmax(dim=1)
    is_chosen = (passes == chosen[:, None])[:, :, None]
    logits = (history * is_chosen).sum(dim=1)
    if rule != "mean":
        return logits, (shares * is_chosen).sum(dim=1)
    mean = shares.sum(dim=1) / finished[:, None]
    return torch.where(finished[:, None] > 1, mean.log().float(), logits), mean


def evidence_of(
    history: Tensor, finished: Tensor, options: Tensor, settings: PassSettings, *, full: int
) -> tuple[Tensor, Tensor]:
    """Return the logits of the answer so far and the evidence, float32 ``[n, evidence_size]``.

    The column of the view stays zero; other arguments as in ``answer_of`` and ``write_evidence``.
    """
    logits, answer = answer_of(history, finished, settings.answer)
    n_classes, full = answer.shape[1], max(1, full)
    top = answer.topk(min(N_TOP, n_classes), dim=1).values
    surprise = answer.clamp(min=torch.finfo(torch.float64).tiny).log()
    entropy = -(answer * surprise).sum(dim=1) / max(math.log(n_classes), RESOLUTION)
    certainty = (1.0 - top[:, 0]).clamp(RESOLUTION, 1.0).log() / math.log(RESOLUTION)
    passes = torch.arange(history.shape[1])
    votes = history.argmax(dim=2) == answer.argmax(dim=1)[:, None]
    votes = votes & (passes < finished[:, None])
    ran = options * (options <= full)  # no option: layers after an exit
    columns = {
        ENTROPY: entropy.clamp(0.0, 1.0),
        CERTAINTY: certainty,
        AGREEMENT: votes.sum(dim=1).double() / finished,
        LAST_OPTION: ran.double().mean(dim=1) / full,
        MIRRORED: torch.zeros_like(entropy),
    }
    said = torch.stack([columns[i] for i in range(N_TOP, FINISHED)], dim=1)
    parts = functional.pad(top, (0, N_TOP - top.shape[1])), said, passes[1:] <= finished[:, None]
    return logits, torch.cat([part.float() for part in parts], dim=1)
