"""Graphs with branches and loops on batches.

An ``If`` holds for a whole batch. Here the rows of a batch are regrouped at every ``If``: each
branch runs once, on the rows that take it. Likewise a ``Loop`` runs again on the rows that go on.
The nodes in between run as they stand, so every value has one row for each image, or one row for
all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from dfs_rl.runtime.graph_passes import without_identities

Values = dict[str, NDArray[Any]]
Run = Callable[[Values], Sequence[NDArray[Any]]]
MakeRun = Callable[[GraphProto], Run]
"""Makes a function from inputs to outputs of a graph without branches."""


def batched_graph(content: bytes, open_session: Callable[[bytes], Any]) -> "BatchedGraph":
    """Return the graph of a file for batches.

    Args:
        content: The file.
        open_session: Makes an onnxruntime session of a file.
    """
    model = onnx.load_from_string(content)
    versions = {"opset_imports": model.opset_import, "ir_version": model.ir_version}

    def make_run(graph: GraphProto) -> Run:
        part = helper.make_model(graph, **versions)
        return partial(open_session(part.SerializeToString()).run, None)

    return BatchedGraph(model.graph, make_run)


class BatchedGraph:
    """A graph for batches.

    Args:
        graph: The graph.
        make_run: Makes what runs the nodes between branches, once they are reached.
        around: Constants of the graphs around it.

    Attributes:
        inputs: Names of the values that it reads.
        outputs: Names of its outputs.
    """

    def __init__(
        self, graph: GraphProto, make_run: MakeRun, around: Mapping[str, TensorProto] | None = None
    ) -> None:
        self._constants = dict(around or {}) | {tensor.name: tensor for tensor in graph.initializer}
        self._make_run = make_run
        self._steps: list[_Segment | _Branch | _Loop] = []
        self.outputs = [value.name for value in graph.output]
        self._fixed = {
            name: numpy_helper.to_array(self._constants[name])
            for name in self.outputs
            if name in self._constants
        }
        wanted = set(self.outputs)
        nodes: list[NodeProto] = []
        for node in reversed(graph.node):  # from the end, where it is known what is read later
            if node.op_type in {"If", "Loop"}:
                self._add_segment(nodes[::-1], wanted)
                nodes = []
                kind = _Branch if node.op_type == "If" else _Loop
                self._steps.insert(0, step := kind(node, make_run, self._constants))
                wanted |= step.inputs
            else:
                nodes.append(node)
        self._add_segment(nodes[::-1], wanted)
        made = {name for node in graph.node for name in node.output}
        self.inputs: set[str] = wanted - made - set(self._constants)

    def _add_segment(self, nodes: Sequence[NodeProto], wanted: set[str]) -> None:
        """Insert nodes as the first step, and add what they read to what is wanted."""
        if nodes:
            segment = _Segment(nodes, wanted, self._make_run, self._constants)
            self._steps.insert(0, segment)
            wanted |= segment.inputs

    def __call__(self, values: Mapping[str, NDArray[Any]], n: int) -> list[NDArray[Any]]:
        """Return the outputs for ``n`` rows of the values that it reads."""
        known = {**values, **self._fixed}
        for step in self._steps:
            step(known, n)
        return [known[name] for name in self.outputs]


class _Segment:
    """Nodes without branches, of which ``wanted`` values are read later."""

    def __init__(
        self,
        nodes: Sequence[NodeProto],
        wanted: Iterable[str],
        make_run: MakeRun,
        constants: Mapping[str, TensorProto],
    ) -> None:
        self._make_run = make_run
        self._run: Run | None = None
        self._nodes, same = without_identities(nodes)  # copies would cost time
        made = {name for node in self._nodes for name in node.output}
        read = {name for node in self._nodes for name in node.input if name}
        self._same = {name: root for name, root in same.items() if name in set(wanted)}
        self._outputs = sorted(made & (set(wanted) | set(self._same.values())))
        self._constants = [constants[name] for name in sorted(read & set(constants))]
        self._reads = sorted(read - made - set(constants))
        self.inputs = set(self._reads) | (set(self._same.values()) - made)

    def __call__(self, values: Values, n: int) -> None:  # noqa: ARG002 - as of a branch
        """Add the wanted values."""
        if self._outputs:
            feeds = {name: values[name] for name in self._reads}
            if self._run is None:
                self._run = self._make_run(self._graph(feeds))
            values.update(zip(self._outputs, self._run(feeds), strict=True))
        values.update({name: values[root] for name, root in self._same.items()})

    def _graph(self, feeds: Values) -> GraphProto:
        """Return the nodes as a graph that reads values of these types and shapes."""
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [None, *value.shape[1:]]
            )
            for name, value in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self._outputs]
        return helper.make_graph(self._nodes, "segment", inputs, outputs, self._constants)


class _Branch:
    """An ``If`` whose condition has a row for each image."""

    def __init__(
        self, node: NodeProto, make_run: MakeRun, constants: Mapping[str, TensorProto]
    ) -> None:
        graphs = {a.name: BatchedGraph(a.g, make_run, constants) for a in node.attribute}
        self._sides: dict[bool, BatchedGraph] = {
            True: graphs["then_branch"],
            False: graphs["else_branch"],
        }
        self._condition = node.input[0]
        self._outputs = list(node.output)
        self.inputs: set[str] = {self._condition}
        self.inputs.update(*(graph.inputs for graph in graphs.values()))

    def __call__(self, values: Values, n: int) -> None:
        """Add the outputs of the branches that rows take."""
        condition = np.broadcast_to(values[self._condition].reshape(-1), n)
        merged: list[NDArray[Any]] = []
        for side, graph in self._sides.items():
            rows = np.flatnonzero(condition == side)
            if len(rows) == 0:
                continue
            own = _of_rows({name: values[name] for name in graph.inputs}, rows, n)
            results = [_rows_of(v, len(rows)) for v in graph(own, len(rows))]
            if len(rows) == n:
                merged = results
                break
            merged = merged or [np.empty((n, *v.shape[1:]), v.dtype) for v in results]
            for whole, part in zip(merged, results, strict=True):
                whole[rows] = part
        values.update(zip(self._outputs, merged, strict=True))


class _Loop:
    """A ``Loop`` of constant first values, whose condition has a row for each image."""

    def __init__(
        self, node: NodeProto, make_run: MakeRun, constants: Mapping[str, TensorProto]
    ) -> None:
        (body,) = (attribute.g for attribute in node.attribute)
        self._body = BatchedGraph(body, make_run, constants)
        limit, _, *first = (numpy_helper.to_array(constants[name]) for name in node.input)
        self._limit, self._first = int(limit), first
        names = [value.name for value in body.input]
        self._carried = names[2:]  # after the number of the pass and the condition
        self._outputs = list(node.output)
        self.inputs: set[str] = self._body.inputs - set(names)

    def __call__(self, values: Values, n: int) -> None:
        """Add what each row carries at its end."""
        rows = np.arange(n)
        state = [_rows_of(v, n) for v in self._first]
        last: list[NDArray[Any]] = []
        for _ in range(self._limit):
            own = _of_rows({name: values[name] for name in self.inputs}, rows, n)
            carried = dict(zip(self._carried, state, strict=True))
            own |= {k: v for k, v in carried.items() if k in self._body.inputs}
            again, *state = (_rows_of(v, len(rows)) for v in self._body(own, len(rows)))
            last = last or [np.empty((n, *v.shape[1:]), v.dtype) for v in state]
            for whole, part in zip(last, state, strict=True):
                whole[rows] = part
            rows, state = rows[again], [v[again] for v in state]
            if len(rows) == 0:
                break
        values.update(zip(self._outputs, last, strict=True))


def _of_rows(values: Values, rows: NDArray[np.intp], n: int) -> Values:
    """Return some of ``n`` rows of values; those with one row for all stay as they are."""
    if len(rows) == n:
        return values
    return {k: v if len(v) != n else v[rows] for k, v in values.items()}


def _rows_of(value: NDArray[Any], n: int) -> NDArray[Any]:
    """Return a value with a row for each of ``n`` images."""
    return np.broadcast_to(value, (n, *value.shape[1:]))
