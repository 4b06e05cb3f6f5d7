"""Models of run folders, on a small ResNet."""

import copy
import math
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import dfs_rl
from dfs_rl.backbones import BackboneInfo, ResNet, ResNetConfig, save_backbone
from dfs_rl.costs import BitOptions
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.data.decode import fit_picture
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from dfs_rl.gating.storage import save_gate
from dfs_rl.training.calibration import measure_features
from dfs_rl.utils.checkpoint import load_tensors, save_tensors
from dfs_rl.utils.seeding import torch_generator

BITS = (0, 2, 4, 8)


def network(bits=BITS):
    return copy.deepcopy(calibrated(bits))


@cache
def calibrated(bits):
    torch.manual_seed(0)
    config = ResNetConfig(depth=8, width=4, in_channels=1, image_size=(8, 8), bits=bits)
    backbone = ResNet(config, ChannelStatistics(mean=(0.5,), std=(0.25,))).eval()
    image_set = ImageSet(images(64, seed=1), torch.arange(64) % 10)
    measure_features(backbone, [image_set], torch_generator("tests"))
    return backbone


def images(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)


def write_run(folder, *, image_size=None, kind=MLPGate, **settings):
    """Write a run whose gate chooses different options for different images."""
    backbone, names = network(), tuple("abcdefghij")
    info = BackboneInfo(
        dataset="noise", fingerprint="0" * 16, class_names=names, image_size=image_size
    )
    save_backbone(backbone, info, folder / "backbone")
    gate = kind(backbone.feature_sizes, BitOptions(BITS), hidden=4, **settings)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(6.0)
    save_gate(gate, folder / "gate")
    return gate


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path)
    return tmp_path


def test_run_folder_becomes_a_model(run):
    model = dfs_rl.load(run)
    assert not model.training
    assert model.classes == tuple("abcdefghij")
    logits, trace = model(images())
    assert logits.shape == (24, 10)
    assert trace.bits.shape == (24, 3)
    assert len(trace.bits.unique(dim=0)) > 1
    again, trace_again = dfs_rl.load(str(run)).to("cpu").eval()(images())
    assert torch.equal(logits, again)
    assert torch.equal(trace.computation, trace_again.computation)
    for i in (0, 7, 23):
        alone, trace_alone = model(images()[i : i + 1])
        assert torch.equal(alone[0], logits[i])
        assert torch.equal(trace_alone.bits[0], trace.bits[i])


SEVERAL = PassSettings(limit=3, mirrored=True)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((kind, {}) for kind in (MLPGate, LSTMGate, OneShotGate)), (MLPGate, {"passes": SEVERAL})],
)
@pytest.mark.parametrize("budget", [None, 60.0])
def test_loaded_gate_chooses_as_before(kind, settings, budget, tmp_path):
    gate = write_run(tmp_path, kind=kind, budget=budget, **settings).eval()
    logits, trace = GatedModel(network().to_inference(), gate, budget=budget)(images())
    again, trace_again = dfs_rl.load(tmp_path)(images())
    assert torch.equal(logits, again)
    assert all(map(torch.equal, trace, trace_again))
    assert budget is None or float(trace.computation.max()) <= budget


def test_inference_form_agrees_with_training_form(run):
    frozen, frozen_trace = dfs_rl.load(run)(images())
    trained, trained_trace = dfs_rl.load(run, inference_form=False)(images())
    same = (frozen_trace.bits == trained_trace.bits).all(dim=1)
    assert same.float().mean() > 0.9  # a rounding may differ, and a choice with it
    torch.testing.assert_close(frozen[same], trained[same], atol=0.05, rtol=0.05)


