"""Exported networks answer as ours do, and say what they are."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

import dfs_rl
from dfs_rl.backbones import AdaptiveSwin, BackboneInfo, ResNet, save_backbone
from dfs_rl.data import ImageSet
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.export import main
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate, exit_info
from dfs_rl.gating.observation import CONTEXT_SIZE
from dfs_rl.gating.passes import (
    AGAIN_MIRRORED,
    ANSWER,
    CONFIDENCE,
    ENTROPY,
    PassHistory,
    PassSettings,
)
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from dfs_rl.gating.storage import save_gate
from dfs_rl.runtime import OnnxModel
from dfs_rl.runtime import export as export_module
from dfs_rl.runtime.pass_forms import evidence_of
from dfs_rl.training.calibration import measure_features
from tests.helpers.networks import network, pictures_for
from tests.helpers.random_gate import RandomGate
from tests.helpers.rules import confident_gains

ALL_BUDGETS = {"budget_conditioning": BudgetConditioning(computations=(1.0, 50.0))}


def random_gate(kind, backbone, **settings):
    torch.manual_seed(3)
    sizes = settings.pop("feature_sizes", backbone.feature_sizes)
    gate = kind(sizes, backbone.options, **settings)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(2.0)
    return gate.eval()


def agreement(model, path, images, **settings):
    """Compare every image; return logits' differences where options agree, and our trace."""
    onnx_model = OnnxModel(path)
    rows = [onnx_model(image[None].numpy(), **settings) for image in images]
    for n in (3, len(images)):  # one by one, and regrouped
        for column, alone in zip(
            onnx_model(images[:n].numpy(), **settings), zip(*rows, strict=True), strict=True
        ):
            np.testing.assert_allclose(column, np.concatenate(alone)[:n], rtol=1e-4, atol=1e-6)
    logits, options, computation = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)
    )
    expected, trace = model(images)
    same = (options == trace.options).all(dim=1)
    assert same.float().mean() >= 0.999
    torch.testing.assert_close(computation[same], trace.computation[same], rtol=1e-9, atol=0)
    return (logits - expected).abs().amax(dim=1)[same], trace


def fitted_network(images, *, bits=(0, 4, 32), std_factor=1.0):
    """Return a network whose probes and statistics of features fit the images."""
    net = network(ResNet, bits=bits)
    labels = torch.arange(len(images)) % 3
    measure_features(net, [ImageSet(images, labels)], torch.Generator().manual_seed(0))
    net.feature_std.mul_(std_factor)
    return net


def with_exits(net, *after):
    net.set_exits(after)
    for head in net.exit_heads.heads:
        head.quantizers.calibrate(torch.rand(64, head.weight.shape[1]), head.weight)
    return net


