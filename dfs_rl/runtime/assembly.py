"""Graphs with branches, made of the parts of a trace."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from dfs_rl.costs import CostTable

OUTPUTS = ("logits", "options", "computation")


class Parts:
    """Nodes and constants of a trace, found by the values that they make."""

    def __init__(self, nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> None:
        self.nodes = nodes
        self.constants = constants
        self.maker = {name: i for i, node in enumerate(nodes) for name in node.output}

    def __contains__(self, value: str) -> bool:
        """Return whether the trace makes a value."""
        return value in self.maker or value in self.constants


class Scope:
    """A graph under construction of parts, which sees the values of the graphs ``around`` it."""

    def __init__(self, parts: Parts, around: "Scope | None" = None) -> None:
        self.parts = parts
        self.around = around
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.known: set[str] = set() if around is None else set(around.known)

    def require(self, value: str) -> str:
        """Add all that makes a value of the trace, unless it is there; return its name."""
        wanted, makers = [value], set()
        while wanted:
            name = wanted.pop()
            if name in self.known or not name:
                continue
            self.known.add(name)
            if name in self.parts.constants:
                self.constants.append(self.parts.constants[name])
            elif name in self.parts.maker:
                makers.add(self.parts.maker[name])
                node = self.parts.nodes[self.parts.maker[name]]
                self.known.update(node.output)
                wanted += node.input
        self.nodes += [self.parts.nodes[i] for i in sorted(makers)]
        return value

    def node(self, kind: str, inputs: Sequence[str], output: str, axis: int | None = None) -> str:
        """Add a node with one output and return the name of the output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], axis=axis))
        self.known.add(output)
        return output

    def constant(self, name: str, value: object) -> str:
        """Add a constant and return its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        self.known.add(name)
        return name

    def branch(
        self,
        condition: str,
        then: Callable[["Scope"], Sequence[str]],
        otherwise: Callable[["Scope"], Sequence[str]],
        outputs: Sequence[str],
    ) -> None:
        """Add an ``If`` whose branches are filled by functions that return their results."""
        graphs = {}
        for name, fill in (("then_branch", then), ("else_branch", otherwise)):
            inner = Scope(self.parts, self)
            results = fill(inner)
            graphs[name] = inner.graph(f"{outputs[0]}.{name}", results)
        self.nodes.append(helper.make_node("If", [condition], outputs, **graphs))
        self.known.update(outputs)

    def graph(self, name: str, results: Sequence[str]) -> GraphProto:
        """Return the graph with these results, which a graph around it may have made."""
        own = {output for node in self.nodes for output in node.output}
        own |= {tensor.name for tensor in self.constants}
        named = [
            result if result in own else self.node("Identity", [result], f"{name}.{i}")
            for i, result in enumerate(results)
        ]
        outputs = [helper.make_empty_tensor_value_info(result) for result in named]
        return helper.make_graph(self.nodes, name, [], outputs, self.constants)


def table_graph(parts: Parts, costs: CostTable, actions: Sequence[int]) -> Scope:
    """Return the graph of a network that takes these actions, without branches."""
    main = Scope(parts)
    main.require("hidden_0")
    logits = "head"
    for layer, action in enumerate(actions):
        if action == costs.exit_action:
            logits = f"answer_{layer}"
            break
        main.node("Identity", [main.require(f"layer_{layer}_{action}")], f"hidden_{layer + 1}")
    main.node("Identity", [main.require(logits)], "logits")
    return main


def gated_graph(parts: Parts, costs: CostTable, choices: Sequence[int]) -> Scope:
    """Return the graph of a network whose gate chooses among ``choices`` at every layer.

    The parts are those of ``tracing.GatedParts``. An exit is a branch too, and all later layers are
    in the other one.
    """
    main = Scope(parts)
    main.require("hidden_0")
    logits, options = _run_from(main, 0, costs, choices)
    main.node("Identity", [options], "taken")
    main.node("Identity", ["taken"], "options")
    main.require("computation")
    main.node("Identity", [logits], "logits")
    return main


def passes_graph(
    parts: Parts,
    costs: CostTable,
    choices: Sequence[int],
    first: Mapping[str, NDArray[Any]],
    limit: int,
) -> Scope:
    """Return the graph of a gate that may run again: a ``Loop`` whose body is one pass.

    Args:
        parts: Those of ``tracing.GatedParts``.
        costs: Costs of the network.
        choices: Options that the gate can choose.
        first: The state before the first pass, one row; the last field is the computation.
        limit: Largest number of passes.
    """
    main = Scope(parts)
    body = Scope(parts, main)
    number, going_on = "pass", "going_on"
    body.known |= {number, going_on, *first}
    body.require("hidden_0")
    results = _run_from(body, 0, costs, choices)
    for result, name in zip(results, ("pass_logits", "taken", "pass_spent"), strict=True):
        body.node("Identity", [result], name)
    carried = ["again", *(f"next_{name}" for name in first), "combined", "taken"]
    graph = body.graph("body", [body.require(name) for name in carried])
    start = dict(first)
    start["unanswered"] = np.zeros((1, first["history"].shape[2]), np.float32)
    start["unknown"] = np.zeros((1, costs.n_layers), np.int64)
    count, yes = np.array(limit), np.array([True])
    graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in {number: count, going_on: yes, **start}.items()
    )
    values = {"limit": count, "yes": yes, **{f"first_{k}": v for k, v in start.items()}}
    inputs = [main.constant(name, value) for name, value in values.items()]
    lasts = [f"last_{name}" for name in first][:-1]
    outputs = [*lasts, "computation", "logits", "options"]
    main.nodes.append(helper.make_node("Loop", inputs, outputs, body=graph))
    return main


def rule_graph(parts: Parts, n_passes: int) -> Scope:
    """Return the graph of a rule, each further pass a branch; see ``tracing.FixedPasses``."""
    main = Scope(parts)
    for result, output in zip(_passes_from(main, 0, n_passes), OUTPUTS, strict=True):
        main.node("Identity", [result], output)
    return main


def _passes_from(scope: Scope, number: int, n_passes: int) -> list[str]:
    """Add the passes from ``number`` on; return the names of their ``OUTPUTS``."""

    def answer(inner: Scope) -> list[str]:
        return [inner.require(f"{name}_{number}") for name in OUTPUTS]

    if number == n_passes - 1:
        return answer(scope)
    results = [f"{name}_from_{number}" for name in OUTPUTS]
    again = scope.require(f"again_{number}")
    scope.branch(again, lambda inner: _passes_from(inner, number + 1, n_passes), answer, results)
    return results


def _run_from(
    scope: Scope, layer: int, costs: CostTable, choices: Sequence[int]
) -> tuple[str, ...]:
    """Add the layers from ``layer`` on; return the names of logits, options and cost then.

    The cost is that of gates of several passes alone, which read it at the end of a pass.
    """
    spends = "again" in scope.parts
    if layer == costs.n_layers:
        last = [scope.require("head"), _all_options(scope, layer, costs)]
        return (*last, f"spent_{layer}") if spends else tuple(last)
    scope.node("Identity", [scope.require(f"choice_{layer}")], f"options_{layer}")
    if layer not in costs.exits_after:
        return _run_layer(scope, layer, costs, choices)
    action = scope.constant(f"exit_action_{layer}", np.int64(costs.exit_action))
    leaving = scope.node("Equal", [f"options_{layer}", action], f"leaving_{layer}")

    def leave(inner: Scope) -> list[str]:
        results = [inner.require(f"answer_{layer}"), _all_options(inner, layer, costs)]
        return results + [inner.require(f"spent_{layer}_{costs.exit_action}")] * spends

    results = [f"logits_{layer}", f"taken_{layer}"] + [f"spent_then_{layer}"] * spends
    scope.branch(leaving, leave, lambda inner: _run_layer(inner, layer, costs, choices), results)
    return tuple(results)


def _run_layer(
    scope: Scope, layer: int, costs: CostTable, choices: Sequence[int]
) -> tuple[str, ...]:
    """Add a layer and all that follow it; return as ``_run_from``."""
    names = {"layer": f"hidden_{layer + 1}"}
    if f"spent_{layer}_0" in scope.parts and (layer + 1 < costs.n_layers or "again" in scope.parts):
        names |= {name: f"{name}_{layer + 1}" for name in ("spent", "previous")}
    _branches(scope, layer, costs, choices, names)
    return _run_from(scope, layer + 1, costs, choices)


def _branches(
    scope: Scope, layer: int, costs: CostTable, choices: Sequence[int], names: Mapping[str, str]
) -> None:
    """Add a layer as a binary tree of branches, one leaf for each option.

    ``names`` are those of its outputs, by the kinds of parts that they come from.
    """

    def leaf(inner: Scope, option: int) -> list[str]:
        values = [f"{kind}_{layer}_{option}" for kind in names]
        if "previous" in names:
            share = np.full((1, 1), option / max(len(costs.options) - 1, 1), np.float32)
            inner.constant(f"previous_{layer}_{option}", share)
        return [inner.require(value) for value in values]

    if len(choices) == 1:
        for value, output in zip(leaf(scope, choices[0]), names.values(), strict=True):
            scope.node("Identity", [value], output)
        return
    low, high = choices[: len(choices) // 2], choices[len(choices) // 2 :]
    output = names["layer"]
    first = scope.constant(f"{output}.first", np.int64(high[0]))
    condition = scope.node("Less", [f"options_{layer}", first], f"{output}.below")

    def fill(some: Sequence[int], suffix: str) -> Callable[[Scope], list[str]]:
        def add(inner: Scope) -> list[str]:
            if len(some) == 1:
                return leaf(inner, some[0])
            inside = {kind: f"{name}.{suffix}" for kind, name in names.items()}
            _branches(inner, layer, costs, some, inside)
            return list(inside.values())

        return add

    scope.branch(condition, fill(low, "low"), fill(high, "high"), list(names.values()))


def _all_options(scope: Scope, layer: int, costs: CostTable) -> str:
    """Add the options of all layers, before layer ``layer`` or after the exit there."""
    name = f"options_after_{layer}"
    columns = [f"options_{i}" for i in range(min(layer + 1, costs.n_layers))]
    joined = scope.node("Concat", columns, f"{name}.joined", axis=0)
    shape = scope.constant(f"{name}.shape", np.array([len(columns), -1]))
    rows = scope.node("Reshape", [joined, shape], f"{name}.rows")
    if len(columns) == costs.n_layers:
        return scope.node("Transpose", [rows], name)
    known = scope.node("Transpose", [rows], f"{name}.known")
    missing = costs.n_layers - len(columns)  # left out, as the last one is, which exits
    pads = scope.constant(f"{name}.pads", np.array([0, 0, 0, missing]))
    action = scope.constant(f"{name}.exit", np.int64(costs.exit_action))
    return scope.node("Pad", [known, pads, action], name)
