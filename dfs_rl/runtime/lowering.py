"""Standard ONNX nodes in place of the quantized operators of a trace.

The codes are those of the inference form: ``QuantizeLinear`` with our scales, clipped to the range
of fewer than 8 bits, then ``DequantizeLinear``. onnxruntime fuses such nodes into integer kernels.
Its convolutions of integers return integers. With ``int8`` all convolutions of codes use them, and
those whose output is a float in the inference form round it to 8 bit. So do shortcuts, see
``round_shortcuts``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dfs_rl.runtime.graph_passes import Builder, merge_linear, round_shortcuts
from dfs_rl.runtime.tracing import DOMAIN

Array = NDArray[np.floating[Any]]
_BYTES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
_LARGEST_BIAS, _LARGEST_SUM = 2.0**30, 2**15 - 1
_IMAGES = "images"
_FEWEST_CHANNELS = 32  # for which a product of integers is faster than a convolution of floats
_FEWEST_ROUNDED = 8
"""Channels from which a convolution of integers rounds its output.

It would be faster for images too, but overflows easily without 8-bit dot products: codes are large.
"""
_MIDDLE = 128  # code of 0 in an unsigned byte
_ROWS, _BOUNDS = 2, 2  # rank of a batch of vectors, bounds of a ReLU6
_REACH_INPUT = 5  # input of a convolution: the largest output, if it is known
_LEAST_REACH = np.float32(1e-6)


def lower(
    graph: onnx.GraphProto, *, int8: bool = False
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """Return the nodes and constants of a traced graph with its quantized operators replaced.

    ``int8`` runs convolutions of codes in integers, even if this rounds their output, and sums too.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    inputs = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in inputs:
            node.input[0] = _IMAGES  # only the batch size is open, and the images are there first
        builder = Builder(node.output[0])
        if node.domain == DOMAIN:
            _LOWERINGS[node.op_type](builder, _Operator(graph, node, constants, int8=int8))
        elif node.op_type == "Clip" and _Operator(graph, node, constants, int8=int8).is_cut_off():
            builder.node("Relu", node.input[0], output=node.output[0])
        else:
            builder.nodes.append(node)
        nodes += builder.nodes
        constants |= builder.constants
    nodes = merge_linear(nodes, constants)
    if int8:
        outputs = {value.name for value in graph.output}
        nodes = round_shortcuts(nodes, constants, kept=inputs | outputs)
    return nodes, constants


