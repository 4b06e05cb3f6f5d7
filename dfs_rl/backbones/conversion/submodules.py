"""Runnable pieces of a traced model, with its operators swapped for fractional ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from dfs_rl.backbones.conversion.residual_search import (
    ATTENTION,
    PRODUCTS,
    Span,
    has_stored_tensors,
    is_swappable,
    weighted_module,
)
from dfs_rl.backbones.conversion.selection import GatedPart
from dfs_rl.backbones.conversion.tracing import Traced, batch_factor, name_of
from dfs_rl.costs import SKIP
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import copy_for_inference, inference_form
from dfs_rl.quantization.modules import (
    BatchNormPerBits,
    ConvGeometry,
    FractionalAttention,
    FractionalConv2d,
    FractionalLayer,
    FractionalLinear,
    FractionalMatmul,
)

_NOTHING: Mapping[fx.Node, fx.Node] = MappingProxyType({})


class Swap(NamedTuple):
    """Fractional operator by its name in a piece, its inputs, and if it runs at the gate's bits."""

    name: str
    module: nn.Module
    inputs: tuple[fx.Node, ...]
    gated: bool


class Widths(NamedTuple):
    """Non-zero bit widths of the gated layers, that of everything else, weight scales."""

    gated: tuple[int, ...]
    fixed: int
    per_channel: bool


def make_swaps(traced: Traced, parts: Sequence[GatedPart], widths: Widths) -> dict[fx.Node, Swap]:
    """Make the fractional form of every operator that has one."""
    gated = frozenset().union(*(part.nodes for part in parts))
    swaps: dict[fx.Node, Swap] = {}
    taken: set[str] = set()
    maker = _Maker(traced, widths)
    for node in traced.graph.nodes:
        if node.op != "call_function" or not node.meta["flows"]:
            continue
        made = maker.make(node, gated=node in gated)
        if made is None:
            continue
        module, inputs = made
        name = _free_name(weighted_module(node), taken)
        swaps[node] = Swap(name, module, inputs, node in gated)
        if isinstance(module, BatchNormPerBits) and maker.fold(node, inputs[0], swaps):
            taken.discard(name)
    return swaps


