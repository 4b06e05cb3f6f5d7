import math
import re
import subprocess
import sys

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
from dfs_rl.gating.base import RandomGate, TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import save_gate
from dfs_rl.training.calibration import measure_features
from dfs_rl.utils.checkpoint import load_tensors, save_tensors
from dfs_rl.utils.seeding import torch_generator

BITS = (0, 2, 4, 8)


def network(bits=BITS):
    torch.manual_seed(0)
    config = ResNetConfig(depth=8, width=4, in_channels=1, image_size=(8, 8), bits=bits)
    backbone = ResNet(config, ChannelStatistics(mean=(0.5,), std=(0.25,))).eval()
    seen = images(64, seed=1)
    measure_features(backbone, [ImageSet(seen, torch.arange(64) % 10)], torch_generator("tests"))
    return backbone


def images(n=24, seed=0):
    return torch.randint(
        0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


@pytest.fixture
def run(tmp_path):
    backbone = network()
    info = BackboneInfo(dataset="noise", fingerprint="0" * 16, class_names=tuple("abcdefghij"))
    save_backbone(backbone, info, tmp_path / "backbone")
    gate = MLPGate(backbone.feature_sizes, BitOptions(BITS), hidden=4)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(5.0)
    save_gate(gate, tmp_path / "gate")
    return tmp_path


def test_a_run_folder_becomes_a_model(run):
    model = dfs_rl.load(run)
    assert not model.training
    logits, trace = model(images())
    assert logits.shape == (24, 10)
    assert trace.bits.shape == (24, 3)
    assert len(trace.bits.unique(dim=0)) > 1
    again, trace_again = dfs_rl.load(str(run)).to("cpu").eval()(images())
    assert torch.equal(logits, again)
    assert torch.equal(trace.computation, trace_again.computation)


def test_an_image_is_treated_the_same_in_any_batch(run):
    model = dfs_rl.load(run)
    logits, trace = model(images())
    for i in (0, 7, 23):
        alone, trace_alone = model(images()[i : i + 1])
        assert torch.equal(alone[0], logits[i])
        assert torch.equal(trace_alone.bits[0], trace.bits[i])


def test_the_frozen_form_agrees_with_the_training_form(run):
    frozen, frozen_trace = dfs_rl.load(run)(images())
    trained, trained_trace = dfs_rl.load(run, inference_form=False)(images())
    same = (frozen_trace.bits == trained_trace.bits).all(dim=1)
    assert same.float().mean() > 0.9  # a rounding may fall the other way, and a choice with it
    torch.testing.assert_close(frozen[same], trained[same], atol=0.05, rtol=0.05)


def test_loading_needs_torch_alone(run):
    code = (
        "import sys, dfs_rl\n"
        f"model = dfs_rl.load({str(run)!r})\n"
        "banned = {'stable_baselines3', 'dfs_rl.agents', 'dfs_rl.envs.task', 'ray', 'matplotlib', "
        "'datasets'}\n"
        "sys.exit(str(banned & set(sys.modules)) if banned & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_budget_that_was_trained_for_is_kept(run):
    backbone = network()
    cheapest = 100 * backbone.costs.fixed_cost()
    gate = MLPGate(backbone.feature_sizes, BitOptions(BITS), hidden=1, budget=cheapest + 8.0)
    with torch.no_grad():
        for network_ in gate.networks:
            network_[2].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 100.0]))
    save_gate(gate, run / "gate")
    _, trace = dfs_rl.load(run)(images())
    assert float(trace.computation.max()) <= cheapest + 8.0
    assert (trace.bits == 8).any()


def conditioned_gate(backbone):
    """At the bottom of its dial it skips everything, at the top it takes 8 bit, whatever it sees."""
    budget_conditioning = BudgetConditioning(computations=(2.0, 4.0, 8.0))
    gate = MLPGate(
        backbone.feature_sizes, BitOptions(BITS), hidden=1, budget_conditioning=budget_conditioning
    )
    with torch.no_grad():
        for first, _, last in gate.networks:
            first.weight.zero_()
            first.weight[0, -1] = 10.0
            first.bias.fill_(-5.0)
            last.weight.copy_(torch.tensor([[-1.0], [0.0], [0.0], [1.0]]))
            last.bias.zero_()
    return gate


def test_a_budget_turns_a_gate_for_all_budgets(run):
    save_gate(conditioned_gate(network()), run / "gate")
    assert (dfs_rl.load(run, budget=8.0)(images())[1].bits == 8).all()
    model = dfs_rl.load(run, budget=2.0)
    assert (model(images())[1].bits == 0).all()
    model.set_budget(7.0)
    assert (model(images())[1].bits == 8).all()
    with pytest.raises(ConfigError, match=r"budget 1 % is less than .* cost 2 % to 8 % on average"):
        model.set_budget(1.0)


def test_a_gate_for_one_budget_is_not_turned(run):
    with pytest.raises(ConfigError, match="is for one budget alone and cannot be turned"):
        dfs_rl.load(run, budget=2.0)


