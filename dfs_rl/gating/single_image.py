"""Rollouts of single images on a CPU, with numbers and NumPy arrays in place of one-row tensors.

For one image most operators of torch take longer to start than to compute. The forms here know the
built-in gates and the probes of an inference form; ``rollout`` runs everything else.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedBackbone, WithExits
from dfs_rl.gating.action_masks import action_mask
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.cascade import CascadeGate, FirstPass
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.observation import (
    FEATURE_LIMIT,
    MIN_STD,
    scaled_budget,
    scaled_cost,
)
from dfs_rl.gating.rollout import RolloutResult
from dfs_rl.quantization.functional import QuantRange
from dfs_rl.quantization.inference import InferenceLinear, PerBits

Array = NDArray[np.float32]
Score = Callable[[int, Array], Array]
"""Maps a layer and the inputs of its network to the logits of the gate's ``choices``."""
Choose = Callable[[Tensor, int, float, list[int]], int]
"""Maps an activation, its layer, the spent fraction and the actions so far to an action."""


class _NoForm(Exception):  # noqa: N818 - not an error
    """Raised if a gate or probe is not as this module knows it."""


class _Views:
    """NumPy views of tensors in modules.

    They share memory with the tensors, so changes in place are seen. ``are_current`` becomes false
    if a tensor or a module is replaced, or moves.
    """

    def __init__(self) -> None:
        self._members: list[tuple[Mapping[Any, Any], Any, object]] = []
        self._places: list[tuple[Tensor, int]] = []

    def child(self, module: nn.Module, *path: str | int, kind: type[nn.Module]) -> Any:  # noqa: ANN401
        """Return the submodule at a path of names; raise ``_NoForm`` unless its type is exact."""
        for name in path:
            module = self._member(module._modules, str(name))
        if type(module) is not kind:
            raise _NoForm
        return module

    def item(self, module: PerBits) -> InferenceLinear:
        """Return the only form of a linear layer."""
        form = self._member(module._at, ())
        if type(form) is not InferenceLinear:
            raise _NoForm
        return form

    def array(self, module: nn.Module, name: str) -> Array:
        """Return a view of a parameter or buffer; raise ``_NoForm`` unless float32 on a CPU."""
        tensors = module._parameters if name in module._parameters else module._buffers
        tensor = self._member(tensors, name)
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            raise _NoForm
        if tensor.dtype != torch.float32:
            raise _NoForm
        self._places.append((tensor, tensor.data_ptr()))
        return cast("Array", tensor.detach().numpy())

    def are_current(self) -> bool:
        """Return whether all views are of the tensors that the modules have now."""
        return all([owner.get(name) is member for owner, name, member in self._members]) and all(
            [tensor.data_ptr() == place for tensor, place in self._places]
        )

    def _member(self, owner: Mapping[Any, Any], name: str | tuple[()]) -> Any:  # noqa: ANN401
        if name not in owner:
            raise _NoForm
        self._members.append((owner, name, owner[name]))
        return owner[name]


class _Mlp:
    """``Linear -> tanh -> Linear``."""

    def __init__(self, module: nn.Module, views: _Views) -> None:
        first, tanh, last = range(3)
        views.child(module, tanh, kind=nn.Tanh)
        self._first = _linear(views.child(module, first, kind=nn.Linear), views)
        self._last = _linear(views.child(module, last, kind=nn.Linear), views)

    def __call__(self, inputs: Array) -> Array:
        (first, bias), (last, last_bias) = self._first, self._last
        return cast("Array", last @ np.tanh(first @ inputs + bias) + last_bias)


class _MlpGate:
    """Form of an ``MLPGate``."""

    def __init__(self, gate: MLPGate, views: _Views) -> None:
        networks = views.child(gate, "networks", kind=nn.ModuleList)
        self._networks = [
            _Mlp(views.child(networks, layer, kind=nn.Sequential), views)
            for layer in range(len(gate.feature_sizes))
        ]

    def start(self) -> Score:
        """Return the scores of one rollout."""
        return lambda layer, inputs: self._networks[layer](inputs)


