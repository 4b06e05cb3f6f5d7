"""Traces of a gated network, from which its ONNX graph is made.

One trace holds every part of the network: stem, features, gate, each gated layer at each option,
head. Activations between the parts and chosen options are inputs of the trace, so that
``assembly`` can put the parts into branches.
"""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx
import torch
from onnxscript import opset18
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import GatedBackbone, WithExits, activations
from dfs_rl.errors import ConfigError
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import AnswerRule, PassSettings
from dfs_rl.gating.rules import Rule
from dfs_rl.quantization.functional import QuantRange
from dfs_rl.quantization.inference import InferenceConv2d, InferenceLinear, InferenceMatmul
from dfs_rl.runtime.decisions import Decisions, PassState
from dfs_rl.runtime.pass_forms import answer_of, evidence_of

OPSET = 18
DOMAIN = "dfs"
"""Domain of the quantized operators in a trace, which ``lowering`` replaces."""
LARGEST_BYTE = 255
END_OF_PASS = ("pass_logits", "pass_spent")
"""Names of a pass's logits and of the cost spent after it in the trace of several passes."""
_BATCH = 2  # of a trace whose batch stays open
Attributes = dict[
    str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]
]
"""Attributes of an operator, as torch types them."""


def fits_byte(quant_range: QuantRange) -> bool:
    """Return whether evenly spaced codes fit 8 bit, so that quantized operators exist for them."""
    return quant_range.qmax <= LARGEST_BYTE and quant_range.gap == 1


class _Conv2d(InferenceConv2d):
    """Traces as one quantized operator at up to 8 bit."""

    def fits_integers(self, x: Tensor) -> bool:  # noqa: ARG002
        return False

    def forward(self, x: Tensor) -> Tensor:
        if self.quant_range is None or not fits_byte(self.quant_range):
            return super().forward(x)
        geometry = self.geometry
        sides = [
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, pad, dilation, kernel, stride in zip(
                x.shape[2:],
                geometry.padding,
                geometry.dilation,
                self.weight.shape[2:],
                geometry.stride,
                strict=True,
            )
        ]
        constants = self.inverse_scale, self.weight, self.scale.flatten(), self.bias.flatten()
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Conv",
            (x, *constants) if self.reach is None else (x, *constants, self.reach),
            _range(self.quant_range)
            | {
                "kernel_shape": list(self.weight.shape[2:]),
                "strides": list(geometry.stride),
                "pads": [*geometry.padding, *geometry.padding],
                "dilations": list(geometry.dilation),
                "group": geometry.groups,
                "sides": sides,
            },
            dtype=torch.float32,
            shape=(x.shape[0], len(self.weight), *sides),
            version=1,
        )


