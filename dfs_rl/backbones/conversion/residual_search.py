"""Search of a traced model for places to cut it and for residual branches."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from dfs_rl.backbones.conversion.tracing import Traced, batch_factor, name_of
from dfs_rl.costs.mac_counter import count_macs

_SIDES = 2  # of a sum
PRODUCTS = ("matmul", "bmm")
ATTENTION = "scaled_dot_product_attention"
_WEIGHTED = ("conv2d", "linear")
_COSTLY = {str(op).removeprefix("aten.") for op in flop_registry} | {
    *(*_WEIGHTED, ATTENTION, "conv1d", "conv3d", "einsum", "bilinear", "lstm", "gru", "rnn_tanh"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "rnn_relu", "dot", "mv"),
    *("addmv", "addbmm", "tensordot", "inner", "chain_matmul", "cdist"),
}
ACTIVATIONS = {
    *("relu", "relu6", "hardtanh", "gelu", "silu", "leaky_relu", "elu", "selu", "celu", "prelu"),
    *("mish", "softplus", "sigmoid", "tanh", "hardswish", "hardsigmoid", "clamp", "clamp_min"),
}
_PROJECTION_RATIO = 1.25
"""Least ratio of a residual block's other paths to its projection, in MACs.

Where two paths cost about the same, or the projection most, as the weight that LoRA adapts, neither
is a shortcut.
"""
_NOT_BATCH_FIRST = (
    "its activations do not have one row for each image, as those of torch's attention have with "
    "batch_first=True"
)


class Span(NamedTuple):
    """The operators between two cuts, places where only one activation is needed later."""

    start: fx.Node
    end: fx.Node


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A part with a shortcut around it.

    Attributes:
        name: The module that holds its weights.
        owner: The module that adds it to its shortcut.
        span: From the input of both to their sum.
        identity: Whether the shortcut, the other summands, is the span's start alone.
        on_shortcut: The operators on the shortcut.
        instead: Replacements of the sums when the branch is skipped.
        nodes: The operators of the branch alone.
    """

    name: str
    owner: str
    span: Span
    identity: bool
    on_shortcut: frozenset[fx.Node]
    instead: Mapping[fx.Node, fx.Node]
    nodes: frozenset[fx.Node]


class LeftAlone(NamedTuple):
    """A module that is not gated, and why."""

    name: str
    reason: str


class Findings(NamedTuple):
    """Branches, cuts from the images to the logits, and residual blocks that cannot be gated."""

    branches: tuple[Branch, ...]
    cuts: tuple[fx.Node, ...]
    left_alone: tuple[LeftAlone, ...]


def find(traced: Traced) -> Findings:
    """Find the residual branches of a model."""
    alone = tuple(_alone(traced))
    cuts = tuple(node for node in alone if _is_batch_first(node))
    found = [_branch(Span(*ends), traced.logits) for ends in pairwise(cuts)]
    left_alone = [part for part in found if isinstance(part, LeftAlone)]
    for start, end in pairwise(alone):
        part = None if _is_batch_first(end) else _branch(Span(start, end), traced.logits)
        if isinstance(part, Branch):
            left_alone.append(LeftAlone(part.name, _NOT_BATCH_FIRST))
    branches = tuple(part for part in found if isinstance(part, Branch))
    return Findings(branches, cuts, tuple(left_alone))


def weighted_module(node: fx.Node) -> str:
    """Return the module whose weight an operator uses, or the one that runs it."""
    runs_in = str(node.meta["module"])
    for source in node.all_input_nodes:
        if source.op == "get_attr" and name_of(node) in _WEIGHTED:
            owner = str(source.target).rpartition(".")[0]
            # A weight that several modules share has the name of one of them.
            return owner if is_within(owner, runs_in) else runs_in
    return runs_in


def is_within(name: str, module: str) -> bool:
    """Return whether a module is another one or a part of it; the model itself is ``""``."""
    return name == module or name.startswith(f"{module}.") or not module


def is_costly(node: fx.Node) -> bool:
    """Return whether an operator multiplies and adds."""
    return node.op == "call_function" and (is_swappable(node) or name_of(node) in _COSTLY)


