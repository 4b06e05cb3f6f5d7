"""Where a traced model can be cut, and which of its parts have a shortcut around them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from dfs_rl.backbones.fractionalized.tracing import Traced, batch_factor, name_of
from dfs_rl.errors import ConfigError

Granularity = Literal["block", "branch"]

PRODUCTS = ("matmul", "bmm")
ATTENTION = "scaled_dot_product_attention"
_WEIGHTED = ("conv2d", "linear")
_COSTLY = {str(op).removeprefix("aten.") for op in flop_registry} | {
    *(
        "conv1d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "einsum",
        "bilinear",
    ),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "dot", "mv", "tensordot", "inner", "chain_matmul"),
}
_ACTIVATIONS = {
    *(
        "relu",
        "relu6",
        "hardtanh",
        "gelu",
        "silu",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "prelu",
        "mish",
        "softplus",
    ),
    *("sigmoid", "tanh", "hardswish", "hardsigmoid", "clamp", "clamp_min"),
}


class Span(NamedTuple):
    """What runs between two places where a single activation is all there is.

    Attributes:
        start: The activation that goes in.
        end: The activation that comes out.
    """

    start: fx.Node
    end: fx.Node


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A part with a shortcut around it.

    Attributes:
        name: The module that holds its weights.
        owner: The module that adds it to its shortcut.
        span: From where the two part to their sum.
        shortcut: What the branch is added to; the span's start itself where nothing runs on the shortcut.
        nodes: What runs on the branch alone.
    """

    name: str
    owner: str
    span: Span
    shortcut: fx.Node
    nodes: frozenset[fx.Node]

    @property
    def identity(self) -> bool:
        """Whether nothing runs on the shortcut."""
        return self.shortcut is self.span.start


@dataclass(frozen=True, kw_only=True)
class GatedPart:
    """A gated layer to be: branches that are gated together.

    Attributes:
        name: What it is called.
        branches: In order; empty for a part without a shortcut.
        span: From its first branch to behind its last, or all of it where it has no branches.
        nodes: What runs at the bits that a gate chooses.
    """

    name: str
    branches: tuple[Branch, ...]
    span: Span
    nodes: frozenset[fx.Node]


class LeftAlone(NamedTuple):
    """A part that no gate decides about.

    Attributes:
        name: Its module.
        reason: Why.
    """

    name: str
    reason: str


class Findings(NamedTuple):
    """What was found in a model.

    Attributes:
        branches: What can be skipped, in order.
        cuts: All places where a single activation is all there is, in order, the images first and the logits last.
        left_alone: What looks like a residual block and cannot be gated.
    """

    branches: tuple[Branch, ...]
    cuts: tuple[fx.Node, ...]
    left_alone: tuple[LeftAlone, ...]


def find(traced: Traced) -> Findings:
    """Find the residual branches of a model."""
    cuts = tuple(_cuts(traced))
    branches, left_alone = [], []
    for start, end in pairwise(cuts):
        found = _branch(Span(start, end))
        if isinstance(found, Branch):
            branches.append(found)
        elif found is not None:
            left_alone.append(found)
    return Findings(tuple(branches), cuts, tuple(left_alone))


def choose_parts(
    findings: Findings,
    traced: Traced,
    *,
    layers: Sequence[str] | None,
    granularity: Granularity,
    can_skip: bool,
) -> tuple[GatedPart, ...]:
    """Return what is to be gated, in order.

    Args:
        findings: What was found.
        traced: In which model.
        layers: Names of modules to gate, ``None`` for all that were found.
        granularity: Whether the branches of one module, such as attention and MLP, are one layer.
        can_skip: Whether the menu has 0 bit, which needs a shortcut.

    Raises:
        ConfigError: If there is nothing to gate, or a named module cannot be.
    """
    if layers is not None:
        return _named_parts(findings, traced, layers, can_skip=can_skip)
    if not findings.branches:
        blocked = "".join(f" {name!r}: {reason}." for name, reason in findings.left_alone[:1])
        raise ConfigError(
            f"the model has no residual block that can be gated.{blocked} Name modules to gate with layers=[...] and a menu without "
            "0 bit, which needs a shortcut."
        )
    groups = [[branch] for branch in findings.branches]
    if granularity == "block":
        groups = list(_merged(findings.branches))
    return _unique_names([_part(group) for group in groups])


def weighted_module(node: fx.Node) -> str:
    """Return the module whose weight an operator uses, or the one that runs it."""
    sources = list(node.all_input_nodes)
    for source in sources:
        if source.op == "get_attr" and name_of(node) in _WEIGHTED:
            return str(source.target).rpartition(".")[0]
    return str(node.meta["module"])


