"""Changes of whole graphs of standard ONNX nodes, after ``lowering``."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Builder:
    """Nodes in order and constants by name, with new names."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._prefix = prefix
        self._count = count()

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"{self._prefix}.{next(self._count)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def node(
        self,
        kind: str,
        *inputs: str,
        output: str | None = None,
        **attributes: Any,  # noqa: ANN401 - each operator has its own
    ) -> str:
        """Add a node with one output and return the name of the output."""
        output = output or f"{self._prefix}.{next(self._count)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def merge_linear(nodes: Sequence[NodeProto], constants: dict[str, TensorProto]) -> list[NodeProto]:
    """Return the nodes with one linear map in place of two after one another."""
    makers = {node.output[0]: node for node in nodes if node.op_type == "Gemm"}
    uses = Counter(name for node in nodes for name in node.input)
    merged: dict[int, NodeProto] = {}
    for node in makers.values():
        first = makers.get(node.input[0])
        if first is None or uses[node.input[0]] > 1:
            continue
        names = [*first.input[1:], *node.input[1:]]
        if any(name not in constants for name in names):
            continue
        values = [numpy_helper.to_array(constants[name]).astype(np.float64) for name in names]
        (inner, offset), (outer, bias) = values[:2], values[2:]
        builder = Builder(node.output[0])
        weight = builder.constant((outer @ inner).astype(np.float32))
        added = builder.constant((outer @ offset + bias).astype(np.float32))
        builder.node("Gemm", first.input[0], weight, added, output=node.output[0], transB=1)
        constants |= builder.constants
        merged[id(node)] = builder.nodes[0]
    return [merged.get(id(node), node) for node in nodes]


def without_identities(
    nodes: Sequence[NodeProto], *, kept: Collection[str] = ()
) -> tuple[list[NodeProto], dict[str, str]]:
    """Return copies of nodes, of which none copies a value but those that make ``kept`` ones.

    Also returned are the values that were copies, with those that they stand for.
    """
    same: dict[str, str] = {}
    result = []
    for node in nodes:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in kept:
            same[node.output[0]] = copied.input[0]
        else:
            result.append(copied)
    return result, same


def round_shortcuts(
    nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto], *, kept: Collection[str]
) -> list[NodeProto]:
    """Return the nodes with 8-bit shortcuts: what a block of 8 bit adds is what it convolves.

    The shortcut is rounded and clipped to the bytes that the first convolution reads, as in static
    quantization, and onnxruntime adds them in one step with ReLU and next quantization.

    Args:
        nodes: The nodes in order.
        constants: Constants by name.
        kept: Values that stay as they are, such as inputs and outputs of the graph.
    """
    steps = _quantizations(nodes, constants, kept)
    moved = {id(step) for step in steps.values()}
    result: list[NodeProto] = []
    rounded: dict[str, str] = {}  # values by those that they stand for
    parts: dict[str, Sequence[str]] = {}  # bytes, scale and byte of 0 by value
    for node in nodes:
        if id(node) in moved:
            continue
        source, output = parts.get(node.input[0]) if node.input else None, node.output[0]
        node.input[:] = [rounded.get(name, name) for name in node.input]
        step = steps.get(output)
        if source is not None and _moves_values(node, constants):
            codes, scale, zero = source
            padding = [zero] * (node.op_type == "Pad")
            node.input[:] = [codes, *node.input[1 : 2 if padding else None], *padding]
            node.output[0] = f"{output}.bytes"
            parts[output] = node.output[0], scale, zero
            result += [node, helper.make_node("DequantizeLinear", parts[output], [output])]
        elif step is None or node.op_type != "Relu" or any(constants[step.input[2]].raw_data):
            result.append(node)
        else:  # bytes from 0 on need no ReLU before them
            step.input[0] = node.input[0]
        if step is not None:
            parts[output] = step.output[0], *step.input[1:]
            rounded[output] = f"{output}.rounded"
            result += [step, helper.make_node("DequantizeLinear", parts[output], [rounded[output]])]
    return result


def _moves_values(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Return whether a node moves its input's values, or adds zeros, as it can do with bytes."""
    if node.op_type != "Pad":
        return node.op_type == "Slice"
    added = [name for name in node.input[2:] if name]
    return all(n in constants and not numpy_helper.to_array(constants[n]).any() for n in added)


def _quantizations(
    nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto], kept: Collection[str]
) -> dict[str, NodeProto]:
    """Return the node that quantizes a value for a convolution, by value.

    The value may be an addend besides, the shortcut of the same block, and nothing else: other
    passes of a rule and other options of a layer may read it, which round it at their bits. Codes
    of less than 8 bit are clipped before they are convolved, so they are left out.
    """
    readers = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)

    def feeds_convolution(codes: str) -> bool:
        kinds = {node.op_type for node in readers[codes]}
        values = [node.output[0] for node in readers[codes] if node.op_type == "DequantizeLinear"]
        kinds |= {node.op_type for value in values for node in readers[value]}
        return kinds <= {"QLinearConv", "DequantizeLinear", "Conv"}

    def adds(reading: Sequence[NodeProto]) -> bool:
        """Return whether one node reads a value: a sum, perhaps after Slice and Pad."""
        if len(reading) != 1:
            return False
        moves = _moves_values(reading[0], constants) and reading[0].output[0] not in kept
        return reading[0].op_type == "Add" or (moves and adds(readers[reading[0].output[0]]))

    found: dict[str, NodeProto] = {}
    for name in [node.output[0] for node in nodes if len(node.output) == 1]:
        steps = [node for node in readers[name] if node.op_type == "QuantizeLinear"]
        others = [node for node in readers[name] if node.op_type != "QuantizeLinear"]
        shortcut = len(steps) == 1 and name not in kept and (adds(others) or not others)
        if shortcut and feeds_convolution(steps[0].output[0]):
            found[name] = steps[0]
    return found