class _LstmGate:
    """Form of an ``LSTMGate``."""

    def __init__(self, gate: LSTMGate, views: _Views) -> None:
        embeddings = views.child(gate, "embeddings", kind=nn.ModuleList)
        self._embeddings = [
            _linear(views.child(embeddings, layer, kind=nn.Linear), views)
            for layer in range(len(gate.feature_sizes))
        ]
        cell = views.child(gate, "cell", kind=nn.LSTMCell)
        self._cell = [
            views.array(cell, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        self._scores = _linear(views.child(gate, "scores", kind=nn.Linear), views)

    def start(self) -> Score:
        """Return the scores of one rollout, which begins with an empty memory."""
        width = self._cell[1].shape[1]
        hidden, memory = np.zeros((2, width), dtype=np.float32)
        weight_in, weight_hidden, bias_in, bias_hidden = self._cell

        def score(layer: int, inputs: Array) -> Array:
            nonlocal hidden, memory
            weight, bias = self._embeddings[layer]
            gates = weight_in @ (weight @ inputs + bias) + bias_in
            gates += weight_hidden @ hidden + bias_hidden
            write, keep, new, read = gates.reshape(4, width)
            memory = _sigmoid(keep) * memory + _sigmoid(write) * np.tanh(new)
            hidden = _sigmoid(read) * np.tanh(memory)
            weight, bias = self._scores
            return cast("Array", weight @ hidden + bias)

        return score


class _OneShotGate:
    """Form of a ``OneShotGate``."""

    def __init__(self, gate: OneShotGate, views: _Views) -> None:
        self._network = _Mlp(views.child(gate, "network", kind=nn.Sequential), views)
        self._shape = len(gate.feature_sizes), len(gate.choices)

    def start(self) -> Score:
        """Return the scores of one rollout, whose inputs count at layer 0 alone."""
        decided: Array | None = None

        def score(layer: int, inputs: Array) -> Array:
            nonlocal decided
            if decided is None:
                decided = self._network(inputs).reshape(self._shape)
            return cast("Array", decided[layer])

        return score


_FORMS: dict[type, Callable[[Any, _Views], _MlpGate | _LstmGate | _OneShotGate]] = {
    MLPGate: _MlpGate,
    LSTMGate: _LstmGate,
    OneShotGate: _OneShotGate,
}


class _Probe:
    """Confidence of a probe, as ``probe.confidence`` computes it."""

    def __init__(self, probe: PerBits, views: _Views) -> None:
        form = views.item(probe)
        self._quant_range: QuantRange | None = form.quant_range
        if self._quant_range is not None and self._quant_range.gap != 1:
            raise _NoForm
        names = ("inverse_scale", "weight", "scale", "bias")
        self._arrays = [views.array(form, name) for name in names]

    def __call__(self, parts: Array) -> tuple[float, float, float]:
        """Map ``[channels, parts]`` to the highest probability, its lead, and the entropy."""
        inverse_scale, weight, scale, bias = self._arrays
        codes = np.ascontiguousarray(parts) if self._quant_range is None else parts * inverse_scale
        if self._quant_range is not None:
            codes = np.minimum(np.rint(codes, out=codes), self._quant_range.qmax, out=codes)
            codes = np.maximum(codes, self._quant_range.qmin, out=codes)
        logits = weight @ codes.reshape(-1)
        logits *= scale
        logits += bias
        logits.sort()
        logits -= logits[-1]
        odds = np.exp(logits)  # relative to the most probable class
        total = odds.sum()
        entropy = np.log(total) - (odds @ logits) / total
        return 1.0 / total, (1.0 - odds[-2]) / total, entropy


class _LearnedForm:
    """Decisions of a built-in learned gate, equal to those of ``observe`` and ``decide``.

    Sums in another order round differently, so two logits that agree to about six digits may change
    places.
    """

    def __init__(self, backbone: GatedBackbone, gate: LearnedGate) -> None:
        if type(gate) not in _FORMS:
            raise _NoForm
        self._views = _Views()
        self._backbone, self._gate = backbone, gate
        self._form = _FORMS[type(gate)](gate, self._views)
        network: Any = backbone.network if isinstance(backbone, InferenceBackbone) else backbone
        self._mean = self._views.array(network, "feature_mean")
        self._std = self._views.array(network, "feature_std")
        self._probes: list[_Probe] | None = None
        if type(backbone) is InferenceBackbone and type(network).feature is Backbone.feature:
            network = self._views.child(backbone, "network", kind=type(network))
            probes = self._views.child(network, "probes", kind=nn.ModuleList)
            self._probes = [
                _Probe(self._views.child(probes, layer, kind=PerBits), self._views)
                for layer in range(len(gate.feature_sizes))
            ]

    def is_current(self) -> bool:
        """Return whether the form is still that of the gate and the backbone."""
        return self._views.are_current()

    def start(self, budget: float | None) -> Choose:
        """Return the decisions of one rollout."""
        gate, costs = self._gate, self._backbone.costs
        score, macs = self._form.start(), gate.macs
        left = 1.0 if budget is None else scaled_budget(costs, budget, gate_macs=macs)
        conditioned = [] if gate.budget_conditioning is None else [gate.preference]
        last_option = max(1, len(gate.options) - 1)

        def choose(hidden: Tensor, layer: int, spent: float, actions: list[int]) -> int:
            previous = actions[-1] / last_option if actions else 0.0
            context = [scaled_cost(spent), left, previous, *conditioned]
            scores = score(layer, self._inputs(hidden, layer, context))
            if budget is None:
                return gate.choices[int(scores.argmax())]
            allowed = action_mask(costs, layer, spent, budget, gate_macs=macs)
            if gate.exits is not None and layer not in gate.exits.after:
                allowed[-1] = allowed[0]  # the exit action is the cheapest option here
            fits = [allowed[choice] for choice in gate.choices]
            if not any(fits):
                return gate.choices[0]
            return gate.choices[int(np.where(fits, scores, -np.inf).argmax())]

        return choose

    def _inputs(self, hidden: Tensor, layer: int, context: Sequence[float]) -> Array:
        """Return the input of the gate's network: normalised features, then the context."""
        if layer > 0 and isinstance(self._gate, OneShotGate):
            return np.empty(0, dtype=np.float32)
        size = self._gate.feature_sizes[layer]
        inputs = np.empty(size + len(context), dtype=np.float32)
        features = inputs[:size]
        self._read(hidden, layer, features)
        features -= self._mean[layer, :size]
        features /= np.maximum(self._std[layer, :size], MIN_STD)
        np.minimum(features, FEATURE_LIMIT, out=features)
        np.maximum(features, -FEATURE_LIMIT, out=features)
        inputs[size:] = context
        return inputs

    def _read(self, hidden: Tensor, layer: int, features: Array) -> None:
        """Write the features before a layer into ``features``, or the first of them."""
        if self._probes is None or layer in self._backbone.costs.exits_after:
            features[:] = self._backbone.feature(hidden, layer)[0, : len(features)].numpy()
            return
        network = cast("Backbone", cast("InferenceBackbone", self._backbone).network)
        parts: Array = network.parts(hidden)[0].numpy()  # [channels, parts]
        features[:CONFIDENCE_SIZE] = self._probes[layer](parts)
        if len(features) > CONFIDENCE_SIZE:
            np.add.reduce(parts, axis=1, out=features[CONFIDENCE_SIZE:])
            features[CONFIDENCE_SIZE:] /= parts.shape[1]


class SingleImageForm:
    """Rollouts of a gate on one image each, equal to those of ``rollout``.

    It holds views of weights and no copies. Where ``fits`` no longer holds, a new one is needed.

    Args:
        backbone: The network.
        gate: The gate.
        budget: As in ``rollout``.

    Attributes:
        usable: Whether the gate has a form; otherwise ``run`` must not be called.
    """

    def __init__(self, backbone: GatedBackbone, gate: Gate, budget: float | None) -> None:
        self._backbone, self._gate, self._budget = backbone, gate, budget
        self._made_for = backbone, gate, backbone.costs, budget
        self._costs: list[list[float]] = backbone.costs.option_costs().tolist()
        self._learned: _LearnedForm | None = None
        self.usable = type(gate) in {TableGate, CascadeGate} and budget is None
        if isinstance(gate, LearnedGate):
            with suppress(_NoForm):
                self._learned = _LearnedForm(backbone, gate)
                self.usable = True

    def fits(self, backbone: GatedBackbone, gate: Gate, budget: float | None) -> bool:
        """Return whether this is the form of these, with the weights that they have now."""
        made_for = backbone, gate, backbone.costs, budget
        same = all(a is b for a, b in zip(self._made_for, made_for, strict=True))
        return same and (self._learned is None or self._learned.is_current())

    @torch.no_grad()
    def run(self, image: Tensor) -> RolloutResult:
        """Run one image, ``[1, c, h, w]``."""
        gate, first_pass = self._gate, None
        if isinstance(gate, CascadeGate):
            logits, actions = self._run_pass(image, _table(gate.first))
            first_pass = FirstPass(
                options=_tensor(actions, logits), escalated=gate.should_escalate(logits)
            )
            if first_pass.escalated.item():
                logits, actions = self._run_pass(image, _table(gate.second))
        elif self._learned is not None:
            logits, actions = self._run_pass(image, self._learned.start(self._budget))
        else:
            logits, actions = self._run_pass(image, _table(cast("TableGate", gate)))
        return RolloutResult(logits, _tensor(actions, logits), first_pass)

    def _run_pass(self, image: Tensor, choose: Choose) -> tuple[Tensor, list[int]]:
        """Return the logits of one image and its action at every layer."""
        backbone, costs = self._backbone, self._backbone.costs
        hidden, spent, actions = backbone.stem(image), 0.0, []
        for layer, gated in enumerate(backbone.layers):
            action = choose(hidden, layer, spent, actions)
            if costs.exits and action == costs.exit_action:
                if layer in costs.exits_after:
                    assert isinstance(backbone, WithExits), "costs with exits have exit heads"
                    actions += [action] * (costs.n_layers - layer)
                    return backbone.answer(hidden, layer), actions
                action = 0  # the cheapest option, see ``CostTable``
            actions.append(action)
            spent += self._costs[layer][action]
            hidden = gated(hidden, backbone.options[action])
        return backbone.head(hidden), actions


def _table(gate: TableGate) -> Choose:
    return lambda hidden, layer, spent, actions: gate.table[layer]


def _tensor(actions: list[int], logits: Tensor) -> Tensor:
    return torch.tensor([actions], device=logits.device)


def _linear(module: nn.Module, views: _Views) -> tuple[Array, Array]:
    """Return views of weight and bias."""
    return views.array(module, "weight"), views.array(module, "bias")


def _sigmoid(x: Array) -> Array:
    return cast("Array", 0.5 * (np.tanh(0.5 * x) + 1.0))  # without overflow
