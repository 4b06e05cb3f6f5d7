"""Choice of the branches of a model that become gated layers, and the report on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import fx

from dfs_rl.backbones.conversion.residual_search import (
    ACTIVATIONS,
    Branch,
    Findings,
    LeftAlone,
    Span,
    ancestors,
    common_module,
    costly,
    is_swappable,
    is_within,
    shared_path,
    weighted_module,
)
from dfs_rl.backbones.conversion.tracing import Traced, name_of
from dfs_rl.backbones.network import check_precision
from dfs_rl.costs import FULL, SKIP, CostTable
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import configuration

CONVERSION_BITS = (0, 2, 4, 8, 32)
Granularity = Literal["block", "branch"]


@configuration
class FractionalizeConfig:
    """Settings of the conversion of a model, and the result to expect when it is repeated.

    See ``fractionalize`` for the other attributes.

    Attributes:
        image_shape: Channels, height and width of the images.
        n_classes: Columns of the logits.
        signed: Whether the input of each fractional operator can be negative, as measured on
            example images; empty before.
        digest: Digest of the model's structure; empty before it is known.

    Raises:
        ConfigError: If a value is outside its range.
    """

    image_shape: tuple[int, int, int]
    n_classes: int
    bits: tuple[int, ...] = CONVERSION_BITS
    layers: tuple[str, ...] | None = None
    granularity: Granularity = "block"
    stem_bits: int = FULL
    per_channel: bool = True
    constructor: str | None = None
    signed: tuple[bool, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        check_precision(self.bits, self.stem_bits)
        if self.layers == ():
            raise ConfigError("layers is empty; name at least one module, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class GatedPart:
    """Branches in order that become one gated layer; none for a part without a shortcut.

    ``nodes`` are the operators that run at the gate's bits.
    """

    name: str
    branches: tuple[Branch, ...]
    span: Span
    nodes: frozenset[fx.Node]


@dataclass(frozen=True, kw_only=True)
class GatedModule:
    """A gated layer of a user's model: its module, and the modules that multiply in it.

    ``shortcut`` is ``"identity"``, the modules on it, or ``None`` if the layer always runs.
    """

    name: str
    modules: tuple[str, ...]
    shortcut: str | None
    macs: int


@dataclass(frozen=True, kw_only=True)
class FractionalizeReport:
    """Report of ``fractionalize``; printable.

    Attributes:
        gated: The gated layers, in order.
        left_alone: Everything else that multiplies, and why it is not gated.
        fixed_macs: Multiply-accumulates that always run.
    """

    gated: tuple[GatedModule, ...]
    left_alone: tuple[LeftAlone, ...]
    fixed_macs: int

    def __str__(self) -> str:
        total = self.fixed_macs + sum(layer.macs for layer in self.gated)
        lines = [f"{len(self.gated)} gated layers, found by torch.export:"]
        for i, layer in enumerate(self.gated):
            around = "always runs" if layer.shortcut is None else f"0 bit leaves: {layer.shortcut}"
            lines.append(
                f"  {i:>3}  {layer.name}  {100 * layer.macs / total:.1f} % of MACs, {around}"
            )
        lines.append(f"Left alone, {100 * self.fixed_macs / total:.1f} % of MACs:")
        lines += [f"  {name or 'the model itself'}: {reason}" for name, reason in self.left_alone]
        return "\n".join(lines)


def choose_parts(
    findings: Findings, traced: Traced, config: FractionalizeConfig
) -> tuple[GatedPart, ...]:
    """Return the parts to gate, in order; 0 bit as an option needs shortcuts.

    Raises:
        ConfigError: If there is nothing to gate, or a named module cannot be.
    """
    if config.layers is not None:
        return _named_parts(findings, traced, config.layers, can_skip=SKIP in config.bits)
    if not findings.branches:
        blocked = "".join(f" {name!r}: {reason}." for name, reason in findings.left_alone[:1])
        raise ConfigError(
            f"the model has no residual block that can be gated.{blocked} Name modules to gate "
            "with layers=[...] and bit options without 0, which needs a shortcut."
        )
    together = config.granularity == "block"
    groups = _merged(findings.branches) if together else [[b] for b in findings.branches]
    parts = [_part(group) for group in groups]
    names = [part.name for part in parts]
    return tuple(
        replace(part, name=f"{name}#{names[: i + 1].count(name)}")
        if names.count(name) > 1
        else part
        for i, (name, part) in enumerate(zip(names, parts, strict=True))
    )


def _merged(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Group neighbouring branches with the same owner, unless it owns all branches."""
    groups: list[list[Branch]] = []
    for branch in branches:
        if groups and _belongs(branch, groups[-1], branches):
            groups[-1].append(branch)
        else:
            groups.append([branch])
    return groups


