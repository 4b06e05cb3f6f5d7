"""Report on the gated and the other parts of a user's model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from dfs_rl.backbones.conversion.residual_search import (
    Findings,
    LeftAlone,
    is_costly,
    is_within,
    weighted_module,
)
from dfs_rl.backbones.conversion.selection import GatedPart
from dfs_rl.backbones.conversion.tracing import Traced


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
        traced_by: The tracer.
    """

    gated: tuple[GatedModule, ...]
    left_alone: tuple[LeftAlone, ...]
    fixed_macs: int
    traced_by: str

    def __str__(self) -> str:
        total = self.fixed_macs + sum(layer.macs for layer in self.gated)
        lines = [f"{len(self.gated)} gated layers, found by {self.traced_by}:"]
        for i, layer in enumerate(self.gated):
            around = "always runs" if layer.shortcut is None else f"0 bit leaves: {layer.shortcut}"
            lines.append(
                f"  {i:>3}  {layer.name}  {100 * layer.macs / total:.1f} % of MACs, {around}"
            )
        lines.append(f"Left alone, {100 * self.fixed_macs / total:.1f} % of MACs:")
        lines += [f"  {name or 'the model itself'}: {reason}" for name, reason in self.left_alone]
        return "\n".join(lines)


def describe_parts(
    parts: Sequence[GatedPart], macs: Sequence[int], *, can_skip: bool
) -> tuple[GatedModule, ...]:
    """Describe gated layers that cost ``macs``."""
    return tuple(
        GatedModule(
            name=part.name,
            modules=_modules(part.nodes),
            shortcut=_shortcut(part) if can_skip else None,
            macs=cost,
        )
        for part, cost in zip(parts, macs, strict=True)
    )


def describe_rest(
    findings: Findings, traced: Traced, parts: Sequence[GatedPart]
) -> tuple[LeftAlone, ...]:
    """Return everything that multiplies and is not gated, with the reason."""
    gated = frozenset().union(*(part.nodes for part in parts))
    named = [part.name for part in parts if not part.branches]
    reasons: dict[str, str] = {
        name: reason
        for name, reason in findings.left_alone
        if not any(is_within(name, module) for module in named)
    }
    for name, reason in _others(traced, parts, gated):
        known_part = any(is_within(name, known) for known in reasons if known)
        if not known_part and name not in reasons:
            reasons[name] = reason
    return tuple(LeftAlone(name, reason) for name, reason in reasons.items())


def _others(
    traced: Traced, parts: Sequence[GatedPart], gated: frozenset[fx.Node]
) -> Iterator[tuple[str, str]]:
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    on_shortcuts = {
        node: part.name for part in parts for branch in part.branches for node in branch.on_shortcut
    }
    for node in traced.graph.nodes:
        if node in gated or not node.meta.get("flows") or not is_costly(node):
            continue
        following = next((p for p in parts if order[node] < order[p.span.end]), None)
        if node in on_shortcuts:
            reason = f"the shortcut of {on_shortcuts[node]}"
        elif following is None:
            reason = "runs after the last gated layer"
        elif following is parts[0]:
            reason = "runs before the first gated layer"
        else:
            reason = f"no shortcut leads around it; always runs, with {following.name}"
        yield weighted_module(node), reason


def _modules(nodes: frozenset[fx.Node]) -> tuple[str, ...]:
    costly = (n for n in nodes if n.meta.get("flows") and is_costly(n))
    return tuple(sorted({weighted_module(node) for node in costly}))


def _shortcut(part: GatedPart) -> str:
    names = {name for branch in part.branches for name in _modules(branch.on_shortcut)}
    if names:
        return ", ".join(sorted(names))
    return "identity" if all(branch.identity for branch in part.branches) else "its shortcut"