def test_loading_needs_only_torch(run):
    code = (
        "import sys, dfs_rl\n"
        f"model = dfs_rl.load({str(run)!r})\n"
        "banned = {'stable_baselines3', 'dfs_rl.agents', 'dfs_rl.envs.task', 'ray', 'matplotlib', "
        "'datasets'}\n"
        "sys.exit(str(banned & set(sys.modules)) if banned & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def conditioned_gate():
    """Return a gate that skips every layer at preference 0 and chooses 8 bit at 1."""
    conditioning = BudgetConditioning(computations=(2.0, 4.0, 8.0))
    sizes = calibrated(BITS).feature_sizes
    gate = MLPGate(sizes, BitOptions(BITS), hidden=1, budget_conditioning=conditioning)
    with torch.no_grad():
        for first, _, last in gate.networks:
            first.weight.zero_()
            first.weight[0, -1] = 10.0
            first.bias.fill_(-5.0)
            last.weight.copy_(torch.tensor([[-1.0], [0.0], [0.0], [1.0]]))
            last.bias.zero_()
    return gate


def test_budget_of_a_conditioned_gate(run):
    save_gate(conditioned_gate(), run / "gate")
    assert (dfs_rl.load(run, budget=8.0)(images())[1].bits == 8).all()
    model = dfs_rl.load(run, budget=2.0)
    assert (model(images())[1].bits == 0).all()
    model.set_budget(7.0)
    assert (model(images())[1].bits == 8).all()
    with pytest.raises(ConfigError, match=r"budget is 1 %, but .* cost 2 % to 8 % on average"):
        model.set_budget(1.0)
    with pytest.raises(ConfigError, match=r"budget is 500 %, but .* cost 2 % to 8 % on average"):
        dfs_rl.load(run, budget=500)


def rule_gate(exits=(), **changes):
    """Return rules of uniform 2 bit, then 4, then 8 where unsure, by preference."""
    two, four, eight = (RulePass(options=(option,) * 3) for option in (1, 2, 3))
    rules = [Rule(passes=(two,)), Rule(passes=(two, four), thresholds=(1.5,))]
    rules.append(Rule(passes=(two, four, eight), thresholds=(1.5, 1.5)))
    measured = BudgetConditioning(
        computations=(2.0, 5.0, 20.0), accuracies=(70.0, 79.0, 80.0), full_precision_accuracy=80.5
    )
    settings = {"budget_conditioning": measured, "options": BitOptions(BITS)} | changes
    return RuleGate(rules, answer="mean", exits=exits, **settings)


def test_budget_of_rules(run):
    save_gate(rule_gate(), run / "gate")

    def bits(model):
        _, trace = model(images())
        return trace.bits.unique().tolist(), trace.n_passes.unique().tolist()

    model = dfs_rl.load(run)
    assert bits(model) == ([8], [3])
    assert bits(dfs_rl.load(run, budget=5.0)) == ([4], [2])
    assert bits(dfs_rl.load(run, max_accuracy_drop=10.5)) == ([2], [1])
    for budget, expected in ((2.0, ([2], [1])), (4.9, ([2], [1])), (5.0, ([4], [2]))):
        model.set_budget(budget)
        assert bits(model) == expected
    for drop, expected in ((0.5, ([8], [3])), (1.5, ([4], [2])), (10.5, ([2], [1]))):
        model.set_max_accuracy_drop(drop)
        assert bits(model) == expected
    with pytest.raises(ConfigError, match=r"budget is 1 %, but .* cost 2 % to 20 % on average"):
        dfs_rl.load(run, budget=1.0)
    with pytest.raises(ConfigError, match=r"drop is 0\.4, but the smallest .* 0\.5"):
        dfs_rl.load(run, max_accuracy_drop=0.4)
    with pytest.raises(ConfigError, match=r"at the preferences \[0\.0, 1\.0\]; .* 3 rules"):
        rule_gate(budget_conditioning=BudgetConditioning(computations=(2.0, 5.0)))
    with pytest.raises(ConfigError, match="preference is nan"):
        rule_gate(preference=math.nan)


@pytest.mark.parametrize("exits", [(), (1,)])
def test_gates_of_several_passes_need_their_exits(run, exits):
    """A gate of two options takes its third action at the end of a pass, and never an exit."""
    backbone = network(bits=(0, 8))
    backbone.set_exits((2,))
    info = BackboneInfo(dataset="noise", fingerprint="0" * 16, class_names=tuple("abcdefghij"))
    save_backbone(backbone, info, run / "backbone")
    options = BitOptions((0, 8))
    gate = MLPGate(backbone.feature_sizes, options, hidden=4, passes=SEVERAL)
    if exits:
        one = RulePass(options=(1, 2, 2))
        gate = RuleGate([Rule(passes=(one,))], answer="mean", options=options, exits=exits)
    save_gate(gate, run / "gate")
    named = rf"has exits after {re.escape(str(list(exits)))} gated layers, .* after \[2\]"
    with pytest.raises(CheckpointError, match=named):
        dfs_rl.load(run)


def test_preferences_may_differ_within_a_batch():
    backbone = network().to_inference()
    gate = conditioned_gate()
    preferences = torch.tensor([0.0, 1.0] * 12)
    result = rollout(backbone, gate, images(), preferences=preferences)
    assert (result.options[::2] == 0).all()
    assert (result.options[1::2] == len(BITS) - 1).all()


def test_incomplete_or_inconsistent_folders(run, tmp_path):
    with pytest.raises(ConfigError, match="is not budget-conditioned"):
        dfs_rl.load(run, budget=2.0)
    with pytest.raises(CheckpointError, match="no folder 'backbone'"):
        dfs_rl.load(tmp_path / "nothing")
    save_gate(MLPGate((4, 4, 8), BitOptions((0, 2)), hidden=4), run / "gate")
    with pytest.raises(CheckpointError, match=r"chooses from \[0, 2\] bit"):
        dfs_rl.load(run)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gate_weights_must_be_finite(run, value):
    path = run / "gate" / "gate.safetensors"
    tensors = load_tensors(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = value
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        dfs_rl.load(run)
    assert str(path) in str(caught.value)


def test_wrong_number_of_classes():
    with pytest.raises(CheckpointError, match=r"classes has 9 names, .* has 10 classes"):
        GatedModel(network(), TableGate((0, 0, 0)), classes="abcdefghi")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dtype": torch.int32}, r"torch\.int32; .*torch\.float32 or torch\.bfloat16"),
        ({"dtype": torch.float16}, r"torch\.float16"),
        ({"dtype": "float32"}, "'float32'"),
        (
            {"dtype": torch.bfloat16, "inference_form": False},
            r"training form computes in torch\.float32",
        ),
        ({"device": "tpu"}, "'tpu'.*'auto' and 'cpu'"),
        ({"device": torch.device("meta")}, "meta"),
        ({"device": None}, "None"),
        ({"budget": "0.8"}, "'0.8'"),
        ({"budget": float("nan")}, "nan"),
        ({"budget": -1.0}, r"-1\.0"),
    ],
)
def test_bad_settings(run, settings, named):
    save_gate(conditioned_gate(), run / "gate")
    with pytest.raises(ConfigError, match=named):
        dfs_rl.load(run, **settings)


