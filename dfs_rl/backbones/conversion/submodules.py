"""Runnable pieces of a traced model, with its operators swapped for fractional ones."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from dfs_rl.backbones.conversion.residual_search import (
    ATTENTION,
    PRODUCTS,
    Span,
    ancestors,
    has_stored_tensors,
    is_costly,
    is_swappable,
    weighted_module,
)
from dfs_rl.backbones.conversion.selection import FractionalizeConfig, GatedPart
from dfs_rl.backbones.conversion.tracing import Traced, arguments_of, batch_factor, name_of
from dfs_rl.costs import FULL, SKIP
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import Float32Module
from dfs_rl.quantization.modules import (
    ConvGeometry,
    FractionalAttention,
    FractionalConv2d,
    FractionalLinear,
    FractionalMatmul,
)
from dfs_rl.quantization.norms import BatchNormPerBits


class Swap(NamedTuple):
    """Fractional operator by its name in a piece, its inputs, and if it runs at the gate's bits."""

    name: str
    module: nn.Module
    inputs: tuple[fx.Node, ...]
    gated: bool


def make_swaps(
    traced: Traced, parts: Sequence[GatedPart], config: FractionalizeConfig
) -> dict[fx.Node, Swap]:
    """Make the fractional form of every operator that has one."""
    all_gated = frozenset().union(*(part.nodes for part in parts))
    run_bits = tuple(bits for bits in config.bits if bits != SKIP)
    swaps: dict[fx.Node, Swap] = {}
    taken: set[str] = set()
    for node in traced.nodes:
        gated = node in all_gated
        module = _fractional(node, run_bits if gated else (config.stem_bits,), config)
        if module is None:
            _check_fixed(node, config.stem_bits)
            continue
        inputs = _inputs_of(node)
        before = swaps.get(inputs[0])
        if (
            isinstance(module, BatchNormPerBits)
            and before is not None
            and isinstance(before.module, FractionalConv2d)
            and before.gated == gated
            and len(inputs[0].users) == 1
        ):  # a batch norm joins the convolution before it
            before.module.norm = module
            swaps[node] = swaps.pop(inputs[0])
        else:
            swaps[node] = Swap(_free_name(weighted_module(node), taken), module, inputs, gated)
    return swaps


def _check_fixed(node: fx.Node, bits: int) -> None:
    """Check that an operator without a quantized form is not to run at fewer bits."""
    if bits != FULL and node.meta["flows"] and is_costly(node):
        raise ConfigError(
            f"stem_bits is {bits}, but {name_of(node)} of module {weighted_module(node)!r} is "
            f"never gated and runs at {FULL} bit alone; give {FULL}."
        )


def _inputs_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the tensors that the fractional form of an operator takes."""
    if name_of(node) in ("batch_norm", "conv2d", "linear"):
        return (cast("fx.Node", node.args[0]),)
    if name_of(node) == ATTENTION:
        named = arguments_of(node)
        tensors = [named[key] for key in ("query", "key", "value", "attn_mask")]
        return tuple(tensor for tensor in tensors if tensor is not None)
    return cast("tuple[fx.Node, fx.Node]", node.args[:2])


def _fractional(
    node: fx.Node, bits: Sequence[int], config: FractionalizeConfig
) -> nn.Module | None:
    """Return an operator's fractional form, ``None`` if it stays."""
    if not node.meta["flows"] or node.op != "call_function":
        return None
    name, named = name_of(node), arguments_of(node)
    is_norm = name == "batch_norm" and has_stored_tensors(node)
    if not is_norm and not is_swappable(node):
        return None
    dtype = node.meta["val"].dtype
    if dtype != torch.float32:
        raise ConfigError(
            f"module {weighted_module(node)!r} computes in {dtype}; give a model that computes in "
            "torch.float32."
        )
    if is_norm:
        return _norm(named, bits)
    if name == ATTENTION:
        scale, causal, grouped = (named[key] for key in ("scale", "is_causal", "enable_gqa"))
        return FractionalAttention(bits, scale=scale, causal=causal, grouped=grouped)
    if name in PRODUCTS:
        return FractionalMatmul(bits)
    # The model's own, so that all operators share them.
    weight = _trained(named["weight"].meta["val"])
    bias = None if named["bias"] is None else _trained(named["bias"].meta["val"])
    per_channel = config.per_channel
    if name == "conv2d":
        return FractionalConv2d(
            weight, bits, geometry=_geometry(node), bias=bias, per_channel=per_channel
        )
    outputs, inputs = weight.shape
    linear = FractionalLinear(
        inputs, outputs, bits=bits, signed_input=True, bias=False, per_channel=per_channel
    )
    linear.weight, linear.bias = weight, bias
    return linear