class _Linear(InferenceLinear):
    divides = False
    """Whether the input may be divided by its scale, which rounds a few codes otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        if self.quant_range is None or not fits_byte(self.quant_range):
            return super().forward(x)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Linear",
            (x, self.inverse_scale, self.weight, self.scale, self.bias),
            _range(self.quant_range) | {"rank": x.dim(), "fused": int(self.divides)},
            dtype=torch.float32,
            shape=(*x.shape[:-1], len(self.weight)),
            version=1,
        )


class _Matmul(InferenceMatmul):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if self.quant_ranges is None or not all(map(fits_byte, self.quant_ranges)):
            return super().forward(first, second)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Matmul",
            (first, second, self.scales[0], self.scales[1]),
            _range(self.quant_ranges[0]) | _range(self.quant_ranges[1], "second_"),
            dtype=torch.float32,
            shape=(*first.shape[:-1], second.shape[-1]),
            version=1,
        )


_FORMS = {InferenceConv2d: _Conv2d, InferenceLinear: _Linear, InferenceMatmul: _Matmul}


def _range(quant_range: QuantRange, prefix: str = "") -> Attributes:
    return {f"{prefix}qmin": quant_range.qmin, f"{prefix}qmax": quant_range.qmax}


def with_quantized_operators(backbone: GatedBackbone) -> GatedBackbone:
    """Return a copy of an inference form whose quantized modules trace as operators."""
    copied = copy.deepcopy(backbone)
    assert isinstance(copied, nn.Module)
    for part in copied.cpu().modules():
        if type(part) in _FORMS:
            part.__class__ = _FORMS[type(part)]
    return cast("GatedBackbone", copied)


class GatedParts(nn.Module):
    """Every part of a network with a learned gate, as a function of the activations between them.

    Without a gate there are only the layers, exits, stem and head. ``forward`` takes images
    ``[n, c, h, w]``, the preference ``[n]``, after every layer the activation, the cost spent and
    the layer's option in [0, 1], see ``Decisions``, the options of all layers, ``[n, layers]``,
    which are known at the end, and the fields of ``PassState`` if there may be several passes, with
    the logits of the present one and the cost then. It returns by name:
    ``hidden_0``, the stem's; ``choice_L``, the gate's action at layer L; ``layer_L_O`` and
    ``spent_L_O``, what follows from action O at layer L; ``answer_L``, the logits of the exit
    before layer L; ``head``, the logits after the last layer; ``computation`` of a single pass; of
    several the answer so far, ``combined``, whether to run ``again``, and ``next_F``, the fields F
    of the state then.
    """

    def __init__(
        self, backbone: GatedBackbone, gate: LearnedGate | None, budget: float | None = None
    ) -> None:
        super().__init__()
        self.backbone = with_quantized_operators(backbone)
        self.decisions = None if gate is None else Decisions(self.backbone, gate, budget)

    def first_state(self) -> PassState:
        """Return the state of the gate before the first pass, one row."""
        assert self.decisions is not None, "only a gate has a state"
        return self.decisions.first_state()

    def example(self) -> tuple[tuple[Tensor | list[Tensor], ...], list[str]]:
        """Return arguments of ``forward`` and their names."""
        images = torch.zeros(_BATCH, *self.backbone.image_shape)
        before = self.backbone.stem(images)
        _, *after = activations(self.backbone, before, self.backbone.options[-1])
        layers = range(1, len(after) + 1)
        cost_type = torch.float32 if self.decisions is None else self.decisions.cost_type
        cost = torch.zeros(_BATCH, 1, dtype=cost_type)
        spent = [cost.clone() for _ in layers]
        previous = [torch.zeros(_BATCH, 1) for _ in layers]
        taken = torch.zeros(_BATCH, len(after), dtype=torch.int64)
        names = [f"{name}_{layer}" for name in ("hidden", "spent", "previous") for layer in layers]
        names = ["images", "preference", *names, "taken"]
        passes = []
        if self.decisions is not None and self.decisions.several:
            passes = [torch.cat([each] * _BATCH) for each in self.first_state()]
            passes += [torch.zeros(_BATCH, self.backbone.n_classes), cost.clone()]
            names += [*PassState._fields, *END_OF_PASS]
        return (images, torch.ones(_BATCH), after, spent, previous, taken, passes), names

    def forward(
        self,
        images: Tensor,
        preference: Tensor,
        hidden: list[Tensor],
        spent: list[Tensor],
        previous: list[Tensor],
        taken: Tensor,
        passes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the outputs of all parts."""
        backbone, decisions = self.backbone, self.decisions
        state = PassState(*passes[: len(PassState._fields)]) if passes else None
        if state is not None:
            mirrored = state.mirrored[:, None, None, None]
            images = torch.where(mirrored, images.flip(-1), images)
        first = backbone.stem(images)
        outputs = {"hidden_0": first}
        for layer, before in enumerate([first, *hidden[:-1]]):
            for option, bits in enumerate(backbone.options):
                outputs[f"layer_{layer}_{option}"] = backbone.layers[layer](before, bits)
            if layer in backbone.costs.exits_after:
                outputs[f"answer_{layer}"] = cast("WithExits", backbone).answer(before, layer)
        outputs["head"] = backbone.head(hidden[-1])
        if decisions is None:
            return outputs
        decisions.gate.reset(images.shape[0])
        evidence = None if state is None else state.evidence
        for layer, before in enumerate([first, *hidden[:-1]]):
            context = (spent[layer - 1], previous[layer - 1]) if layer else None
            if layer == 0 and state is not None:
                context = state.before, state.before
            outputs[f"choice_{layer}"] = decisions(before, layer, context, preference, evidence)
            for action in range(backbone.costs.n_actions):
                outputs[f"spent_{layer}_{action}"] = decisions.spend(context, layer, action)
        decisions.gate.reset(images.shape[0])
        if state is None:
            return outputs | {"computation": decisions.computation(taken)}
        logits, cost = passes[len(state) :]
        answer, again, after = decisions.after_pass(state, logits, taken, cost, preference)
        following = {f"next_{name}": value for name, value in after._asdict().items()}
        return outputs | {"combined": answer, "again": again} | following