def test_bad_types():
    with pytest.raises(ConfigError, match="run_dir is 5"):
        dfs_rl.load(5)
    with pytest.raises(ConfigError, match=r"torch\.int32; .*torch\.float32 or torch\.bfloat16"):
        network().to_inference(torch.int32)


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (5, 7)])
def test_images_are_resized_like_training_images(tmp_path, shape):
    write_run(tmp_path, image_size=8)
    model = dfs_rl.load(tmp_path)
    given = torch.randint(0, 256, (6, 1, *shape), dtype=torch.uint8)
    pictures = [fit_picture(Image.fromarray(image[0].numpy()), 8) for image in given]
    fitted = torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures])
    table = GatedModel(model.backbone, TableGate((3, 3, 3)), image_size=8)
    torch.testing.assert_close(table(given)[0], table(fitted)[0], atol=0.1, rtol=0.1)
    ours, floats = model(given), model(given / 255)
    assert torch.equal(ours[1].options, floats[1].options)
    torch.testing.assert_close(ours[0], floats[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 16, 16), (2, 1, 0, 16), (0, 1, 16, 16)])
def test_images_that_cannot_be_resized(tmp_path, shape):
    write_run(tmp_path, image_size=8)
    with pytest.raises(DataError, match=r"takes \[batch, 1, height, width\]"):
        dfs_rl.load(tmp_path)(torch.zeros(shape))


def test_autocast_changes_nothing():
    backbone, pictures = network((4, 32)).to_inference(), images(1)
    gate = MLPGate(backbone.feature_sizes, backbone.options)
    for each in gate.networks:
        each[2].bias.data[1] = 9.0  # every layer at 32 bit
    model = GatedModel(backbone, gate.eval())
    expected, trace = model(pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, cast = model(pictures)
    assert torch.equal(logits, expected)
    assert torch.equal(cast.options, trace.options)


def test_compiled_model_is_the_same(run):
    model = dfs_rl.load(run)
    compiled = torch.compile(model, backend="eager")
    for n in (24, 3, 1):
        logits, trace = model(images(n))
        again, trace_again = compiled(images(n))
        assert torch.equal(again, logits)
        assert all(torch.equal(a, b) for a, b in zip(trace_again, trace, strict=True))
    with pytest.raises(DataError, match="from 0 to 255"):
        compiled(images().float())


@pytest.mark.parametrize("n", [1, 24])
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda pixels: pixels.float(), "from 0 to 255"),
        (lambda pixels: pixels / 255 - 0.5, r"from -0\.5 to 0\.5"),
        (lambda pixels: torch.full_like(pixels / 255, torch.nan), "not finite"),
        (lambda pixels: pixels.long(), r"torch\.int64"),
    ],
)
def test_images_outside_0_1_are_refused(run, n, make, found):
    pixels = images(n)
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1] = 0, 255
    with pytest.raises(DataError, match=rf"{found}.*allowed are uint8, or float.* in \[0, 1\]"):
        dfs_rl.load(run)(make(pixels))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [MLPGate, LSTMGate, OneShotGate])
def test_loaded_on_a_gpu(kind, tmp_path):
    write_run(tmp_path, kind=kind, budget=60.0)
    model = dfs_rl.load(tmp_path, device="cuda")
    for n in (1, 24):
        logits, trace = model(images(n).cuda())
        again, trace_again = dfs_rl.load(tmp_path)(images(n))
        assert {t.device.type for t in (logits, *trace)} == {"cuda"}
        same = (trace.options.cpu() == trace_again.options).all(dim=1)
        assert same.float().mean() > 0.9  # a rounding may differ, and a choice with it
        torch.testing.assert_close(logits.cpu()[same], again[same], atol=1e-3, rtol=1e-3)