def test_positions_may_differ_between_the_images_of_a_batch():
    backbone = network().to_inference()
    gate = conditioned_gate(backbone)
    preferences = torch.tensor([0.0, 1.0] * 12)
    walked = rollout(backbone, gate, images(), preferences=preferences)
    assert (walked.options[::2] == 0).all()
    assert (walked.options[1::2] == len(BITS) - 1).all()


def test_incomplete_or_foreign_folders_are_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no folder 'backbone'"):
        dfs_rl.load(tmp_path / "nothing")
    save_gate(MLPGate((4, 4, 8), BitOptions((0, 2)), hidden=4), run / "gate")
    with pytest.raises(CheckpointError, match=r"chooses from \[0, 2\] bit"):
        dfs_rl.load(run)


def test_a_gated_walk_equals_the_whole_network_at_those_bits():
    backbone = network((0, 2, 4, 8, 32))
    frozen = backbone.to_inference()
    table = [4, 1, 3]
    logits, _ = GatedModel(frozen, TableGate(table))(images())
    with torch.no_grad():
        expected = backbone(images(), [backbone.options[o] for o in table])
    torch.testing.assert_close(logits, expected, atol=1e-2, rtol=1e-2)


def test_frozen_walks_do_not_depend_on_their_batch():
    frozen = network().to_inference()
    gate = RandomGate(torch.full((3, 4), 0.25), seed=0)
    together = rollout(frozen, gate, images())
    for i in range(0, 24, 5):
        alone = rollout(frozen, TableGate(together.options[i].tolist()), images()[i : i + 1])
        assert torch.equal(alone.logits[0], together.logits[i])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gate_whose_weights_are_not_finite_is_refused(run, value):
    path = run / "gate" / "gate.safetensors"
    tensors = load_tensors(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = value
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        dfs_rl.load(run)
    assert str(path) in str(caught.value)


def test_a_model_names_the_classes_of_its_data_set(run):
    assert dfs_rl.load(run).classes == tuple("abcdefghij")
    with pytest.raises(CheckpointError, match=r"9 classes have names, .* tells 10 apart"):
        GatedModel(network(), TableGate((0, 0, 0)), classes="abcdefghi")


def test_floats_and_bytes_of_the_same_images_have_the_same_answer(run):
    model = dfs_rl.load(run)
    expected, trace = model(images())
    for dtype in (torch.float32, torch.float64):
        logits, same = model(images().to(dtype) / 255)
        assert torch.equal(same.options, trace.options)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


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
def test_what_cannot_be_loaded_that_way_is_refused(run, settings, named):
    save_gate(conditioned_gate(network()), run / "gate")
    with pytest.raises(ConfigError, match=named):
        dfs_rl.load(run, **settings)


def test_a_folder_is_named_by_its_path():
    with pytest.raises(ConfigError, match="run_dir is 5"):
        dfs_rl.load(5)


def test_the_frozen_form_refuses_a_type_that_it_cannot_compute_in():
    with pytest.raises(ConfigError, match=r"torch\.int32; .*torch\.float32 or torch\.bfloat16"):
        network().to_inference(torch.int32)


def resizing(run):
    """The same run, of a backbone whose images were made to fit."""
    info = BackboneInfo(
        dataset="noise", fingerprint="0" * 16, class_names=tuple("abcdefghij"), image_size=8
    )
    save_backbone(network(), info, run / "backbone")
    return dfs_rl.load(run)


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (5, 7)])
def test_images_are_resized_as_those_that_the_backbone_was_trained_on(run, shape):
    model = resizing(run)
    given = torch.randint(0, 256, (6, 1, *shape), dtype=torch.uint8)
    pictures = [fit_picture(Image.fromarray(image[0].numpy()), 8) for image in given]
    fitted = torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures])
    table = GatedModel(model.backbone, TableGate((3, 3, 3)), image_size=8)
    torch.testing.assert_close(table(given)[0], table(fitted)[0], atol=0.1, rtol=0.1)
    ours, floats = model(given), model(given / 255)
    assert torch.equal(ours[1].options, floats[1].options)
    torch.testing.assert_close(ours[0], floats[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 16, 16), (2, 1, 0, 16), (0, 1, 16, 16)])
def test_images_that_no_resizing_makes_fit_are_refused(run, shape):
    with pytest.raises(DataError, match=r"takes \[batch, 1, height, width\]"):
        resizing(run)(torch.zeros(shape))


@pytest.mark.parametrize("settings", [{}, {"fullgraph": False}])
def test_a_compiled_model_answers_as_before(run, settings):
    model = dfs_rl.load(run)
    compiled = torch.compile(model, backend="eager", **settings)
    for n in (24, 3, 1):
        logits, trace = model(images(n))
        again, trace_again = compiled(images(n))
        assert torch.equal(again, logits)
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(trace_again, trace, strict=True)
        )
    with pytest.raises(DataError, match="from 0 to 255"):
        compiled(images().float())