class _Operator:
    """A quantized operator of a trace."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        node: NodeProto,
        constants: Mapping[str, TensorProto],
        *,
        int8: bool,
    ) -> None:
        self.graph = graph
        self.int8 = int8
        self.node = node
        self.inputs: Sequence[str] = node.input
        self.output: str = node.output[0]
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._constants = constants

    @staticmethod
    def _only(nodes: Sequence[NodeProto], wanted: Callable[[NodeProto], bool]) -> NodeProto | None:
        """Return the node for which ``wanted`` is true, if there is just one."""
        found = [node for node in nodes if wanted(node)]
        return found[0] if len(found) == 1 else None

    def value(self, index: int) -> Array:
        """Return a constant input."""
        return numpy_helper.to_array(self._constants[self.inputs[index]]).astype(np.float32)

    def range(self, prefix: str = "") -> tuple[int, int]:
        """Return the smallest and the largest code."""
        return self.attributes[f"{prefix}qmin"], self.attributes[f"{prefix}qmax"]

    def runs_on_bytes(self) -> bool:
        """Return whether onnxruntime may convolve the codes in integers.

        It rounds the bias to a product of two codes, which moves few codes of 8 bit by one. At
        fewer bits that matters more, and is for ``int8`` alone.
        """
        return self.int8 or self.range() == _BYTES[np.dtype(np.uint8)]

    def zero(self) -> int:
        """Return the byte of code 0, which ``int8`` shifts so that no code is negative.

        CPUs with 8-bit dot products multiply unsigned bytes alone. Others are exact only for signed
        ones, unless they are told to be, as ``OnnxModel`` does.
        """
        return -self.range()[0] if self.int8 else 0

    def feeds_quantizer(self) -> bool:
        """Return whether a convolution in integers makes, after a ReLU, the codes of another."""
        relu = self._only(self.graph.node, lambda node: self.output in node.input)
        if relu is None or not self.runs_on_bytes():
            return False
        conv = self._convolution(lambda node: relu.output[0] in node.input)
        leaves = {value.name for value in self.graph.output} & {self.output, relu.output[0]}
        return conv is not None and not leaves and conv.runs_on_bytes() and conv.cuts_off(relu)

    def cuts_off(self, relu: NodeProto) -> bool:
        """Return whether the codes of the input are the same without the ReLU or ReLU6."""
        smallest, largest = self.range()
        if relu.op_type == "Relu":
            return smallest == 0
        bounds = [self._constants[name] for name in relu.input[1:] if name in self._constants]
        if relu.op_type != "Clip" or len(bounds) != _BOUNDS:
            return False
        low, high = (numpy_helper.to_array(bound) for bound in bounds)
        return bool(low == smallest == 0 and np.rint(high * self.value(1)) >= largest)

    def is_cut_off(self) -> bool:
        """Return whether integer kernels run on both sides of a ReLU or ReLU6, without it."""
        conv = self._convolution(lambda node: self.inputs[0] in node.output)
        return conv is not None and conv.feeds_quantizer()

    def follows_fused(self) -> bool:
        """Return whether the input comes from a convolution that ``feeds_quantizer``."""
        relu = self._only(self.graph.node, lambda node: self.inputs[0] in node.output)
        if relu is None or relu.op_type not in ("Relu", "Clip"):
            return False
        return _Operator(self.graph, relu, self._constants, int8=self.int8).is_cut_off()

    def _convolution(self, wanted: Callable[[NodeProto], bool]) -> "_Operator | None":
        """Return the quantized convolution for which ``wanted`` is true, if no other node is."""
        node = self._only(self.graph.node, wanted)
        if node is None or (node.domain, node.op_type) != (DOMAIN, "Conv"):
            return None
        return _Operator(self.graph, node, self._constants, int8=self.int8)

    def rounded_scale(self) -> Array | None:
        """Return the scale of an output that is rounded to 8 bit.

        ``None`` if it stays a float: without ``int8``, a batch norm or enough channels.
        """
        channels = self.value(2).shape[1] * self.attributes["group"]
        known = len(self.inputs) > _REACH_INPUT
        if not (self.int8 and known and self.runs_on_bytes() and channels >= _FEWEST_ROUNDED):
            return None
        return np.maximum(self.value(_REACH_INPUT), _LEAST_REACH) / np.float32(_MIDDLE - 1)


def _quantize(
    builder: Builder,
    x: str,
    inverse_scale: Array,
    limits: tuple[int, int],
    *,
    zero: int = 0,
    fused: bool = False,
) -> str:
    """Add the nodes that quantize ``x``; return the codes, all of them larger by ``zero``.

    Dividing by the scale would round a few codes otherwise than our product with its inverse; in
    front of integer kernels it is ``fused`` with them.
    """
    limits = limits[0] + zero, limits[1] + zero
    dtype = np.dtype(np.uint8 if limits[0] >= 0 else np.int8)
    scale = np.ones((), np.float32)
    if fused:
        scale = np.reciprocal(inverse_scale)
    else:
        x = builder.node("Mul", x, builder.constant(inverse_scale))
    parameters = builder.constant(scale), builder.constant(np.asarray(zero, dtype))
    codes = builder.node("QuantizeLinear", x, *parameters)
    if limits != _BYTES[dtype]:
        ends = (builder.constant(np.asarray(limit, dtype)) for limit in limits)
        codes = builder.node("Clip", codes, *ends)
    return codes


def _dequantize(
    builder: Builder, codes: str, scale: Array, limits: tuple[int, int], *, zero: int = 0
) -> str:
    """Add the node that multiplies codes, less ``zero``, by their scale; return the values."""
    shift = np.asarray(zero, np.uint8 if limits[0] + zero >= 0 else np.int8)
    return builder.node("DequantizeLinear", codes, builder.constant(scale), builder.constant(shift))


def _lower_conv(builder: Builder, conv: _Operator) -> None:
    inverse_scale = conv.value(1)
    input_scale = np.reciprocal(inverse_scale)
    codes, scale, bias = conv.value(2), conv.value(3), conv.value(4)
    geometry = {k: v for k, v in conv.attributes.items() if k not in ("qmin", "qmax", "sides")}
    largest = conv.range()[1] + conv.zero()
    integers = _integer_weight(codes, scale / input_scale, bias / input_scale, largest)
    feeds, rounded = conv.feeds_quantizer(), conv.rounded_scale()
    fused = feeds or rounded is not None or conv.follows_fused()
    quantize = partial(_quantize, builder, conv.inputs[0], inverse_scale, conv.range(), fused=fused)
    if integers is None or not (feeds or rounded is not None):
        # onnxruntime has no fast convolution of integers to floats.
        if geometry["group"] == 1 and codes.shape[1] >= _FEWEST_CHANNELS:
            _multiply_windows(builder, conv, quantize(zero=conv.zero()))
            return
        x = builder.node("Cast", quantize(), to=TensorProto.FLOAT)
        weight = _float_weight(builder, codes, scale.reshape(-1, 1, 1, 1))
        builder.node("Conv", x, weight, builder.constant(bias), output=conv.output, **geometry)
        return
    codes, scale, bias_codes = integers
    x = quantize(zero=conv.zero())
    if feeds:
        x = _dequantize(builder, x, input_scale, conv.range(), zero=conv.zero())
        weight = _integers(builder, codes, scale, axis=0)
        added = _integers(builder, bias_codes, scale * input_scale, axis=0, dtype=np.int32)
        builder.node("Conv", x, weight, added, output=conv.output, **geometry)
        return
    assert rounded is not None
    inputs = input_scale, np.asarray(conv.zero(), np.uint8)
    weights = codes.astype(np.int8), scale, np.zeros(len(codes), np.int8)
    output = builder.constant(rounded), builder.constant(np.asarray(_MIDDLE, np.uint8))
    constants = *map(builder.constant, (*inputs, *weights)), *output
    added = builder.constant(bias_codes.astype(np.int32))
    x = builder.node("QLinearConv", x, *constants, added, **geometry)
    builder.node("DequantizeLinear", x, *output, output=conv.output)


def _multiply_windows(builder: Builder, conv: _Operator, x: str) -> None:
    """Add a convolution of codes as an integer product of its windows with the weights."""
    codes, scale, bias = conv.value(2), conv.value(3), conv.value(4)
    out, _, *kernel = codes.shape
    pads, strides, dilations = (conv.attributes[k] for k in ("pads", "strides", "dilations"))
    sides = conv.attributes["sides"]
    ints = partial(np.array, dtype=np.int64)
    x = builder.node("Transpose", x, perm=[0, 2, 3, 1])
    if any(pads):
        sizes = builder.constant(ints([0, *pads[:2], 0, 0, *pads[2:], 0]))
        dtype = np.uint8 if conv.range()[0] + conv.zero() == 0 else np.int8
        x = builder.node("Pad", x, sizes, builder.constant(np.asarray(conv.zero(), dtype)))
    if kernel != [1, 1] or strides != [1, 1]:
        axes, steps = builder.constant(ints([1, 2])), builder.constant(ints(strides))
        shifted = []
        for place in np.ndindex(*kernel):
            start = ints(place) * dilations
            end = start + (ints(sides) - 1) * strides + 1
            ends = builder.constant(start), builder.constant(end)
            shifted.append(builder.node("Slice", x, *ends, axes, steps))
        x = builder.node("Concat", *shifted, axis=3)
    rows = builder.constant(ints([0, sides[0] * sides[1], -1]))
    x = builder.node("Reshape", x, rows)
    x = _dequantize(builder, x, np.ones((), np.float32), conv.range(), zero=conv.zero())
    weight = _integers(builder, codes.transpose(2, 3, 1, 0).reshape(-1, out), scale, axis=1)
    product = builder.node("Transpose", builder.node("MatMul", x, weight), perm=[0, 2, 1])
    image = builder.node("Reshape", product, builder.constant(ints([0, out, *sides])))
    # Added last: onnxruntime makes a float product of a MatMul with an Add right after it.
    builder.node("Add", image, builder.constant(bias.reshape(-1, 1, 1)), output=conv.output)


def _integer_weight(
    codes: Array, scale: Array, bias: Array, largest: int
) -> tuple[Array, Array, Array] | None:
    """Return codes, positive scales and bias codes of an integer convolution.

    The codes of a channel are multiplied to fill their range: the scale, in which the bias is
    rounded, becomes finer. CPUs without 8-bit dot products add two products in 16 bits, where those
    of multiplied codes fit.

    Args:
        codes: Weight codes, ``[out, in, height, width]``.
        scale: Factor of each output channel, ``[out]``; may be negative or 0.
        bias: Addend in units of the input scale, ``[out]``.
        largest: Largest byte of the input.

    Returns:
        ``None`` if the result does not fit the integers.
    """
    codes = codes * np.sign(scale).reshape(-1, 1, 1, 1)
    scale = np.where(scale == 0, np.float32(1), np.abs(scale))
    most = min(127, _LARGEST_SUM // (2 * largest))
    factor = np.maximum(most // np.abs(codes).max(axis=(1, 2, 3)).clip(min=1), 1)
    codes = codes * factor.reshape(-1, 1, 1, 1)
    scale = (scale / factor).astype(np.float32)
    bias_codes = np.rint(bias / scale)
    low, high = _BYTES[np.dtype(np.int8)]
    if codes.min() < low or codes.max() > high or np.abs(bias_codes).max() > _LARGEST_BIAS:
        return None
    return codes, scale, bias_codes


def _lower_linear(builder: Builder, linear: _Operator) -> None:
    codes, scale = linear.value(2), linear.value(3).reshape(-1)
    fused, rows = bool(linear.attributes["fused"]), linear.attributes["rank"] == _ROWS
    zero, source = 0 if rows else linear.zero(), linear.inputs[0]
    x = _quantize(builder, source, linear.value(1), linear.range(), zero=zero, fused=fused)
    added = builder.constant(linear.value(4))
    if rows:  # too small for integers: few nodes matter most
        x = builder.node("Cast", x, to=TensorProto.FLOAT)
        weight = _float_weight(builder, codes, scale.reshape(-1, 1))
        builder.node("Gemm", x, weight, added, output=linear.output, transB=1)
        return
    scale = scale * linear.value(1)
    x = _dequantize(builder, x, np.reciprocal(linear.value(1)), linear.range(), zero=zero)
    weight = _integers(builder, codes.T, scale if len(scale) > 1 else scale[0], axis=1)
    product = builder.node("MatMul", x, weight)
    builder.node("Add", product, added, output=linear.output)


def _integers(
    builder: Builder,
    codes: Array,
    scale: Array,
    *,
    axis: int,
    dtype: type[np.signedinteger[Any]] = np.int8,
) -> str:
    """Add constant integers that stand for their products with scales; return their name."""
    constants = codes.astype(dtype), scale, np.zeros(np.shape(scale), dtype)
    return builder.node("DequantizeLinear", *map(builder.constant, constants), axis=axis)


def _float_weight(builder: Builder, codes: Array, scale: Array) -> str:
    """Add weights in float, which onnxruntime multiplies once; return their name."""
    floats = builder.node("Cast", builder.constant(codes.astype(np.int8)), to=TensorProto.FLOAT)
    return builder.node("Mul", floats, builder.constant(scale))


def _lower_matmul(builder: Builder, matmul: _Operator) -> None:
    factors = []
    for i, limits in enumerate((matmul.range(), matmul.range("second_"))):
        scale = matmul.value(2 + i)
        codes = _quantize(builder, matmul.inputs[i], np.reciprocal(scale), limits)
        factors.append(_dequantize(builder, codes, scale, limits))
    builder.node("MatMul", *factors, output=matmul.output)


_LOWERINGS: Mapping[str, Callable[[Builder, _Operator], None]] = {
    "Conv": _lower_conv,
    "Linear": _lower_linear,
    "Matmul": _lower_matmul,
}