class _Maker:
    """Makes fractional forms of a model's operators."""

    def __init__(self, traced: Traced, widths: Widths) -> None:
        self.traced = traced
        self.widths = widths

    def make(self, node: fx.Node, *, gated: bool) -> tuple[nn.Module, tuple[fx.Node, ...]] | None:
        """Return an operator's fractional form and its arguments, ``None`` if it stays."""
        bits = self.widths.gated if gated else (self.widths.fixed,)
        name = name_of(node)
        if name == "batch_norm" and has_stored_tensors(node):
            return self._norm(_arguments(node), bits)
        if not is_swappable(node):
            return None
        arguments = _arguments(node)
        if name == "conv2d":
            return self._convolution(node, arguments, bits)
        if name == "linear":
            return self._linear(arguments, bits)
        if name == ATTENTION:
            tensors = [arguments[key] for key in ("query", "key", "value", "attn_mask")]
            attention = FractionalAttention(
                bits,
                scale=arguments["scale"],
                causal=arguments["is_causal"],
                grouped=arguments["enable_gqa"],
            )
            return attention, tuple(t for t in tensors if t is not None)
        assert name in PRODUCTS
        return FractionalMatmul(bits), cast("tuple[fx.Node, fx.Node]", node.args[:2])

    def fold(self, node: fx.Node, source: fx.Node, swaps: dict[fx.Node, Swap]) -> bool:
        """Join a batch norm to the convolution before it, if nothing else reads its output."""
        before = swaps.get(source)
        after = swaps[node]
        fits = (
            before is not None
            and isinstance(before.module, FractionalConv2d)
            and before.gated == after.gated
            and len(source.users) == 1
        )
        if not fits or before is None:
            return False
        cast("FractionalConv2d", before.module).norm = cast("BatchNormPerBits", after.module)
        swaps[node] = before
        del swaps[source]
        return True

    def _tensor(self, node: fx.Node | None) -> Tensor | None:
        return None if node is None else self.traced.tensors[str(node.target)]

    def _norm(
        self, arguments: Mapping[str, Any], bits: Sequence[int]
    ) -> tuple[nn.Module, tuple[fx.Node, ...]] | None:
        mean, variance = (self._tensor(arguments[k]) for k in ("running_mean", "running_var"))
        if mean is None or variance is None or arguments["training"]:
            return None
        norm = BatchNormPerBits(len(mean), bits, epsilon=arguments["eps"])
        weight, bias = (self._tensor(arguments[key]) for key in ("weight", "bias"))
        with torch.no_grad():
            for ours, theirs in zip(
                norm.norm_tensors(), (weight, bias, mean, variance), strict=True
            ):
                if theirs is not None:
                    ours.copy_(theirs.expand_as(ours))
        return norm, (arguments["input"],)

    def _convolution(
        self, node: fx.Node, arguments: Mapping[str, Any], bits: Sequence[int]
    ) -> tuple[nn.Module, tuple[fx.Node, ...]]:
        weight, bias = self._parameters(arguments)
        padding = arguments["padding"]
        if isinstance(padding, str):
            kernel = weight.shape[2:]
            same = [d * (k - 1) for d, k in zip(_pair(arguments["dilation"]), kernel, strict=True)]
            padding = [0, 0] if padding == "valid" else [total // 2 for total in same]
            if padding != [0, 0] and any(total % 2 for total in same):
                raise ConfigError(
                    f"module {weighted_module(node)!r} pads one side more than the other; pad with "
                    "torch.nn.ZeroPad2d before it instead."
                )
        geometry = ConvGeometry(
            stride=_pair(arguments["stride"]),
            padding=_pair(padding),
            dilation=_pair(arguments["dilation"]),
            groups=arguments["groups"],
        )
        module = FractionalConv2d(
            weight,
            bits,
            geometry=geometry,
            bias=bias,
            per_channel=self.widths.per_channel,
        )
        return module, (arguments["input"],)

    def _linear(
        self, arguments: Mapping[str, Any], bits: Sequence[int]
    ) -> tuple[nn.Module, tuple[fx.Node, ...]]:
        weight, bias = self._parameters(arguments)
        module = FractionalLinear(
            weight.shape[1],
            weight.shape[0],
            bits=bits,
            signed_input=True,
            bias=False,
            per_channel=self.widths.per_channel,
        )
        module.weight, module.bias = weight, bias
        return module, (arguments["input"],)

    def _parameters(self, arguments: Mapping[str, Any]) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return weight and bias, the model's own, so that all operators share them."""
        weight, bias = (self._tensor(arguments[key]) for key in ("weight", "bias"))
        return _trained(cast("Tensor", weight)), None if bias is None else _trained(bias)


Run = Callable[["Piece", Tensor, int], Tensor]


class Piece(nn.Module):
    """A part of a model from one cut to another.

    ``held`` has its parameters and constants outside of its fractional operators. At 0 bit
    ``shortcut`` runs instead of ``run``, except in a part that always runs.
    """

    def __init__(
        self,
        operators: Mapping[str, nn.Module],
        held: nn.Module,
        run: Run,
        shortcut: Run | None,
        *,
        runs_when_skipped: bool,
    ) -> None:
        super().__init__()
        self.ops = nn.ModuleDict(operators)
        self.held = held
        self.run = run
        self.shortcut = shortcut
        self.runs_when_skipped = runs_when_skipped
        self.inference_dtype: torch.dtype | None = None

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Run at ``bits``; everything that is not gated runs at its own precision.

        The inference form computes in float32 and returns its own dtype.
        """
        run = self.shortcut if bits == SKIP and self.shortcut is not None else self.run
        if self.inference_dtype is None:
            return run(self, hidden, bits)
        return run(self, hidden.float(), bits).to(self.inference_dtype)


@inference_form(Piece)
def _piece(source: Piece, dtype: torch.dtype) -> Piece:
    form = copy_for_inference(source, torch.float32)
    form.inference_dtype = dtype
    return form


def make_piece(
    traced: Traced, swaps: Mapping[fx.Node, Swap], span: Span, part: GatedPart | None, *, fixed: int
) -> Piece:
    """Make the piece of a span, all of it at ``fixed`` bits, or with a gated part in it."""
    emitter = _Emitter(traced, swaps, fixed)
    run = emitter.emit(span, _NOTHING)
    shortcut, runs = None, True
    if part is not None:
        # A part without branches never runs its shortcut: 0 is no bit option then.
        around = {
            node: rest for branch in part.branches for node, rest in branch.instead.items()
        } or {span.end: part.span.start}
        if _changes_nothing_twice(span, part):
            around[span.end] = span.start
        shortcut = emitter.emit(span, around)
        runs = not emitter.nothing_runs
    operators = {name: swap.module for name, swap in sorted(emitter.operators.items())}
    return Piece(operators, emitter.held, run, shortcut, runs_when_skipped=runs)


def _changes_nothing_twice(span: Span, part: GatedPart) -> bool:
    """Return whether a skipped part only repeats the activation function of its input."""
    return (
        part.span.start is span.start
        and all(branch.identity for branch in part.branches)
        and name_of(span.end) in ("relu", "relu6", "hardtanh")
        and name_of(span.start) == name_of(span.end)
        and span.start.args[1:] == span.end.args[1:]
    )


class _Emitter:
    """Compiles spans of a traced model to functions of a piece, an activation and bits."""

    def __init__(self, traced: Traced, swaps: Mapping[fx.Node, Swap], fixed: int) -> None:
        self.traced = traced
        self.swaps = swaps
        self.fixed = fixed
        self.held = nn.Module()
        self.names: dict[str, str] = {}
        self.operators: dict[str, Swap] = {}
        self.nothing_runs = False

    def emit(self, span: Span, instead: Mapping[fx.Node, fx.Node]) -> Run:
        """Compile a span; a node in ``instead`` has the value of the node that it maps to."""
        needed = self._needed(span, instead)
        graph = fx.Graph()
        hidden, bits = graph.placeholder("hidden"), graph.placeholder("bits")
        values: dict[fx.Node, fx.Node] = {span.start: hidden}
        for node in self.traced.graph.nodes:
            if node in needed and node is not span.start:
                values[node] = self._value(node, graph, values, instead, bits)
        graph.output(values[span.end])
        self.nothing_runs = values[span.end] is hidden
        # Only the function: it finds parameters in the piece that it is called with.
        module = fx.GraphModule(_Stub(self.held, self.operators), graph)
        return cast("Run", type(module).forward)

    def _value(
        self,
        node: fx.Node,
        graph: fx.Graph,
        values: Mapping[fx.Node, fx.Node],
        instead: Mapping[fx.Node, fx.Node],
        bits: fx.Node,
    ) -> fx.Node:
        if node in instead:
            return values[instead[node]]
        factor = batch_factor(node)
        if factor is not None:
            size = graph.call_function(
                torch.ops.aten.sym_size.int, (next(iter(values.values())), 0)
            )
            return graph.call_function(_times, (size, factor)) if factor > 1 else size
        if node.op == "get_attr":
            return graph.get_attr(f"held.{self._hold(str(node.target))}")
        if node in self.swaps:
            swap = self.swaps[node]
            self.operators[swap.name] = swap
            arguments = [values[n] for n in swap.inputs]
            return graph.call_module(
                f"ops.{swap.name}", (*arguments, bits if swap.gated else self.fixed)
            )
        args, kwargs = node.args, node.kwargs
        named = _arguments(node)
        if "device" in named and (named["device"] is not None or not node.meta["flows"]):
            device = graph.call_function(getattr, (next(iter(values.values())), "device"))
            args, kwargs = (), {**named, "device": device}  # it may be given by position
        args, kwargs = fx.map_arg((args, kwargs), lambda n: values.get(n, n))
        return graph.call_function(cast("Any", node.target), args, kwargs)

    def _needed(self, span: Span, instead: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
        seen = {span.start}
        waiting = [span.end]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in instead:
                waiting.append(instead[node])
            elif batch_factor(node) is None:
                swap = self.swaps.get(node)
                waiting.extend(node.all_input_nodes if swap is None else swap.inputs)
        return seen

    def _hold(self, target: str) -> str:
        name = target.replace(".", "_")
        while self.names.setdefault(name, target) != target:
            name += "_"
        if not hasattr(self.held, name):
            tensor = self.traced.tensors[target]
            if isinstance(tensor, nn.Parameter):
                self.held.register_parameter(name, _trained(tensor))
            else:
                self.held.register_buffer(name, tensor)
        return name


class _Stub(nn.Module):
    """The module in which torch.fx looks up the names of a graph."""

    def __init__(self, held: nn.Module, operators: Mapping[str, Swap]) -> None:
        super().__init__()
        self.held = held
        self.ops = nn.ModuleDict({name: swap.module for name, swap in operators.items()})


def _trained(tensor: Tensor) -> nn.Parameter:
    """Return a parameter of the model to train, or a constant, such as a fixed filter, as it is."""
    if isinstance(tensor, nn.Parameter):
        tensor.requires_grad_()
        return tensor
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def _times(size: int, factor: int) -> int:
    return size * factor


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operator's arguments by name, defaults included; none of Python's own."""
    schema = getattr(node.target, "_schema", None)
    parameters = [] if schema is None else schema.arguments
    values = {a.name: a.default_value for a in parameters}
    values.update(zip((a.name for a in parameters), node.args, strict=False))
    return values | dict(node.kwargs)


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[-1])


def _free_name(module: str, taken: set[str]) -> str:
    base = module.replace(".", "_") or "operator"
    name, n = base, 1
    while name in taken or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        n += 1
        name = f"{base}_{n}" if base.isidentifier() else f"operator_{base}_{n}"
    taken.add(name)
    return name


def operators_of(pieces: Iterable[nn.Module]) -> list[FractionalLayer]:
    """Return the operators of pieces that quantize, in order."""
    return [m for piece in pieces for m in piece.modules() if isinstance(m, FractionalLayer)]
