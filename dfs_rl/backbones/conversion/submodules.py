"""Runnable pieces of a traced model: its operators swapped for fractional ones, cut where activations are alone."""

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
from dfs_rl.quantization.general_modules import (
    FractionalAttention,
    FractionalMatmul,
    GeneralConv2d,
    GeneralNorm,
)
from dfs_rl.quantization.modules import ConvGeometry, FractionalLinear

_NOTHING: Mapping[fx.Node, fx.Node] = MappingProxyType({})


class Swap(NamedTuple):
    """What takes an operator's place.

    Attributes:
        name: Under which its piece keeps it.
        module: The fractional operator.
        inputs: What it is called with, before the bits.
        gated: Whether a gate chooses its bits.
    """

    name: str
    module: nn.Module
    inputs: tuple[fx.Node, ...]
    gated: bool


class Widths(NamedTuple):
    """At which bits the parts of a model run.

    Attributes:
        gated: Non-zero bit widths of what a gate decides about.
        fixed: That of everything else.
        per_channel: One weight step per output channel instead of one per layer.
    """

    gated: tuple[int, ...]
    fixed: int
    per_channel: bool


def make_swaps(traced: Traced, parts: Sequence[GatedPart], widths: Widths) -> dict[fx.Node, Swap]:
    """Make the fractional operator of every convolution, linear layer, product, attention and batch norm."""
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
        if isinstance(module, GeneralNorm) and maker.fold(node, inputs[0], swaps):
            taken.discard(name)
    return swaps


