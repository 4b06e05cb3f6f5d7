"""The built-in gates and the features they read, for one image on a CPU, in NumPy.

For one image most operators of torch take longer to start than to compute, and so does the first
call of a function of NumPy after a layer. So there are few of both; the rest is plain Python.
"""

import math
from collections.abc import Callable, Iterable
from operator import is_, mul
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedBackbone
from dfs_rl.backbones.probe import equal_parts, pool_grid
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.observation import FEATURE_LIMIT, MIN_STD
from dfs_rl.quantization.inference import InferenceLinear, PerBits

MANY_CLASSES = 256
"""Number of classes up to which plain Python computes a softmax as fast as torch."""
Array = NDArray[np.float32]
Score = Callable[[int, Array], Array]
"""Maps a layer and the inputs of its network to the logits of the gate's ``choices``."""
Form = Callable[[], Score]
"""Starts a rollout with an empty memory."""


class NoFormError(Exception):
    """Raised if a gate or probe is not as this module knows it."""


class Views:
    """NumPy views of tensors in modules.

    They share memory with the tensors, so they follow all changes in place. ``are_current`` becomes
    false if a tensor or a module is replaced or moves, or if a module gets a hook.
    """

    def __init__(self) -> None:
        self._owners: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._children: list[Any] = []
        self._holders: list[dict[str, Any]] = []
        self._fields: list[str] = []
        self._places: list[int] = []

    def child(self, module: nn.Module, name: str | int, *, kind: type[nn.Module]) -> Any:  # noqa: ANN401
        """Return a submodule; raise ``NoFormError`` unless its type is exact, and without hooks."""
        child = module._modules.get(str(name))
        if type(child) is not kind or _has_hooks(child):
            raise NoFormError
        self._owners.append(cast("dict[str, Any]", module._modules))
        self._names.append(str(name))
        self._children.append(child)
        return child

    def view(self, module: nn.Module, name: str) -> Array:
        """Return a view of a parameter or buffer; raise ``NoFormError`` unless float32 on a CPU."""
        return cast("Array", self._tensor(module, name).detach().numpy())

    def are_current(self) -> bool:
        """Return whether all arrays are those of the tensors that the modules have now."""
        tensors = cast("Iterable[Tensor]", map(dict.get, self._holders, self._fields))
        try:
            places = list(map(Tensor.data_ptr, tensors))
        except TypeError:  # something else stands in place of a tensor
            return False
        return (
            places == self._places
            and all(map(is_, map(dict.get, self._owners, self._names), self._children))
            and not any(map(_has_hooks, self._children))
        )

    def _tensor(self, module: nn.Module, name: str) -> Tensor:
        holder: dict[str, Any] = module._buffers if name in module._buffers else module._parameters
        tensor = holder.get(name)
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            raise NoFormError
        if tensor.dtype != torch.float32 or tensor.is_inference():
            raise NoFormError
        self._holders.append(holder)
        self._fields.append(name)
        self._places.append(tensor.data_ptr())
        return tensor


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a call of a module would call other functions too."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _mlp(module: nn.Module, name: str | int, views: Views) -> Callable[[Array], Array]:
    """Return the form of a submodule ``Linear -> tanh -> Linear``."""
    network = views.child(module, name, kind=nn.Sequential)
    first, tanh, last = range(3)
    if type(network[tanh]) is not nn.Tanh:
        raise NoFormError
    weight, bias = _linear(network, first, views)
    last_weight, last_bias = _linear(network, last, views)

    def run(inputs: Array) -> Array:
        hidden = weight.dot(inputs)
        hidden += bias
        scores = last_weight.dot(np.tanh(hidden, out=hidden))
        scores += last_bias
        return cast("Array", scores)

    return run


def _mlp_form(gate: MLPGate, views: Views) -> Form:
    views.child(gate, "networks", kind=nn.ModuleList)
    networks = [_mlp(gate.networks, layer, views) for layer in range(len(gate.networks))]
    return lambda: lambda layer, inputs: networks[layer](inputs)


def _lstm_form(gate: LSTMGate, views: Views) -> Form:
    views.child(gate, "embeddings", kind=nn.ModuleList)
    layers = range(len(gate.embeddings))
    embeddings = [_linear(gate.embeddings, layer, views) for layer in layers]
    cell = views.child(gate, "cell", kind=nn.LSTMCell)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weight_in, weight_hidden, bias_in, bias_hidden = (views.view(cell, name) for name in names)
    score_weight, score_bias = _linear(gate, "scores", views)
    width = weight_hidden.shape[1]

    def start() -> Score:
        hidden, memory = np.zeros((2, width), dtype=np.float32)

        def score(layer: int, inputs: Array) -> Array:
            nonlocal hidden, memory
            weight, bias = embeddings[layer]
            gates = weight_in.dot(weight.dot(inputs) + bias) + bias_in
            gates += weight_hidden.dot(hidden) + bias_hidden
            write, keep, new, read = gates.reshape(4, width)
            memory = _sigmoid(keep) * memory + _sigmoid(write) * np.tanh(new)
            hidden = _sigmoid(read) * np.tanh(memory)
            return cast("Array", score_weight.dot(hidden) + score_bias)

        return score

    return start


def _one_shot_form(gate: OneShotGate, views: Views) -> Form:
    network = _mlp(gate, "network", views)
    shape = len(gate.feature_sizes), len(gate.choices)

    def start() -> Score:
        decided: Array | None = None

        def score(layer: int, inputs: Array) -> Array:
            nonlocal decided
            if decided is None:  # at layer 0, whose inputs count alone
                decided = network(inputs).reshape(shape)
            return cast("Array", decided[layer])

        return score

    return start


