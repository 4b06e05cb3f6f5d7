"""Exported static bit tables answer as ours do, at each bit width and operator."""

from itertools import repeat

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import dfs_rl
from dfs_rl.backbones import AdaptiveMobileNet, AdaptiveResNet, ResNet, VisionTransformer
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.rules import cascade
from dfs_rl.runtime import OnnxModel
from dfs_rl.runtime.export import table_files
from dfs_rl.runtime.graph_passes import round_shortcuts
from dfs_rl.runtime.onnx_session import OnnxSession
from dfs_rl.training.calibration import calibrate_norms, calibrate_scales
from tests.helpers.networks import network, pictures_for


@pytest.mark.parametrize(
    ("depth", "table", "tolerance"),
    [
        (14, [1, 2, 3, 6, 1, 3], 1e-5),
        # A code of 8 bit may differ by one: of an integer convolution, and in front of the head.
        (8, [4, 5, 4], 1e-2),
    ],
)
def test_each_bit_width_of_a_convolution(depth, table, tolerance, tmp_path):
    net = network(ResNet, bits=(0, 1, 3, 4, 8, 16, 32), depth=depth)
    path = check_table(net, table, pictures_for(ResNet, 64), tmp_path, tolerance)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "Softmax" not in operators  # it is for the answer of several passes


def test_each_bit_width_of_a_transformer(tmp_path):
    net = network(VisionTransformer, bits=(0, 4, 8, 32), depth=4)
    check_table(net, [1, 2, 0, 3], pictures_for(VisionTransformer, 16), tmp_path, 1e-5)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (AdaptiveResNet, {"blocks": (2, 2), "block": "bottleneck", "width": 32}),
        (AdaptiveMobileNet, {"width": 64, "blocks": (2,) * 5}),
    ],
)
def test_wide_convolutions_run_on_integers(kind, shape, tmp_path):
    net = network(kind, bits=(0, 4), **shape)
    table = [i % 2 for i in range(len(net.blocks))]
    path = check_table(net, table, pictures_for(kind, 16), tmp_path, 1e-2)
    session = onnxruntime.SessionOptions()
    session.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, session)
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in nodes) > 3


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_int8_rounds_what_convolutions_add_to_the_shortcut(bits, tmp_path):
    net, images = network(ResNet, bits=(0, bits, 32)), pictures_for(ResNet, 64)
    norm = net.blocks[-1].conv2.norm
    torch.nn.init.uniform_(norm.norm_weight, 0.5, 1.5)
    torch.nn.init.uniform_(norm.norm_bias, -0.5, 0.5)
    model = GatedModel(net.to_inference(), TableGate([2, 2, 1], options=net.options))
    path = dfs_rl.export(model, tmp_path / "int8.onnx", format="onnx-int8")
    logits = torch.from_numpy(OnnxModel(path)(images.numpy()).logits)
    rounded = net.to_inference()
    round_output(rounded.network.blocks[-1].conv2.at(bits, 0), norm, bits)
    if bits == 8:
        round_input(rounded.network.blocks[-1], net.blocks[-1])
    expected, _ = GatedModel(rounded, model.gate)(images)
    difference = (logits - expected).abs().amax(dim=1)
    assert difference.median() < 1e-5  # a code may differ by one, see lowering
    assert (model(images)[0] - expected).abs().amax(dim=1).median() > 1e-3
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("QLinearConv") == 1


def test_int8_adds_bytes_where_layers_of_8_bit_follow_each_other(tmp_path):
    net, images = network(ResNet, bits=(0, 8, 32), depth=14, width=8), pictures_for(ResNet, 64)
    model = GatedModel(net.to_inference(), TableGate([2, 1, 1, 0, 1, 1], options=net.options))
    path = dfs_rl.export(model, tmp_path / "int8.onnx", format="onnx-int8")
    logits = torch.from_numpy(OnnxModel(path)(images.numpy()).logits)
    rounded = net.to_inference()
    for layer in (1, 2, 4, 5):
        own = rounded.network.blocks[layer]
        round_output(own.conv2.at(8, 0), net.blocks[layer].conv2.norm, 8)
        round_input(own, net.blocks[layer])
    expected, _ = GatedModel(rounded, model.gate)(images)
    difference = (logits - expected).abs().mean()
    assert difference < (model(images)[0] - expected).abs().mean() / 4  # codes may differ by one
    session = onnxruntime.SessionOptions()
    session.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, session)
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearAdd") == 3  # the last sum goes to the head


def test_int8_rounds_no_pass_at_the_bits_of_another(tmp_path):
    net, images = network(ResNet, bits=(0, 8, 32)), pictures_for(ResNet, 16)
    backbone, full = net.to_inference(), (2, 2, 2)
    for first in [(1, 1, 1), (1, 0, 2)]:
        gate = cascade(first, full, threshold=1.1, options=net.options)
        model = GatedModel(backbone, gate)
        path = dfs_rl.export(model, tmp_path / "int8.onnx", format="onnx-int8")
        found = OnnxModel(path)(images.numpy()).logits
        np.testing.assert_allclose(found, model(images)[0], atol=1e-5)


