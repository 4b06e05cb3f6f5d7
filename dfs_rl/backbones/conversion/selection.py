"""Choice of the branches of a model that become gated layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import fx

from dfs_rl.backbones.conversion.residual_search import (
    ACTIVATIONS,
    Branch,
    Findings,
    Span,
    ancestors,
    common_module,
    is_costly,
    is_swappable,
    is_within,
    weighted_module,
)
from dfs_rl.backbones.conversion.tracing import Traced, name_of
from dfs_rl.errors import ConfigError

Granularity = Literal["block", "branch"]


@dataclass(frozen=True, kw_only=True)
class GatedPart:
    """Branches in order that become one gated layer; none for a part without a shortcut.

    ``nodes`` are the operators that run at the gate's bits.
    """

    name: str
    branches: tuple[Branch, ...]
    span: Span
    nodes: frozenset[fx.Node]


def choose_parts(
    findings: Findings,
    traced: Traced,
    *,
    layers: Sequence[str] | None,
    granularity: Granularity,
    can_skip: bool,
) -> tuple[GatedPart, ...]:
    """Return the parts to gate, in order; ``can_skip`` (0 bit is an option) needs shortcuts.

    Raises:
        ConfigError: If there is nothing to gate, or a named module cannot be.
    """
    if layers is not None:
        return _named_parts(findings, traced, layers, can_skip=can_skip)
    if not findings.branches:
        blocked = "".join(f" {name!r}: {reason}." for name, reason in findings.left_alone[:1])
        raise ConfigError(
            f"the model has no residual block that can be gated.{blocked} Name modules to gate "
            "with layers=[...] and bit options without 0, which needs a shortcut."
        )
    groups = [[branch] for branch in findings.branches]
    if granularity == "block":
        groups = list(_merged(findings.branches))
    return _unique_names([_part(group) for group in groups])


def _merged(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Group neighbouring branches with the same owner, unless it owns all branches."""
    group: list[Branch] = []
    for branch in branches:
        if group and not _belongs(branch, group, branches):
            yield group
            group = []
        group.append(branch)
    yield group


def _belongs(branch: Branch, group: Sequence[Branch], branches: Sequence[Branch]) -> bool:
    shared = _shared_path(branch.owner, *(other.owner for other in group))
    inside = [b for b in branches if is_within(b.owner, shared)]
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
    """Return the output of the activation function that follows, if one does."""
    users = [user for user in end.users if user.meta.get("flows")]
    if len(users) == 1 and name_of(users[0]) in ACTIVATIONS:
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
        unique.append(replace(part, name=name))
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
    own = [node for node in costly if is_within(weighted_module(node), name)]
    if not own:
        known = sorted({common_module([node]) for node in costly})
        raise ConfigError(
            f"layers has {name!r}, in which no convolution or linear layer runs; modules with one "
            f"are {', '.join(known[:6])}, ..."
        )
    branches = [b for b in findings.branches if is_within(b.name, name)]
    covered = frozenset().union(*(b.nodes for b in branches))
    outside = [node for node in own if node not in covered]
    if branches and (can_skip or not outside):
        return _part(branches, name)
    if can_skip:
        reasons = (r for n, r in findings.left_alone if is_within(n, name))
        raise ConfigError(
            f"layers has {name!r}, which cannot be skipped: "
            f"{next(reasons, 'no shortcut leads around it')}; leave it out of layers, or 0 out of "
            "bits."
        )
    return _whole_part(name, own, findings, traced)


def _whole_part(name: str, own: Sequence[fx.Node], findings: Findings, traced: Traced) -> GatedPart:
    """Return a part without a shortcut, which always runs, at the gate's bits."""
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
            f"{weighted_module(foreign[0])!r} runs next to it"
            if foreign
            else "it has an operator that does not exist at fewer bits"
            if odd
            else "it ends in the logits"
        )
        raise ConfigError(
            f"layers has {name!r}, which cannot be gated: {why}; name another module."
        )
    return GatedPart(name=name, branches=(), span=span, nodes=nodes)