def has_weight(node: fx.Node) -> bool:
    """Say whether an operator multiplies an activation with a stored weight."""
    return name_of(node) in _WEIGHTED


def is_costly(node: fx.Node) -> bool:
    """Say whether an operator multiplies and adds."""
    return node.op == "call_function" and (is_swappable(node) or name_of(node) in _COSTLY)


def is_swappable(node: fx.Node) -> bool:
    """Say whether there is an operator that does the same at fewer bits."""
    name = name_of(node)
    if name in _WEIGHTED:
        return isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"
    if name == ATTENTION:
        causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)  # noqa: PLR2004 - its place
        return not causal and not node.kwargs.get("enable_gqa", False)
    return name in PRODUCTS


def ancestors(end: fx.Node, *, of: fx.Node) -> set[fx.Node]:
    """Return everything that ``end`` is computed from, up to and without ``of``, itself included."""
    seen: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is of or node in seen:
            continue
        seen.add(node)
        waiting.extend(node.all_input_nodes)
    return seen


def _cuts(traced: Traced) -> Iterator[fx.Node]:
    """Yield every activation that is the only one still needed at some point, one sample of it for each image."""
    flowing = [node for node in traced.graph.nodes if node.meta.get("flows")]
    place = {node: i for i, node in enumerate(flowing)}
    last = {
        node: max(
            (place.get(user, len(flowing)) for user in node.users if not _is_size(user)), default=-1
        )
        for node in flowing
    }
    alive: set[fx.Node] = set()
    previous = None
    for i, node in enumerate(flowing):
        alive = {n for n in alive if last[n] > i}
        if last[node] > i:
            alive.add(node)
        if len(alive) == 1:
            (only,) = alive
            if only is not previous and _is_activation(only):
                previous = only
                yield only


def _is_size(node: fx.Node) -> bool:
    return batch_factor(node) is not None


def _is_activation(node: fx.Node) -> bool:
    """Say whether a value has one sample for each image, in order."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or not value.is_floating_point():  # noqa: PLR2004 - batch and features
        return False
    first: object = value.shape[0]
    return isinstance(first, torch.SymInt) and bool(first.node.expr.is_Symbol)


def _branch(span: Span) -> Branch | LeftAlone | None:
    """Return the branch that ends at a cut, why it cannot be gated, or ``None`` where nothing parts."""
    start, end = span
    inside = ancestors(end, of=start)
    weighted = [node for node in inside if node.meta.get("flows") and is_costly(node)]
    sides = [n for n in end.args[:2] if isinstance(n, fx.Node) and n.meta.get("flows")]
    if name_of(end) != "add" or len(sides) != 2 or len(end.args) > 2 or "alpha" in end.kwargs:  # noqa: PLR2004 - two sides of a sum
        if weighted and _parts_ways(start):
            return LeftAlone(_common_module(weighted), "its paths do not end in a sum")
        return None
    if not weighted:
        return None
    lanes = [ancestors(side, of=start) for side in sides]
    work = [sum(is_costly(n) for n in lane) for lane in lanes]
    shortcut = min((0, 1), key=lambda i: (sides[i] is not start, work[i], len(lanes[i])))
    nodes = lanes[1 - shortcut] - lanes[shortcut]
    costly = [node for node in nodes if node.meta.get("flows") and is_costly(node)]
    name = _common_module(costly or weighted)
    if sides[shortcut] is not start and work[0] == work[1]:
        return LeftAlone(name, "none of its two paths is plainly the shortcut")
    if sides[shortcut].meta["val"].shape != end.meta["val"].shape:
        return LeftAlone(name, "its shortcut has another shape than its sum")
    for node in costly:
        if not is_swappable(node):
            return LeftAlone(
                _common_module([node]),
                f"there is no {name_of(node)} at fewer bits, or its weight is computed while it runs",
            )
    return Branch(
        name=name,
        owner=str(end.meta["module"]),
        span=span,
        shortcut=sides[shortcut],
        nodes=frozenset(nodes),
    )


def _parts_ways(node: fx.Node) -> bool:
    return len([user for user in node.users if user.meta.get("flows")]) > 1


def _common_module(nodes: Iterable[fx.Node]) -> str:
    """Return the innermost module that holds all of these operators; the model itself is ``""``."""
    paths = [weighted_module(node).split(".") for node in nodes]
    common = paths[0]
    for path in paths[1:]:
        same = [a == b for a, b in zip(common, path, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return ".".join(common)


def _merged(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Group neighbouring branches that one module adds up, unless that module adds up all of them."""
    group: list[Branch] = []
    for branch in branches:
        if group and not _belongs(branch, group, branches):
            yield group
            group = []
        group.append(branch)
    yield group