def _norm(named: Mapping[str, Any], bits: Sequence[int]) -> nn.Module | None:
    weight, bias, mean, variance = (
        None if named[key] is None else named[key].meta["val"]
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    if mean is None or variance is None or named["training"]:
        return None
    norm = BatchNormPerBits(len(mean), bits, epsilon=named["eps"])
    theirs = (weight, bias, mean, variance)
    for ours, tensor in zip(norm.state_dict().values(), theirs, strict=True):
        if tensor is not None:
            ours.copy_(tensor.detach().expand_as(ours))
    return norm


def _geometry(node: fx.Node) -> ConvGeometry:
    named = arguments_of(node)
    padding, dilation = named["padding"], _pair(named["dilation"])
    if isinstance(padding, str):
        kernel = named["weight"].meta["val"].shape[2:]
        same = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [0, 0] if padding == "valid" else [total // 2 for total in same]
        if padding != [0, 0] and any(total % 2 for total in same):
            raise ConfigError(
                f"module {weighted_module(node)!r} pads one side more than the other; pad with "
                "torch.nn.ZeroPad2d before it instead."
            )
    return ConvGeometry(
        stride=_pair(named["stride"]),
        padding=_pair(padding),
        dilation=dilation,
        groups=named["groups"],
    )


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[-1])


def _trained(tensor: Tensor) -> nn.Parameter:
    """Return a parameter of the model to train, or a constant, such as a fixed filter, as it is."""
    if isinstance(tensor, nn.Parameter):
        tensor.requires_grad_()
        return tensor
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def _free_name(module: str, taken: set[str]) -> str:
    base = module.replace(".", "_") or "operator"
    name, n = base, 1
    while name in taken or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        n += 1
        name = f"{base}_{n}" if base.isidentifier() else f"operator_{base}_{n}"
    taken.add(name)
    return name


Run = Callable[["Piece", Tensor, int], Tensor]


class Piece(Float32Module):
    """A part of a model from one cut to another, compiled to functions.

    ``part`` is what is gated in the span, if anything is; the rest runs at ``fixed`` bits.

    Attributes:
        ops: The fractional operators in it.
        held: Its other parameters and constants.
        runs_when_skipped: Whether 0 bit computes anything.
    """

    def __init__(
        self, swaps: Mapping[fx.Node, Swap], span: Span, part: GatedPart | None, *, fixed: int
    ) -> None:
        super().__init__()
        emitter = _Emitter(swaps, fixed)
        self.run = emitter.emit(span, {})
        self.shortcut: Run | None = None
        self.runs_when_skipped = True
        if part is not None:
            # A part without branches never runs its shortcut: 0 is no bit option then.
            around = {
                node: rest for branch in part.branches for node, rest in branch.instead.items()
            } or {span.end: part.span.start}
            if _changes_nothing_twice(span, part):
                around[span.end] = span.start
            self.shortcut = emitter.emit(span, around)
            self.runs_when_skipped = not emitter.nothing_runs
        self.ops = nn.ModuleDict(dict(sorted(emitter.operators.items())))
        self.held = emitter.held

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Run at ``bits``."""
        run = self.shortcut if bits == SKIP and self.shortcut is not None else self.run
        if self.inference_dtype is not None:
            hidden = hidden.float()
        return self.kept(run(self, hidden, bits))


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

    def __init__(self, swaps: Mapping[fx.Node, Swap], fixed: int) -> None:
        self.swaps = swaps
        self.fixed = fixed
        self.held = nn.Module()
        self.names: dict[str, str] = {}
        self.operators: dict[str, nn.Module] = {}
        self.nothing_runs = False

    def emit(self, span: Span, instead: Mapping[fx.Node, fx.Node]) -> Run:
        """Compile a span; a node in ``instead`` has the value of the node that it maps to."""

        def sources(node: fx.Node) -> Iterable[fx.Node]:
            if node in instead:
                return [instead[node]]
            if batch_factor(node) is not None:
                return []
            return self.swaps[node].inputs if node in self.swaps else node.all_input_nodes

        graph = fx.Graph()
        hidden, bits = graph.placeholder("hidden"), graph.placeholder("bits")
        values: dict[fx.Node, fx.Node] = {span.start: hidden}
        for node in sorted(ancestors(span.end, of=span.start, sources=sources)):
            factor = batch_factor(node)
            if node in instead:
                values[node] = values[instead[node]]
            elif factor is not None:
                size = graph.call_function(torch.ops.aten.sym_size.int, (hidden, 0))
                values[node] = graph.call_function(operator.mul, (size, factor))
            elif node.op == "get_attr":
                values[node] = graph.get_attr(f"held.{self._hold(node)}")
            elif node in self.swaps:
                name, module, inputs, gated = self.swaps[node]
                self.operators[name] = module
                arguments = (*(values[n] for n in inputs), bits if gated else self.fixed)
                values[node] = graph.call_module(f"ops.{name}", arguments)
            else:
                args, kwargs = node.args, node.kwargs
                named = arguments_of(node)
                if "device" in named and (named["device"] is not None or not node.meta["flows"]):
                    device = graph.call_function(getattr, (hidden, "device"))
                    args, kwargs = (), {**named, "device": device}  # it may be given by position
                args, kwargs = fx.map_arg((args, kwargs), lambda n: values.get(n, n))
                values[node] = graph.call_function(cast("Any", node.target), args, kwargs)
        graph.output(values[span.end])
        self.nothing_runs = values[span.end] is hidden
        # Only the function: it finds parameters in the piece that it is called with.
        held = self.held.state_dict(keep_vars=True)
        root = {f"ops.{name}": module for name, module in self.operators.items()}
        root |= {f"held.{name}": tensor for name, tensor in held.items()}
        return cast("Run", type(fx.GraphModule(root, graph)).forward)

    def _hold(self, node: fx.Node) -> str:
        target, tensor = str(node.target), node.meta["val"]
        name = target.replace(".", "_")
        while self.names.setdefault(name, target) != target:
            name += "_"
        if not hasattr(self.held, name):
            if isinstance(tensor, nn.Parameter):
                self.held.register_parameter(name, _trained(tensor))
            else:
                self.held.register_buffer(name, tensor)
        return name