def test_values_of_a_node_with_two_outputs_stay(tmp_path):
    generator = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(0),
        "weight": generator.normal(size=(4, 4, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("QuantizeLinear", ["right", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("Conv", ["values", "weight"], ["conv"], pads=[1] * 4),
        helper.make_node("Add", ["conv", "right"], ["y"]),
    ]
    tensors = {name: numpy_helper.from_array(value, name) for name, value in constants.items()}
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n, 5, 5])
        for name, n in (("x", 8), ("y", 4))
    ]
    outputs = []
    for each in (nodes, round_shortcuts(nodes, tensors, kept=["x", "y"])):
        graph = helper.make_graph(each, "g", values[:1], values[1:], list(tensors.values()))
        versions = {"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 10}
        content = helper.make_model(graph, **versions).SerializeToString()
        session = onnxruntime.InferenceSession(content)
        x = np.random.default_rng(1).random((1, 8, 5, 5), dtype=np.float32)
        outputs.append(session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("kind", [ResNet, AdaptiveResNet])
def test_files_of_tables_are_those_of_static_bit_tables(kind, tmp_path):
    net, images = network(kind, bits=(0, 8, 32)), pictures_for(kind, 1)
    if kind is ResNet:
        net.set_exits((1,))
    backbone, floats = net.to_inference(), {"images": images.float().div(255).numpy()}
    write = table_files(net, format="onnx-int8")
    tables = [(0, 1, 1), (2, 1, 0), (1, 3, 3)] if net.costs.exits else [(1, 2)]
    for table in tables:
        model = GatedModel(backbone, TableGate(table))
        path = dfs_rl.export(model, tmp_path / "table.onnx", format="onnx-int8")
        expected, found = (
            onnxruntime.InferenceSession(file).run(["logits"], floats)[0]
            for file in (path, write(table))
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_int8_runs_signed_inputs_and_relu6_in_integers(bits, tmp_path):
    shape = {"bits": (0, bits, 32), "blocks": (2,) * 5, "width": 32, "stem_bits": 32}
    net, images = network(AdaptiveMobileNet, **shape), pictures_for(AdaptiveMobileNet, 16)
    for each in (32, bits):
        calibrate_norms(net, repeat(images), [[(each,) * 5]] * 5)
        calibrate_scales(net, images, parts=[net])
    model = GatedModel(net.to_inference(), TableGate([2, 2, 2, 2, 1], options=net.options))
    path = dfs_rl.export(model, tmp_path / "int8.onnx", format="onnx-int8")
    file = onnx.load(path)
    (rounding,) = [node for node in file.graph.node if node.op_type == "QLinearConv"]
    # The convolutions in front of it are fused with the quantizer after them, without ReLU6.
    assert sum(node.op_type == "Relu" for node in file.graph.node) == (0 if bits == 8 else 2)
    output = helper.make_tensor_value_info(rounding.output[0], TensorProto.UINT8, None)
    file.graph.output.append(output)
    pixels = images.numpy().astype(np.float32) / 255
    codes = OnnxSession(file.SerializeToString(), threads=1).run({"images": pixels})[-1]

    rounded, outputs = net.to_inference(), []
    last = rounded.network.blocks[4].path[0].convolutions[2].at(bits, 0)
    scale = round_output(last, net.blocks[4].path[0].convolutions[2].norm, bits)
    last.register_forward_hook(lambda _, __, y: outputs.append(y.clone()))
    GatedModel(rounded, model.gate)(images)
    distance = ((outputs[0] / scale).round() + 128 - torch.from_numpy(codes)).abs()
    assert distance.max() <= 2  # a code of the input may differ by one, see lowering
    assert distance.mean() < 0.25
    assert len(np.unique(codes)) > 100


def round_output(convolution, norm, bits):
    """Let torch round a convolution's output to 8 bit, in six deviations of its norm.

    Return the size of a step.
    """
    row = norm.norm_row(bits)
    mean, deviation = norm.norm_bias[row].detach(), norm.norm_weight[row].detach()
    scale = float((mean.abs() + 6 * deviation.abs()).max()) / 127
    convolution.may_use_integers = False
    convolution.register_forward_hook(
        lambda _, __, y: torch.fake_quantize_per_tensor_affine(y, scale, 128, 0, 255)
    )
    return scale


def round_input(block, source):
    """Let torch round a block's input to the 8 bit in which its first convolution reads it."""
    scale = source.conv1.quantizers.input_scale(8).item()
    block.register_forward_pre_hook(
        lambda _, given: (
            torch.fake_quantize_per_tensor_affine(given[0], scale, 0, 0, 255),
            *given[1:],
        )
    )


def check_table(net, table, images, folder, tolerance):
    gate = TableGate(table, options=net.options)
    model = GatedModel(net.to_inference(), gate)
    path = dfs_rl.export(model, folder / "table.onnx", format="onnx-static")
    assert all(node.op_type != "If" for node in onnx.load(path).graph.node)
    logits, trace = model(images)
    result = OnnxModel(path)(images.numpy())
    assert np.array_equal(result.options, trace.options)
    np.testing.assert_allclose(result.computation, trace.computation)
    np.testing.assert_allclose(result.logits, logits, atol=tolerance, rtol=tolerance)
    return path