GATE_FORMS: dict[type, Callable[[Any, Views], Form]] = {
    MLPGate: _mlp_form,
    LSTMGate: _lstm_form,
    OneShotGate: _one_shot_form,
}
"""Forms of gates by their exact type."""


class Reader:
    """Reads what a gate sees before one layer, as ``observe`` does.

    The gate reads ``size`` features; ``statistics`` are ``feature_mean`` and ``feature_std``.
    """

    def __init__(
        self,
        backbone: GatedBackbone,
        layer: int,
        size: int,
        statistics: tuple[Array, Array],
        views: Views,
    ) -> None:
        self._backbone, self._layer, self._size = backbone, layer, size
        mean, std = statistics
        self._mean, self._std = mean[layer, :size], std[layer, :size]
        self._least_std = np.full(size, MIN_STD, dtype=np.float32)
        self._least = np.full(size, -FEATURE_LIMIT, dtype=np.float32)
        self._most = -self._least
        self._probe: _Probe | None = None
        if _has_plain_features(backbone) and layer not in backbone.costs.exits_after:
            network = network_of(backbone)
            probes = views.child(network, "probes", kind=nn.ModuleList)
            probe = views.child(probes, layer, kind=PerBits).at()
            channels = backbone.feature_sizes[layer] - CONFIDENCE_SIZE
            self._probe = _Probe(probe, channels, network.probe_grid, views)

    def __call__(self, hidden: Tensor, context: list[float]) -> Array:
        """Return the features of an activation ``[1, c, h, w]``, then the context, ``[inputs]``."""
        size = self._size
        if size == 0:
            return np.array(context, dtype=np.float32)
        if self._probe is None:
            read = self._backbone.feature(hidden, self._layer)[0, :size].tolist()
        else:
            read = self._probe(hidden, only_confidence=size == CONFIDENCE_SIZE)
        inputs = np.array(read + context, dtype=np.float32)
        features = inputs[:size]
        features -= self._mean
        features /= np.maximum(self._std, self._least_std)
        np.minimum(features, self._most, out=features)
        np.maximum(features, self._least, out=features)
        return inputs


class _Probe:
    """Reads ``Backbone.feature`` with a probe in its inference form."""

    def __init__(self, form: InferenceLinear, channels: int, grid: int, views: Views) -> None:
        if type(form) is not InferenceLinear:
            raise NoFormError
        self._weight, self._grid = views.view(form, "weight"), grid
        views.view(form, "inverse_scale")
        self._inverse_scale = form.inverse_scale
        self._bias = views.view(form, "bias")
        self._scale = np.broadcast_to(views.view(form, "scale"), self._bias.shape)
        self._range = None if form.quant_range is None else form.quant_range[:2]
        if form.quant_range is not None and form.quant_range.gap != 1:
            raise NoFormError
        parts = self._weight.shape[1] // channels
        self._even = np.full(parts, 1.0 / parts, dtype=np.float32)
        self._shape = channels, parts

    def __call__(self, hidden: Tensor, *, only_confidence: bool) -> list[float]:
        """Return the features of an activation ``[1, c, h, w]``, or the first three."""
        kernel = equal_parts(hidden, grid=self._grid)
        if kernel is None:
            pooled = pool_grid(hidden, grid=self._grid)
        else:
            pooled = functional.avg_pool2d(hidden, kernel)
        codes = pooled
        if self._range is not None:
            codes = (pooled * self._inverse_scale).clamp_(*self._range).round_()
        logits = self._weight.dot(codes.numpy().ravel())
        logits *= self._scale
        logits += self._bias
        features = _confidence(logits.tolist())
        if not only_confidence:
            parts = pooled.numpy().reshape(self._shape)
            features += parts.dot(self._even).tolist()
        return features


def _confidence(logits: list[float]) -> list[float]:
    """Return ``probe.confidence`` of one image."""
    if math.isnan(sum(logits)):  # which would not sort
        return [math.nan] * CONFIDENCE_SIZE
    logits.sort()
    top = logits[-1]
    shifted = [logit - top for logit in logits]
    odds = list(map(math.exp, shifted))  # relative to the most probable class
    total = sum(odds)
    entropy = math.log(total) - sum(map(mul, odds, shifted)) / total
    return [1.0 / total, (1.0 - odds[-2]) / total, entropy]


def network_of(backbone: GatedBackbone) -> Any:  # noqa: ANN401
    """Return the module that has the probes and the statistics of features."""
    return backbone.network if isinstance(backbone, InferenceBackbone) else backbone


def _has_plain_features(backbone: GatedBackbone) -> bool:
    """Return whether ``_Probe`` computes the features of a backbone, and fast."""
    if type(backbone) is not InferenceBackbone or backbone.dtype != torch.float32:
        return False
    kind = type(backbone.network)
    plain = kind.feature is Backbone.feature and kind.parts is Backbone.parts
    return plain and backbone.n_classes <= MANY_CLASSES


def _linear(module: nn.Module, name: str | int, views: Views) -> tuple[Array, Array]:
    """Return views of weight and bias of a submodule."""
    linear = views.child(module, name, kind=nn.Linear)
    return views.view(linear, "weight"), views.view(linear, "bias")


def _sigmoid(x: Array) -> Array:
    return cast("Array", 0.5 * (np.tanh(0.5 * x) + 1.0))  # without overflow