def _belongs(branch: Branch, group: Sequence[Branch], branches: Sequence[Branch]) -> bool:
    owners = [branch.owner, *(other.owner for other in group)]
    shared = shared_path(owners)
    inside = [b for b in branches if is_within(b.owner, shared)]
    return (
        bool(shared)
        and branch.identity
        and all(other.identity for other in group[1:])
        and shared in owners
        and (len(inside) < len(branches) or len(branches) <= len(group) + 1)
    )


def _part(branches: Sequence[Branch], name: str | None = None) -> GatedPart:
    first, last = branches[0], branches[-1]
    if name is None:
        name = first.name if len(branches) == 1 else shared_path([b.owner for b in branches])
    return GatedPart(
        name=name or "block",
        branches=tuple(branches),
        span=Span(first.span.start, _with_activation(last.span.end)),
        nodes=frozenset().union(*(branch.nodes for branch in branches)),
    )


def _with_activation(end: fx.Node) -> fx.Node:
    """Return the output of the activation function that follows, if one does."""
    users = [user for user in end.users if user.meta["flows"]]
    if len(users) == 1 and name_of(users[0]) in ACTIVATIONS:
        return users[0]
    return end


def _named_parts(
    findings: Findings, traced: Traced, layers: Sequence[str], *, can_skip: bool
) -> tuple[GatedPart, ...]:
    found = (_named_part(name, findings, traced, can_skip=can_skip) for name in layers)
    parts = sorted(found, key=lambda part: part.span.start)
    for earlier, later in pairwise(parts):
        if later.span.start < earlier.span.end:
            raise ConfigError(
                f"layers has {earlier.name!r} and {later.name!r}, which overlap; name one of them."
            )
    return tuple(parts)


def _named_part(name: str, findings: Findings, traced: Traced, *, can_skip: bool) -> GatedPart:
    known = costly(traced.nodes)
    own = [node for node in known if is_within(weighted_module(node), name)]
    if not own:
        modules = sorted({common_module([node]) for node in known})
        raise ConfigError(
            f"layers has {name!r}, in which no convolution or linear layer runs; modules with one "
            f"are {', '.join(modules[:6])}, ..."
        )
    branches = [b for b in findings.branches if is_within(b.name, name)]
    covered = frozenset().union(*(b.nodes for b in branches))
    if branches and (can_skip or covered.issuperset(own)):
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
    start = [cut for cut in findings.cuts if cut < min(own)][-1]
    end = next(cut for cut in findings.cuts if cut >= max(own))
    nodes = ancestors(end, of=start)
    foreign = [node for node in costly(nodes) if node not in own]
    if foreign:
        why = f"{weighted_module(foreign[0])!r} runs next to it"
    elif not all(map(is_swappable, own)):
        why = "it has an operator that does not exist at fewer bits"
    elif end is traced.logits:
        why = "it ends in the logits"
    else:
        span = Span(start, _with_activation(end))
        return GatedPart(name=name, branches=(), span=span, nodes=nodes)
    raise ConfigError(f"layers has {name!r}, which cannot be gated: {why}; name another module.")


def make_report(
    findings: Findings, traced: Traced, parts: Sequence[GatedPart], costs: CostTable
) -> FractionalizeReport:
    """Report the gated layers, and everything else that multiplies, with the reason."""
    can_skip = SKIP in costs.options
    gated_modules = tuple(
        GatedModule(
            name=part.name,
            modules=_modules(part.nodes),
            shortcut=_shortcut(part) if can_skip else None,
            macs=macs,
        )
        for part, macs in zip(parts, costs.layer_macs, strict=True)
    )
    gated = frozenset().union(*(part.nodes for part in parts))
    named = [part.name for part in parts if not part.branches]
    reasons = {
        name: reason
        for name, reason in findings.left_alone
        if not any(is_within(name, module) for module in named)
    }
    for node in costly(traced.nodes):
        name = weighted_module(node)
        known = name in reasons or any(is_within(name, module) for module in reasons if module)
        if node not in gated and not known:
            reasons[name] = _reason(node, parts)
    return FractionalizeReport(
        gated=gated_modules,
        left_alone=tuple(LeftAlone(name, reason) for name, reason in reasons.items()),
        fixed_macs=sum(part.macs for part in costs.fixed),
    )


def _reason(node: fx.Node, parts: Sequence[GatedPart]) -> str:
    for part in parts:
        if any(node in branch.on_shortcut for branch in part.branches):
            return f"the shortcut of {part.name}"
    following = next((part for part in parts if node < part.span.end), None)
    if following is None:
        return "runs after the last gated layer"
    if following is parts[0]:
        return "runs before the first gated layer"
    return f"no shortcut leads around it; always runs, with {following.name}"


def _modules(nodes: frozenset[fx.Node]) -> tuple[str, ...]:
    return tuple(sorted({weighted_module(node) for node in costly(nodes)}))


def _shortcut(part: GatedPart) -> str:
    names = {name for branch in part.branches for name in _modules(branch.on_shortcut)}
    plain = all(branch.identity for branch in part.branches)
    return ", ".join(sorted(names)) or ("identity" if plain else "its shortcut")