def varied_pictures(n):
    light = torch.linspace(0.1, 1.0, n).reshape(-1, 1, 1, 1)
    return (pictures_for(ResNet, n) * light).to(torch.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a network, the model with a gate, and the path of its export."""
    net = fitted_network(varied_pictures(200), bits=(0, 2, 3, 4, 8, 32))
    model = GatedModel(net.to_inference(), random_gate(MLPGate, net), classes=["a", "b", "c"])
    return net, model, dfs_rl.export(model, tmp_path_factory.mktemp("export") / "gate.onnx")


def test_gate_chooses_the_same_options(exported):
    _, model, path = exported
    difference, trace = agreement(model, path, varied_pictures(200))
    assert len(trace.options.unique(dim=0)) > 10
    # Codes of 8 bit may differ by one, see lowering; all else is rounding.
    assert difference.quantile(0.9) < 1e-5
    metadata = OnnxModel(path).metadata
    assert metadata["classes"] == ["a", "b", "c"]
    assert metadata["bits"] == list(model.backbone.options)
    assert metadata["input_range"] == [0, 1]
    assert metadata["mean"] == pytest.approx(model.backbone.network.statistics.mean)
    assert metadata["dfs_rl_version"] == dfs_rl.__version__


def test_weights_lie_inside_the_branches(exported):
    net, _, path = exported
    graph = onnx.load(path).graph
    outside = sum(len(tensor.raw_data) for tensor in graph.initializer)
    weights = sum(p.numel() for p in net.blocks.parameters())
    assert outside < weights < path.stat().st_size - outside
    assert sum(node.op_type == "If" for node in graph.node) == len(net.blocks)


def test_exits_memory_and_preference(tmp_path):
    net = with_exits(network(ResNet, bits=(0, 4, 32)), 1, 2)
    backbone = net.to_inference()
    gate = random_gate(LSTMGate, backbone, exits=exit_info(backbone), **ALL_BUDGETS)
    model = GatedModel(backbone, gate)
    path = dfs_rl.export(model, tmp_path / "gate.onnx")
    images = pictures_for(ResNet, 64)
    seen = []
    for preference in (0.0, 1.0):
        gate.preference = preference
        difference, trace = agreement(model, path, images, preference=preference)
        assert difference.max() < 1e-4
        seen.append(trace.options)
    assert not torch.equal(*seen)
    assert len(torch.cat(seen).eq(net.costs.exit_action).sum(dim=1).unique()) > 1


def test_budget_per_input(tmp_path):
    images = varied_pictures(64)
    net = fitted_network(images)
    backbone, gate = net.to_inference(), random_gate(MLPGate, net)
    free = GatedModel(backbone, gate)(images)[1].computation
    bound = free.quantile(0.5, interpolation="nearest")
    model = GatedModel(backbone, gate, budget=float(bound))  # just enough for some
    _, trace = agreement(model, dfs_rl.export(model, tmp_path / "gate.onnx"), images)
    assert trace.computation.max() == bound
    assert free.max() > bound


@pytest.mark.parametrize(
    ("kind", "std_factor", "settings"),
    [
        (OneShotGate, 1.0, {}),
        (MLPGate, 1.0, {"feature_sizes": (0, 0, 0)}),
        (MLPGate, 0.1, {"choices": (0, 2)}),  # features far out, which are clipped
    ],
)
def test_gates_choose_the_same(kind, std_factor, settings, tmp_path):
    images = varied_pictures(128)
    bits = (0, 4, 32) if "choices" in settings else (4, 32)
    net = fitted_network(images, bits=bits, std_factor=std_factor)
    model = GatedModel(net.to_inference(), random_gate(kind, net, **settings))
    _, trace = agreement(model, dfs_rl.export(model, tmp_path / "gate.onnx"), images)
    assert len(trace.options.unique(dim=0)) > 2 * ("feature_sizes" not in settings)


@pytest.mark.parametrize("by_gain", [False, True])
def test_rules_of_several_passes(by_gain, tmp_path):
    net = with_exits(network(ResNet, bits=(0, 4, 32)), 1)
    backbone, images = net.to_inference(), varied_pictures(64)
    passes = [RulePass(options=(1, 0, 3)), RulePass(options=(2, 3, 3), mirrored=True)]
    passes.append(RulePass(options=(2, 2, 2)))
    thresholds, gains = [], confident_gains(net.n_classes, 0.001) if by_gain else ()
    for n in (1, 2, 3):
        found = {"thresholds": tuple(thresholds), "gains": gains[: n - 1]}
        rule = Rule(passes=tuple(passes[:n]), **found)
        gate = RuleGate([rule], answer="mean", options=net.options, exits=(1,))
        logits, trace = GatedModel(backbone, gate)(images)
        sure = logits[trace.n_passes == n].softmax(dim=1).amax(dim=1).sort().values
        thresholds.append(float(sure[len(sure) // 2 - 1 :][:2].mean()))
    model = GatedModel(backbone, gate)
    path = dfs_rl.export(model, tmp_path / "rule.onnx")
    difference, trace = agreement(model, path, images)
    assert difference.max() < 1e-4
    assert len(trace.n_passes.unique()) == 3
    model.budget = 80.0
    with pytest.raises(ConfigError, match="budget per input is 80 %"):
        dfs_rl.export(model, path)


def answer_if_sure(gate, backbone, images):
    """Answer above the median confidence; look at the mirror image above the median entropy."""
    end, evidence = gate.networks[-1], CONTEXT_SIZE + 1
    for parameter in end.parameters():
        parameter.zero_()
    end[2].bias[ANSWER] = 1.0  # always
    shares = GatedModel(backbone, gate)(images)[0].softmax(dim=1)
    end[2].bias[ANSWER] = 0.0
    entropy = -(shares * shares.log()).sum(dim=1) / np.log(shares.shape[1])
    for unit, column, values in [(0, CONFIDENCE, shares.amax(dim=1)), (1, ENTROPY, entropy)]:
        end[0].weight[unit, evidence + column] = 100.0
        end[0].bias[unit] = -100.0 * values.quantile(0.5)
    end[2].weight[ANSWER, 0], end[2].weight[AGAIN_MIRRORED, 1] = 1.0, 0.9


@torch.no_grad()
def test_learned_gates_of_several_passes(tmp_path):
    images = varied_pictures(96)
    net = with_exits(fitted_network(images), 1)
    backbone = net.to_inference()
    gate = random_gate(
        MLPGate,
        backbone,
        passes=PassSettings(limit=3, mirrored=True),
        exits=exit_info(backbone),
        **ALL_BUDGETS,
    )
    answer_if_sure(gate, backbone, images)
    model = GatedModel(backbone, gate)
    path = dfs_rl.export(model, tmp_path / "gate.onnx")
    weights = sum(p.numel() for p in net.parameters()) * len(net.options) * 4  # bytes, one pass
    assert path.stat().st_size < 1.5 * weights + 200_000
    difference, trace = agreement(model, path, images, preference=1.0)
    assert difference.max() < 1e-4
    assert len(trace.n_passes.unique()) == 3
    assert len(trace.options.unique(dim=0)) > 2


@torch.no_grad()
def test_passes_within_a_budget_per_input(tmp_path):
    images = varied_pictures(64)
    net = fitted_network(images)
    backbone = net.to_inference()
    passes = PassSettings(limit=3, mirrored=True, answer="surest")
    gate = random_gate(MLPGate, backbone, passes=passes, **ALL_BUDGETS)
    answer_if_sure(gate, backbone, images)
    free = GatedModel(backbone, gate)(images)[1]
    bound = free.computation[free.n_passes > 1].quantile(0.5, interpolation="nearest")
    model = GatedModel(backbone, gate, budget=float(bound))  # just enough for some
    _, trace = agreement(model, dfs_rl.export(model, tmp_path / "gate.onnx"), images)
    assert trace.computation.max() - 1e-9 <= bound < free.computation.max()
    assert len(trace.n_passes.unique()) > 1


@pytest.mark.parametrize("answer", ["mean", "last", "surest"])
def test_evidence_of_passes(answer):
    settings, net = PassSettings(limit=3, answer=answer), network(ResNet, n_classes=4)
    costs = net.costs
    draws = torch.Generator().manual_seed(0)
    logits = 5.0 * torch.randn(64, 3, 4, generator=draws)
    options = torch.randint(costs.options.full + 1, (64, costs.n_layers), generator=draws)
    history = PassHistory(settings, net, 64, device=torch.device("cpu"))
    rows, shown = torch.arange(64), torch.zeros_like(logits)
    for i in range(3):
        history.finish(rows, logits[:, i], options, torch.zeros(64).double())
        shown[:, i] = logits[:, i]
        finished = torch.full((64,), i + 1)
        ours, evidence = evidence_of(shown, finished, options, settings, full=costs.options.full)
        torch.testing.assert_close(ours, history.answer(rows))
        torch.testing.assert_close(evidence, history.evidence)


def test_programs_of_all_parts(tmp_path):
    net = with_exits(network(AdaptiveSwin, bits=(0, 4)), 1)
    model, folder = GatedModel(net.to_inference(), RandomGate(3)), tmp_path / "parts"
    folder.mkdir()
    for content in (None, "[]", "{}", "text"):  # a folder of someone else
        if content is not None:
            (folder / "index.json").write_text(content)
        with pytest.raises(ConfigError, match=r"index\.json"):
            dfs_rl.export(model, folder, format="torch")
    (folder / "index.json").write_text('{"dfs_rl_version": "0"}')  # an earlier export is replaced
    (folder / "stem_of_old.pt2").touch()
    dfs_rl.export(model, folder, format="torch")
    index = json.loads((folder / "index.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"parts"}
    assert len(list(folder.iterdir())) == 1 + 1 + 2 * 2 + 1 + 1

    def run(name, x):
        return torch.export.load(folder / name).module()(x)

    images = pictures_for(AdaptiveSwin, 5).float() / 255
    hidden = run(index["layers"][0]["4"], run(index["stem"], images))
    early = run(index["exits"]["1"], hidden)
    late = run(index["head"], run(index["layers"][1]["0"], hidden))
    for table, logits in (([1, 2], early), ([1, 0], late)):
        expected, _ = GatedModel(net.to_inference(), TableGate(table))(images)
        torch.testing.assert_close(logits, expected)


class Strange(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, bits):
        return self.layer(torch.special.bessel_j0(hidden), bits)


def test_bad_exports(tmp_path, monkeypatch):
    net = network(ResNet, bits=(0, 32))
    path = tmp_path / "gate.onnx"
    table = TableGate([1, 1, 1], options=net.options)
    learned = GatedModel(net.to_inference(), random_gate(MLPGate, net))
    drawn = GatedModel(net.to_inference(), RandomGate(2))
    strange = net.to_inference()
    strange.network.blocks[0] = Strange(strange.network.blocks[0])
    with pytest.raises(ConfigError, match="onnx-static"):
        dfs_rl.export(learned, path, format="onnx-static")
    with pytest.raises(ConfigError, match="tflite"):
        dfs_rl.export(learned, path, format="tflite")
    with pytest.raises(ConfigError, match="RandomGate"):
        dfs_rl.export(drawn, path)
    with pytest.raises(ConfigError, match="bessel_j0"):
        dfs_rl.export(GatedModel(strange, table), path)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no file of an earlier export"):
        dfs_rl.export(GatedModel(net.to_inference(), table), path)
    assert path.read_text() == "mine"
    path.unlink()
    with pytest.raises(ConfigError, match="bfloat16"):
        dfs_rl.export(GatedModel(net.to_inference(torch.bfloat16), table), path)
    monkeypatch.setattr(export_module, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="GiB"):
        dfs_rl.export(GatedModel(net.to_inference(), table), path)
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"dfs-rl\[export\]"):
        dfs_rl.export(learned, path)
    assert list(tmp_path.iterdir()) == []


def test_bad_images_and_files(exported, tmp_path):
    *_, path = exported
    images = pictures_for(ResNet, 2).numpy()
    model = OnnxModel(path)
    for wrong, words in (
        (images[:0], "at least one"),
        (images[:1, :, :4], "1, 8, 8"),
        (images[:1].astype(np.float32), r"\[0, 1\]"),
        *((images.astype(kind), "allowed are uint8") for kind in (object, np.longdouble)),
        *((one, "a NumPy array") for one in (torch.from_numpy(images), images.tolist(), None)),
    ):
        with pytest.raises(DataError, match=words):
            model(wrong)
    for preference in (0.5, "x", [0.5]):
        with pytest.raises(ConfigError, match="preference"):
            model(images[:1], preference=preference)
    for threads in (0, -1, 1.5, "1"):
        with pytest.raises(ConfigError, match="threads is"):
            OnnxModel(path, threads=threads)
    logits = model(images).logits
    flipped = np.ascontiguousarray(images[..., ::-1])
    for equal in (
        flipped[..., ::-1],
        (images / 255).astype(">f4"),
        np.broadcast_to(images, images.shape),
    ):
        np.testing.assert_allclose(model(equal).logits, logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match="nowhere"):
        OnnxModel(tmp_path / "nowhere.onnx")
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="half"):
        OnnxModel(tmp_path / "half.onnx")


def test_command(tmp_path, capsys):
    net, out = network(ResNet, bits=(0, 32)), tmp_path / "gate.onnx"
    assert main([str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "nothing" in capsys.readouterr().err
    info = BackboneInfo(dataset="noise", fingerprint="0" * 16, class_names=("a", "b", "c"))
    save_backbone(net, info, tmp_path / "run" / "backbone")
    save_gate(TableGate([0, 1, 0], options=net.options), tmp_path / "run" / "gate")
    flags = [str(tmp_path / "run"), "--out", str(out), "--format", "onnx-static"]
    assert main([*flags, "--budget", "0.5"]) == 2
    assert not out.exists()
    measured = BudgetConditioning(computations=(0.5, 60.0))
    gate = MLPGate(net.feature_sizes, net.options, budget_conditioning=measured)
    save_gate(gate, tmp_path / "other" / "gate")
    shutil.copytree(tmp_path / "run" / "backbone", tmp_path / "other" / "backbone")
    capsys.readouterr()
    assert main([str(tmp_path / "other"), "--out", str(out), "--budget", "70"]) == 2
    assert "budget is 70 %, but the images of this gate cost 0.5 %" in capsys.readouterr().err
    assert not out.exists()
    assert main(flags) == 0
    assert OnnxModel(out).metadata["classes"] == ["a", "b", "c"]
