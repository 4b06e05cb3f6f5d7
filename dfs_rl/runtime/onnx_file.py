"""ONNX models of gated networks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import passes_of
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from dfs_rl.runtime.assembly import Parts, Scope, gated_graph, passes_graph, rule_graph, table_graph
from dfs_rl.runtime.graph_passes import round_shortcuts, without_identities
from dfs_rl.runtime.lowering import lower
from dfs_rl.runtime.tracing import OPSET, FixedPasses, GatedParts, trace

IR_VERSION = 10
"""Version of the file format; newer ones ask for a newer onnxruntime."""


def has_metadata(path: Path, key: str) -> bool:
    """Return whether a file is an ONNX model whose metadata has a key."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # noqa: BLE001 - of a file of any kind
        return False
    return any(entry.key == key for entry in model.metadata_props)


@torch.no_grad()
def onnx_model(
    model: GatedModel, backbone: GatedBackbone, *, int8: bool = False, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the ONNX form of a gated network.

    Args:
        model: The network.
        backbone: Its backbone in inference form.
        int8: Whether convolutions may round their outputs, see ``lower``.
        metadata: What the file tells about itself.
    """
    gate, costs = model.gate, backbone.costs
    model(torch.zeros(1, *backbone.image_shape, device=backbone.feature_mean.device))
    batch: int | str = 1
    if isinstance(gate, LearnedGate):
        gated = GatedParts(backbone, gate, model.budget)
        parts, choices = Parts(*lower(trace(gated), int8=int8)), _reachable(gate)
        if gate.passes.limit > 1:
            first = {k: v.numpy() for k, v in gated.first_state()._asdict().items()}
            scope = passes_graph(parts, costs, choices, first, gate.passes.limit)
        else:
            scope = gated_graph(parts, costs, choices)
    else:
        if isinstance(gate, RuleGate):
            rule = gate.rule  # that of the present preference
        else:
            rule = Rule(passes=(RulePass(options=_table(model, backbone)),))
        traced = trace(FixedPasses(backbone, rule, passes_of(gate).answer))
        scope = rule_graph(Parts(*lower(traced, int8=int8)), len(rule.passes))
        batch = 1 if rule.thresholds else "batch"
    inputs = [_images(batch, backbone)]
    if isinstance(gate, LearnedGate) and gate.budget_conditioning is not None:
        inputs.append(helper.make_tensor_value_info("preference", TensorProto.FLOAT, [1]))
    outputs = [
        _logits(batch, backbone),
        helper.make_tensor_value_info("options", TensorProto.INT64, [batch, costs.n_layers]),
        helper.make_tensor_value_info("computation", TensorProto.DOUBLE, [batch]),
    ]
    return _file(scope, inputs, outputs, metadata)


def table_models(
    backbone: GatedBackbone, *, int8: bool = False
) -> Callable[[Sequence[int]], onnx.ModelProto]:
    """Return what makes the ONNX form of a backbone that takes given actions, from one trace.

    ``int8`` is that of ``lower``. The graphs take one image, as those of gates do, and
    have the output ``logits`` alone.
    """
    costs = backbone.costs
    with torch.no_grad():
        parts = Parts(*lower(trace(GatedParts(backbone, None)), int8=int8))

    def make(actions: Sequence[int]) -> onnx.ModelProto:
        scope = table_graph(parts, costs, actions)
        scope.nodes, _ = without_identities(scope.nodes, kept=["logits"])
        if int8:
            scope.nodes = round_shortcuts(scope.nodes, parts.constants, kept=["images", "logits"])
        return _file(scope, [_images(1, backbone)], [_logits(1, backbone)], {})

    return make


def _images(batch: int | str, backbone: GatedBackbone) -> onnx.ValueInfoProto:
    shape = [batch, *backbone.image_shape]
    return helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)


def _logits(batch: int | str, backbone: GatedBackbone) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, backbone.n_classes])


def _file(
    scope: Scope,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Return the checked file of a graph."""
    graph = helper.make_graph(scope.nodes, "dfs_rl", inputs, outputs, scope.constants)
    result = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dfs_rl",
    )
    helper.set_model_props(result, dict(metadata))
    onnx.checker.check_model(result)
    return result


def _reachable(gate: LearnedGate) -> list[int]:
    """Return the options that a gate can choose; an exit that is not there is the cheapest one."""
    options = {choice for choice in gate.choices if choice < len(gate.options)}
    return sorted(options if gate.exits is None else options | {0})


def _table(model: GatedModel, backbone: GatedBackbone) -> tuple[int, ...]:
    """Return the options that a static bit table runs, within the budget."""
    image = torch.zeros(1, *backbone.image_shape, device=backbone.feature_mean.device)
    return tuple(model(image)[1].options[0].tolist())