class FixedPasses(nn.Module):
    """A network that runs the passes of a rule, which may be one alone.

    ``forward`` maps images to ``logits_I``, ``options_I`` and ``computation_I``, which count if
    pass I is the last one, and of every pass but the last of the rule ``again_I``.

    Args:
        backbone: The network, in inference form.
        rule: The rule.
        answer: How several passes answer, see ``PassSettings``.
    """

    def __init__(self, backbone: GatedBackbone, rule: Rule, answer: AnswerRule) -> None:
        super().__init__()
        self.backbone = with_quantized_operators(backbone)
        self.rule, self.answer = rule, answer
        costs = self.backbone.costs
        self.tables = costs.canonicalize(torch.tensor([each.options for each in rule.passes]))
        self.computations = costs.computation(self.tables).cumsum(0)

    def example(self) -> tuple[tuple[Tensor], list[str]]:
        """Return arguments of ``forward`` and their names."""
        return (torch.zeros(_BATCH, *self.backbone.image_shape),), ["images"]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of all passes."""
        outputs: dict[str, Tensor] = {}
        n, tables = images.shape[0], self.tables.tolist()  # len() would fix it
        history = []
        for i, each in enumerate(self.rule.passes):
            view = images.flip(-1) if each.mirrored else images
            history.append(self._run(view, tables[i]))
            logits, shares = history[0], history[0].double().softmax(dim=1)
            if i > 0:
                finished = torch.tensor([i + 1])
                logits, shares = answer_of(torch.stack(history, dim=1), finished, self.answer)
            outputs[f"logits_{i}"] = logits
            outputs[f"options_{i}"] = self.tables[i : i + 1].expand(n, -1)
            outputs[f"computation_{i}"] = self.computations[i : i + 1].expand(n)
            if i < len(self.rule.thresholds):
                certainty = shares.amax(dim=1).float()
                if self.rule.gains:
                    passes = PassSettings(limit=i + 1, answer=self.answer)
                    none = torch.zeros_like(shares[:, 0], dtype=torch.int64)
                    # It does not read the options.
                    seen = torch.stack(history, dim=1), none + i + 1, none[:, None]
                    _, evidence = evidence_of(*seen, passes, full=1)
                    certainty = self.rule.certainty(i, evidence, shares.argmax(dim=1))
                outputs[f"again_{i}"] = torch.lt(certainty, self.rule.thresholds[i])
        return outputs

    def _run(self, images: Tensor, table: Sequence[int]) -> Tensor:
        hidden = self.backbone.stem(images)
        for layer, option in enumerate(table):
            if option == self.backbone.costs.exit_action:
                return cast("WithExits", self.backbone).answer(hidden, layer)
            hidden = self.backbone.layers[layer](hidden, self.backbone.options[option])
        return self.backbone.head(hidden)


def trace(module: GatedParts | FixedPasses) -> onnx.GraphProto:
    """Return the traced graph of a module for any batch, with quantized operators.

    Raises:
        ConfigError: If the network has an operator that ONNX lacks, or cannot be traced.
    """
    arguments, names = module.example()
    batch = {0: torch.export.Dim.DYNAMIC}
    shapes = tuple([batch] * len(a) if isinstance(a, list) else batch for a in arguments)
    outputs = list(module(*arguments))  # it fills caches too, which a trace must not do
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=shapes,
                custom_translation_table={torch.ops.aten.special_entr.default: _entropy_terms},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        operator = re.search("op='([^']+)'", str(cause))
        if operator is None:
            reason = str(cause).strip().splitlines()[0]
            raise ConfigError(f"this network cannot be traced for ONNX: {reason}") from error
        raise ConfigError(
            f"this network uses {operator[1]}, for which ONNX has no operator."
        ) from error
    assert program is not None
    return program.model_proto.graph


def _entropy_terms(shares: Any) -> Any:  # noqa: ANN401 - values of onnxscript
    """Return ``-p log p`` in four nodes; torch's own form has ten."""
    least = opset18.Constant(value_float=torch.finfo(torch.float32).tiny)
    return opset18.Neg(opset18.Mul(shares, opset18.Log(opset18.Max(shares, least))))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter writes about its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