class _Maker:
    """Makes fractional operators out of a model's."""

    def __init__(self, traced: Traced, widths: Widths) -> None:
        self.traced = traced
        self.widths = widths

    def make(self, node: fx.Node, *, gated: bool) -> tuple[nn.Module, tuple[fx.Node, ...]] | None:
        """Return what takes the operator's place and what it is called with, or ``None`` for one that stays."""
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
        return FractionalMatmul(bits), (
            cast("fx.Node", node.args[0]),
            cast("fx.Node", node.args[1]),
        )

    def fold(self, node: fx.Node, source: fx.Node, swaps: dict[fx.Node, Swap]) -> bool:
        """Let the convolution before a batch norm take it along, if nothing else reads what the convolution returns."""
        before = swaps.get(source)
        after = swaps[node]
        fits = (
            before is not None
            and isinstance(before.module, GeneralConv2d)
            and before.gated == after.gated
            and len(source.users) == 1
        )
        if not fits or before is None:
            return False
        cast("GeneralConv2d", before.module).norm = cast("GeneralNorm", after.module)
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
        norm = GeneralNorm(
            mean,
            variance,
            self._tensor(arguments["weight"]),
            self._tensor(arguments["bias"]),
            bits,
            epsilon=arguments["eps"],
        )
        return norm, (arguments["input"],)

    def _convolution(
        self, node: fx.Node, arguments: Mapping[str, Any], bits: Sequence[int]
    ) -> tuple[nn.Module, tuple[fx.Node, ...]]:
        weight = cast("Tensor", self._tensor(arguments["weight"]))
        padding = arguments["padding"]
        if isinstance(padding, str):
            kernel = weight.shape[2:]
            same = [d * (k - 1) for d, k in zip(_pair(arguments["dilation"]), kernel, strict=True)]
            padding = [0, 0] if padding == "valid" else [total // 2 for total in same]
            if padding != [0, 0] and any(total % 2 for total in same):
                raise ConfigError(
                    f"module {weighted_module(node)!r} pads one side more than the other; pad with torch.nn.ZeroPad2d before it instead."
                )
        geometry = ConvGeometry(
            stride=_pair(arguments["stride"]),
            padding=_pair(padding),
            dilation=_pair(arguments["dilation"]),
            groups=arguments["groups"],
        )
        module = GeneralConv2d(
            weight,
            self._tensor(arguments["bias"]),
            bits,
            geometry=geometry,
            per_channel=self.widths.per_channel,
        )
        self._share(module, arguments)
        return module, (arguments["input"],)

    def _linear(
        self, arguments: Mapping[str, Any], bits: Sequence[int]
    ) -> tuple[nn.Module, tuple[fx.Node, ...]]:
        weight = cast("Tensor", self._tensor(arguments["weight"]))
        module = FractionalLinear(
            weight.shape[1],
            weight.shape[0],
            bits=bits,
            signed_input=True,
            bias=False,
            per_channel=self.widths.per_channel,
        )
        self._share(module, arguments)
        return module, (arguments["input"],)

    def _share(
        self, module: GeneralConv2d | FractionalLinear, arguments: Mapping[str, Any]
    ) -> None:
        """Set the model's own weight and bias, so that all operators that use them have the same."""
        module.weight = _trained(cast("Tensor", self._tensor(arguments["weight"])))
        bias = self._tensor(arguments["bias"])
        module.bias = None if bias is None else _trained(bias)


Run = Callable[["Piece", Tensor, int], Tensor]


class Piece(nn.Module):
    """A part of a model from one lone activation to another.

    Args:
        operators: Its fractional operators by name, or their frozen forms.
        held: Its other parameters and constants.
        run: What runs it.
        shortcut: What runs in its place at 0 bit; ``None`` for a part that always runs.
        runs_when_skipped: Whether something runs at 0 bit as well.
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

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Run at ``bits``; what no gate decides about runs at its own precision."""
        if bits == SKIP and self.shortcut is not None:
            return self.shortcut(self, hidden, bits)
        return self.run(self, hidden, bits)


def make_piece(
    traced: Traced, swaps: Mapping[fx.Node, Swap], span: Span, part: GatedPart | None, *, fixed: int
) -> Piece:
    """Make what runs a span, all of it fixed, or with a gated part in it.

    Args:
        traced: The model.
        swaps: Its fractional operators.
        span: From where to where.
        part: What a gate decides about.
        fixed: Bits of everything else.
    """
    emitter = _Emitter(traced, swaps, fixed)
    run = emitter.emit(span, _NOTHING)
    shortcut, runs = None, True
    if part is not None:
        # Without branches only what stands before the part is left; the menu has no 0 bit then.
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
    """Say whether a skipped part would only repeat the activation function that its input comes from."""
    return (
        part.span.start is span.start
        and all(branch.identity for branch in part.branches)
        and name_of(span.end) in ("relu", "relu6", "hardtanh")
        and name_of(span.start) == name_of(span.end)
        and span.start.args[1:] == span.end.args[1:]
    )


class _Emitter:
    """Writes spans of a traced model as functions of a piece, an activation and bits."""

    def __init__(self, traced: Traced, swaps: Mapping[fx.Node, Swap], fixed: int) -> None:
        self.traced = traced
        self.swaps = swaps
        self.fixed = fixed
        self.held = nn.Module()
        self.names: dict[str, str] = {}
        self.operators: dict[str, Swap] = {}
        self.nothing_runs = False

    def emit(self, span: Span, instead: Mapping[fx.Node, fx.Node]) -> Run:
        """Write a span; where ``instead`` has a node, its value is another's."""
        needed = self._needed(span, instead)
        graph = fx.Graph()
        hidden, bits = graph.placeholder("hidden"), graph.placeholder("bits")
        values: dict[fx.Node, fx.Node] = {span.start: hidden}
        for node in self.traced.graph.nodes:
            if node in needed and node is not span.start:
                values[node] = self._value(node, graph, values, instead, bits)
        graph.output(values[span.end])
        self.nothing_runs = values[span.end] is hidden
        # Only the function is wanted: it finds parameters in the piece it is called with, wherever they were moved to.
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
    """Where torch.fx looks whether what a graph names exists."""

    def __init__(self, held: nn.Module, operators: Mapping[str, Swap]) -> None:
        super().__init__()
        self.held = held
        self.ops = nn.ModuleDict({name: swap.module for name, swap in operators.items()})


def _trained(tensor: Tensor) -> nn.Parameter:
    """Return a parameter of the model itself, to be trained; what is none there, such as a fixed filter, stays as it is."""
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


def operators_of(pieces: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the fractional operators of pieces that quantize, in order."""
    return [
        module
        for piece in pieces
        for module in piece.modules()
        if isinstance(module, FractionalLinear | GeneralConv2d | FractionalMatmul)
    ]