def costly(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the operators that multiply and add what depends on the images, in order."""
    return sorted(node for node in nodes if node.meta["flows"] and is_costly(node))


def is_swappable(node: fx.Node) -> bool:
    """Return whether the operator has a quantized form."""
    name = name_of(node)
    if name in _WEIGHTED:
        weight = cast("fx.Node", node.args[1]).meta["val"]
        return has_stored_tensors(node) and weight.dim() > 1
    return name == ATTENTION or name in PRODUCTS


def has_stored_tensors(node: fx.Node) -> bool:
    """Return whether all inputs but the first are parameters or constants of the model."""
    return all(source.op == "get_attr" for source in node.all_input_nodes[1:])


def ancestors(
    *ends: fx.Node,
    of: fx.Node,
    sources: Callable[[fx.Node], Iterable[fx.Node]] = attrgetter("all_input_nodes"),
) -> frozenset[fx.Node]:
    """Return ``ends`` and everything that they are computed from, up to and without ``of``."""
    seen: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node is not of and node not in seen:
            seen.add(node)
            waiting.extend(sources(node))
    return frozenset(seen)


def _alone(traced: Traced) -> Iterator[fx.Node]:
    """Yield every activation that is at some point the only one needed later."""
    alive: dict[fx.Node, fx.Node] = {}  # with the last operator that reads each
    previous = None
    for node in traced.nodes:
        if not node.meta["flows"]:
            continue
        alive = {n: last for n, last in alive.items() if last > node}
        readers = [user for user in node.users if batch_factor(user) is None]
        if readers:
            alive[node] = max(readers)
        if len(alive) == 1:
            (only,) = alive
            if only is not previous and _is_activation(only):
                previous = only
                yield only


def _is_activation(node: fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point()


def _is_batch_first(node: fx.Node) -> bool:
    """Return whether an activation has one row for each image."""
    first: object = node.meta["val"].shape[0]
    return isinstance(first, torch.SymInt) and bool(first.node.expr.is_Symbol)


def _branch(span: Span, logits: fx.Node) -> Branch | LeftAlone | None:
    """Return the branch of a span, why it cannot be gated, or ``None`` without a branch."""
    start, end = span
    inside = ancestors(end, of=start)
    weighted = costly(inside)
    terms = list(_terms(end, start))
    if not terms:
        if weighted and sum(bool(user.meta["flows"]) for user in start.users) > 1:
            return LeftAlone(common_module(weighted), "its paths do not end in a plain sum")
        return None
    if not weighted:
        return None
    kept = _shortcut(terms, start)
    around = ancestors(*kept, of=start)
    nodes = inside - around - {end}
    gated = costly(nodes)
    name = common_module(gated or weighted)
    if kept and all(term.meta["val"].shape != end.meta["val"].shape for term in kept):
        return LeftAlone(name, "its shortcut has another shape than its sum")
    for node in gated if kept else ():
        if not is_swappable(node):
            operator = name_of(node)
            reason = f"there is no {operator} at fewer bits"
            if operator in _WEIGHTED and not has_stored_tensors(node):
                reason = f"the weight or bias of its {operator} is computed while it runs"
            return LeftAlone(common_module([node]), reason)
    projected = _macs(around)
    if not kept or (projected and projected * _PROJECTION_RATIO > _macs(gated)):
        return LeftAlone(
            common_module(weighted),
            f"none of its {len(terms)} paths is plainly the shortcut, an identity or a projection "
            "that costs less than the others",
        )
    if projected and _is_answer(end, logits):
        return LeftAlone(
            common_module(weighted),
            f"its {len(terms)} paths are classifiers whose logits are added up",
        )
    instead: dict[fx.Node, fx.Node] = {}
    _take_apart(end, kept, terms, instead)
    return Branch(
        name=name,
        owner=str(end.meta["module"]),
        span=span,
        identity=kept == [start],
        on_shortcut=around,
        instead=instead,
        nodes=nodes,
    )


def _shortcut(terms: Sequence[fx.Node], start: fx.Node) -> list[fx.Node]:
    """Return the terms without products, or else the only projection, if there is just one."""
    free = [term for term in terms if not any(map(is_costly, ancestors(term, of=start)))]
    projections = [term for term in terms if not free and _is_projection(term, start)]
    return free or (projections if len(projections) == 1 else [])


def _is_projection(term: fx.Node, start: fx.Node) -> bool:
    """Return whether a path mixes channels at most once and ends without activation function."""
    path = ancestors(term, of=start)
    mixing = [node for node in path if is_costly(node) and not _is_depthwise(node)]
    after = path - ancestors(*mixing, of=start)
    return len(mixing) <= 1 and not any(name_of(node) in ACTIVATIONS for node in after)


def _is_depthwise(node: fx.Node) -> bool:
    if name_of(node) != "conv2d":
        return False
    x, weight = (cast("fx.Node", source).meta["val"] for source in node.args[:2])
    return bool(weight.shape[1] == 1 < x.shape[1])


def _is_answer(total: fx.Node, logits: fx.Node) -> bool:
    """Return whether a sum is that of the logits, up to operators without products."""
    same = total.meta["val"].shape == logits.meta["val"].shape
    return same and not any(map(is_costly, ancestors(logits, of=total)))


def _macs(nodes: Iterable[fx.Node]) -> int:
    """Count the multiply-accumulates of operators for one image, without computing anything."""

    def run(node: fx.Node) -> Tensor:
        values = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        args, kwargs = tree_map(_for_one_image, values)
        return cast("Tensor", cast("Any", node.target)(*args, **kwargs))

    return sum(count_macs(functools.partial(run, node)) for node in nodes if is_costly(node))


def _for_one_image(value: object) -> object:
    if isinstance(value, torch.SymInt):
        sizes = value.node.expr
        return int(sizes.subs(dict.fromkeys(sizes.free_symbols, 1)))
    if isinstance(value, Tensor):
        shape = [cast("int", _for_one_image(size)) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    return value


def _take_apart(
    node: fx.Node,
    kept: Sequence[fx.Node],
    terms: Sequence[fx.Node],
    instead: dict[fx.Node, fx.Node],
) -> fx.Node | None:
    """Return a sum of the kept terms alone, and put the replaced inner sums into ``instead``."""
    if node in kept:
        return node
    if node in terms:
        return None
    left = [_take_apart(side, kept, terms, instead) for side in _sides(node)]
    if None not in left:
        return node
    rest = next((side for side in left if side is not None), None)
    if rest is not None:
        instead[node] = rest
    return rest


def _terms(total: fx.Node, start: fx.Node) -> Iterator[fx.Node]:
    """Yield the terms of a plain sum; nothing for any other operator.

    Inner sums are expanded, except for those that something else reads and residual blocks.
    """
    for side in _sides(total):
        inner = _sides(side) if side is not start and len(side.users) == 1 else []
        if inner and not _is_residual(inner, start):
            yield from _terms(side, start)
        else:
            yield side


def _is_residual(sides: Sequence[fx.Node], start: fx.Node) -> bool:
    """Return whether one side of a sum is computed from the other one."""
    first, second = sides
    return any(
        source is not start and source is not side and source in ancestors(side, of=start)
        for source, side in ((first, second), (second, first))
    )


def _sides(total: fx.Node) -> list[fx.Node]:
    """Return both sides of a plain sum of activations, and nothing for any other operator."""
    sides = [n for n in total.args if isinstance(n, fx.Node) and n.meta["flows"]]
    plain = name_of(total) == "add" and "alpha" not in total.kwargs
    return sides if plain and len(total.args) == len(sides) == _SIDES else []


def common_module(nodes: Iterable[fx.Node]) -> str:
    """Return the innermost module of all these operators; the model itself is ``""``."""
    return shared_path([weighted_module(node) for node in nodes])


def shared_path(names: Sequence[str]) -> str:
    """Return the innermost module that has all these modules in it."""
    paths = zip(*(name.split(".") for name in names), strict=False)
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, paths)
    return ".".join(part for part, *_ in shared)