def _belongs(branch: Branch, group: Sequence[Branch], branches: Sequence[Branch]) -> bool:
    shared = _shared_path(branch.owner, *(other.owner for other in group))
    inside = [b for b in branches if _is_within(b.owner, shared)]
    return (
        bool(shared)
        and branch.identity
        and all(other.identity for other in group[1:])
        and shared in {branch.owner, *(other.owner for other in group)}
        and (len(inside) < len(branches) or len(branches) <= len(group) + 1)
    )


def _shared_path(*names: str) -> str:
    paths = [name.split(".") for name in names]
    length = next(
        (i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1),
        min(map(len, paths)),
    )
    return ".".join(paths[0][:length])


def _is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.") or not module


def _part(branches: Sequence[Branch], name: str | None = None) -> GatedPart:
    first, last = branches[0], branches[-1]
    if name is None:
        name = first.name if len(branches) == 1 else _shared_path(*(b.owner for b in branches))
    return GatedPart(
        name=name or "block",
        branches=tuple(branches),
        span=Span(first.span.start, _with_activation(last.span.end)),
        nodes=frozenset().union(*(branch.nodes for branch in branches)),
    )


def _with_activation(end: fx.Node) -> fx.Node:
    """Return what comes out of the activation function that follows, if one does."""
    users = [user for user in end.users if user.meta.get("flows")]
    if len(users) == 1 and name_of(users[0]) in _ACTIVATIONS:
        return users[0]
    return end


def _unique_names(parts: Sequence[GatedPart]) -> tuple[GatedPart, ...]:
    names = [part.name for part in parts]
    counts: dict[str, int] = {}
    unique = []
    for part in parts:
        name = part.name
        if names.count(name) > 1:
            counts[name] = counts.get(name, 0) + 1
            name = f"{name}#{counts[part.name]}"
        unique.append(
            GatedPart(name=name, branches=part.branches, span=part.span, nodes=part.nodes)
        )
    return tuple(unique)


def _named_parts(
    findings: Findings, traced: Traced, layers: Sequence[str], *, can_skip: bool
) -> tuple[GatedPart, ...]:
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    parts = [_named_part(name, findings, traced, can_skip=can_skip) for name in layers]
    parts.sort(key=lambda part: order[part.span.start])
    for earlier, later in pairwise(parts):
        if order[later.span.start] < order[earlier.span.end]:
            raise ConfigError(
                f"layers has {earlier.name!r} and {later.name!r}, which overlap; name one of them."
            )
    return tuple(parts)


def _named_part(name: str, findings: Findings, traced: Traced, *, can_skip: bool) -> GatedPart:
    costly = [n for n in traced.graph.nodes if n.meta.get("flows") and is_costly(n)]
    own = [node for node in costly if _is_within(weighted_module(node), name)]
    if not own:
        known = sorted({_common_module([node]) for node in costly})
        raise ConfigError(
            f"layers has {name!r}, in which no convolution or linear layer runs; modules with one are {', '.join(known[:6])}, ..."
        )
    branches = [b for b in findings.branches if _is_within(b.name, name)]
    covered = frozenset().union(*(b.nodes for b in branches))
    outside = [node for node in own if node not in covered]
    if branches and (can_skip or not outside):
        return _part(branches, name)
    if can_skip:
        reason = next(
            (r for n, r in findings.left_alone if _is_within(n, name)),
            "no shortcut leads around it",
        )
        raise ConfigError(
            f"layers has {name!r}, which cannot be skipped: {reason}; leave it out of layers, or 0 out of bits."
        )
    return _whole_part(name, own, findings, traced)


def _whole_part(name: str, own: Sequence[fx.Node], findings: Findings, traced: Traced) -> GatedPart:
    """Return a part that has no shortcut and so always runs, at the bits that a gate chooses."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    first, last = min(order[n] for n in own), max(order[n] for n in own)
    start = [cut for cut in findings.cuts if order[cut] < first][-1]
    ends = [cut for cut in findings.cuts if order[cut] >= last]
    span = Span(start, _with_activation(ends[0]))
    nodes = frozenset(ancestors(ends[0], of=start))
    foreign = [n for n in nodes if n.meta.get("flows") and is_costly(n) and n not in own]
    odd = [node for node in own if not is_swappable(node)]
    if foreign or odd or ends[0] is traced.logits:
        why = (
            f"{weighted_module(foreign[0])!r} runs beside it"
            if foreign
            else "it has an operator that does not exist at fewer bits"
            if odd
            else "it ends in the logits"
        )
        raise ConfigError(
            f"layers has {name!r}, which cannot be gated: {why}; name another module."
        )
    return GatedPart(name=name, branches=(), span=span, nodes=nodes)
