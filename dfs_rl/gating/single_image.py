"""Rollouts of single images on a CPU, with numbers and NumPy arrays in place of one-row tensors.

For one image most operators of torch take longer to start than to compute. The forms here know the
built-in gates and the probes of an inference form; ``rollout`` runs everything else.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from operator import is_, mul
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedBackbone, WithExits
from dfs_rl.backbones.probe import equal_parts, pool_grid
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
from dfs_rl.quantization.inference import InferenceLinear, PerBits

MANY_CLASSES = 256
"""Number of classes up to which plain Python computes a softmax as fast as torch."""
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
        self._owners: list[dict[Any, Any]] = []
        self._names: list[Any] = []
        self._members: list[Any] = []
        self._tensors: list[Tensor] = []
        self._places: list[int] = []

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
        self._tensors.append(tensor)
        self._places.append(tensor.data_ptr())
        return cast("Array", tensor.detach().numpy())

    def are_current(self) -> bool:
        """Return whether all views are of the tensors that the modules have now."""
        found = map(dict.get, self._owners, self._names)
        places = map(Tensor.data_ptr, self._tensors)
        return all(map(is_, found, self._members)) and list(places) == self._places

    def _member(self, owner: dict[Any, Any], name: str | tuple[()]) -> Any:  # noqa: ANN401
        if name not in owner:
            raise _NoForm
        member = owner[name]
        self._owners.append(owner)
        self._names.append(name)
        self._members.append(member)
        return member


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


class _Reader:
    """Reads the features of a gate before one layer, normalised as in ``observe``.

    Args:
        backbone: The network.
        layer: Index of the layer.
        size: Number of features that the gate reads.
        views: For the tensors that are used.
    """

    def __init__(self, backbone: GatedBackbone, layer: int, size: int, views: _Views) -> None:
        self._backbone, self._layer, self._size = backbone, layer, size
        network: Any = backbone.network if isinstance(backbone, InferenceBackbone) else backbone
        self._mean = views.array(network, "feature_mean")[layer, :size]
        self._std = views.array(network, "feature_std")[layer, :size]
        self._limits = (
            _filled(size, MIN_STD),
            _filled(size, -FEATURE_LIMIT),
            _filled(size, FEATURE_LIMIT),
        )
        self._probe: _Probe | None = None
        if _has_plain_features(backbone) and layer not in backbone.costs.exits_after:
            views.child(cast("nn.Module", backbone), "network", kind=type(network))
            probes = views.child(network, "probes", kind=nn.ModuleList)
            probe = views.child(probes, layer, kind=PerBits)
            self._probe = _Probe(views.item(probe), network.probe_grid, views)

    def __call__(self, hidden: Tensor, context: list[float]) -> Array:
        """Return the features of an activation ``[1, c, h, w]``, then the context, ``[inputs]``."""
        size = self._size
        if self._probe is None:
            read = self._backbone.feature(hidden, self._layer)[0, :size].tolist()
        else:
            read = self._probe(hidden, only_confidence=size == CONFIDENCE_SIZE)
        inputs = np.array(read + context, dtype=np.float32)
        features, (least_std, least, most) = inputs[:size], self._limits
        features -= self._mean
        features /= np.maximum(self._std, least_std)
        np.minimum(features, most, out=features)
        np.maximum(features, least, out=features)
        return inputs


class _Probe:
    """Reads ``Backbone.feature`` with a probe in its inference form.

    The first call of each function of NumPy after a layer takes several microseconds, so there are
    few, on arrays of equal shape, which take the shortest way; the rest is plain Python.
    """

    def __init__(self, probe: InferenceLinear, grid: int, views: _Views) -> None:
        self._inverse_scale, self._weight, self._scale, self._bias = (
            views.array(probe, name) for name in ("inverse_scale", "weight", "scale", "bias")
        )
        self._range: tuple[Array, Array] | None = None
        if probe.quant_range is not None:
            qmin, qmax, gap = probe.quant_range
            if gap != 1:
                raise _NoForm
            size = self._weight.shape[1]
            self._range = _filled(size, qmin), _filled(size, qmax)
        self._grid = grid

    def __call__(self, hidden: Tensor, *, only_confidence: bool) -> list[float]:
        """Return the features of an activation ``[1, c, h, w]``, or the first three."""
        kernel = equal_parts(hidden, grid=self._grid)
        if kernel is None:
            pooled = pool_grid(hidden, grid=self._grid)
        else:
            pooled = functional.avg_pool2d(hidden, kernel)
        parts: Array = pooled.numpy().reshape(hidden.shape[1], -1)  # [channels, parts]
        if self._range is None:
            codes = parts.ravel()
        else:
            codes = (parts * self._inverse_scale).ravel()
            np.rint(codes, codes)
            np.maximum(codes, self._range[0], out=codes)
            np.minimum(codes, self._range[1], out=codes)
        logits = self._weight.dot(codes)
        logits *= self._scale
        logits += self._bias
        features = _confidence(logits.tolist())
        if not only_confidence:
            n = parts.shape[1]
            features += parts.dot(_filled(n, 1.0 / n)).tolist()
        return features


def _confidence(logits: list[float]) -> list[float]:
    """Return ``probe.confidence`` of one image."""
    logits.sort()
    top = logits[-1]
    shifted = [logit - top for logit in logits]
    odds = list(map(math.exp, shifted))  # relative to the most probable class
    total = sum(odds)
    entropy = math.log(total) - sum(map(mul, odds, shifted)) / total
    return [1.0 / total, (1.0 - odds[-2]) / total, entropy]


def _has_plain_features(backbone: GatedBackbone) -> bool:
    """Return whether ``_Probe`` computes the features of a backbone, and fast."""
    if type(backbone) is not InferenceBackbone or backbone.dtype != torch.float32:
        return False
    kind = type(backbone.network)
    plain = kind.feature is Backbone.feature and kind.parts is Backbone.parts
    return plain and backbone.n_classes <= MANY_CLASSES


@lru_cache(maxsize=1024)
def _filled(n: int, value: float) -> Array:
    """Return an array of equal numbers, read-only."""
    array = np.full(n, value, dtype=np.float32)
    array.flags.writeable = False
    return array


class _LearnedForm:
    """Decisions of a built-in learned gate, equal to those of ``observe`` and ``decide``.

    Sums in another order round differently, so two logits that agree to about six digits may change
    places.
    """

    def __init__(self, backbone: GatedBackbone, gate: LearnedGate) -> None:
        if type(gate) not in _FORMS:
            raise _NoForm
        self._gate, self._costs = gate, backbone.costs
        self._views = _Views()
        self._form = _FORMS[type(gate)](gate, self._views)
        reads = 1 if isinstance(gate, OneShotGate) else len(gate.feature_sizes)
        self._readers = [
            _Reader(backbone, layer, size, self._views)
            for layer, size in enumerate(gate.feature_sizes[:reads])
        ]

    def is_current(self) -> bool:
        """Return whether the form is still that of the gate and the backbone."""
        return self._views.are_current()

    def start(self, budget: float | None) -> Choose:
        """Return the decisions of one rollout."""
        gate, costs, readers = self._gate, self._costs, self._readers
        score, macs = self._form.start(), gate.macs
        left = 1.0 if budget is None else scaled_budget(costs, budget, gate_macs=macs)
        conditioned = [] if gate.budget_conditioning is None else [gate.preference]
        last_option = max(1, len(gate.options) - 1)
        no_inputs = np.empty(0, dtype=np.float32)

        def choose(hidden: Tensor, layer: int, spent: float, actions: list[int]) -> int:
            inputs = no_inputs
            if layer < len(readers):
                previous = actions[-1] / last_option if actions else 0.0
                inputs = readers[layer](hidden, [scaled_cost(spent), left, previous, *conditioned])
            scores = score(layer, inputs)
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
        actions: list[int] = []
        hidden, spent = backbone.stem(image), 0.0
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
    return lambda _hidden, layer, _spent, _actions: gate.table[layer]


def _tensor(actions: list[int], logits: Tensor) -> Tensor:
    return torch.tensor([actions], device=logits.device)


def _linear(module: nn.Module, views: _Views) -> tuple[Array, Array]:
    """Return views of weight and bias."""
    return views.array(module, "weight"), views.array(module, "bias")


def _sigmoid(x: Array) -> Array:
    return cast("Array", 0.5 * (np.tanh(0.5 * x) + 1.0))  # without overflow
