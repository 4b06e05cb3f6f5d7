import math
import re
import subprocess
import sys

import pytest
import torch

import dfs_rl
from dfs_rl.backbones import BackboneInfo, ResNet, ResNetConfig, save_backbone
from dfs_rl.backbones.calibration import measure_features
from dfs_rl.cost import BitOptions
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.dial import Dial
from dfs_rl.gating.gates import RandomGate, TableGate
from dfs_rl.gating.learned import LayerwiseGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import save_gate
from dfs_rl.runs import load_tensors, save_tensors
from dfs_rl.seeding import torch_generator

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
    gate = LayerwiseGate(backbone.feature_sizes, BitOptions(BITS), hidden=4)
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
    trained, trained_trace = dfs_rl.load(run, prepare=False)(images())
    same = (frozen_trace.bits == trained_trace.bits).all(dim=1)
    assert same.float().mean() > 0.9  # a rounding may fall the other way, and a choice with it
    torch.testing.assert_close(frozen[same], trained[same], atol=0.05, rtol=0.05)


def test_loading_needs_torch_alone(run):
    code = (
        "import sys, dfs_rl\n"
        f"model = dfs_rl.load({str(run)!r})\n"
        "banned = {'stable_baselines3', 'gymnasium', 'envs', 'agents', 'ray', 'matplotlib', 'datasets'}\n"
        "sys.exit(str(banned & set(sys.modules)) if banned & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_budget_that_was_trained_for_is_kept(run):
    backbone = network()
    cheapest = 100 * backbone.costs.fixed_cost()
    gate = LayerwiseGate(backbone.feature_sizes, BitOptions(BITS), hidden=1, budget=cheapest + 8.0)
    with torch.no_grad():
        for network_ in gate.networks:
            network_[2].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 100.0]))
    save_gate(gate, run / "gate")
    _, trace = dfs_rl.load(run)(images())
    assert float(trace.computation.max()) <= cheapest + 8.0
    assert (trace.bits == 8).any()


def turnable_gate(backbone):
    """At the bottom of its dial it skips everything, at the top it takes 8 bit, whatever it sees."""
    dial = Dial(computations=(2.0, 4.0, 8.0))
    gate = LayerwiseGate(backbone.feature_sizes, BitOptions(BITS), hidden=1, dial=dial)
    with torch.no_grad():
        for first, _, last in gate.networks:
            first.weight.zero_()
            first.weight[0, -1] = 10.0
            first.bias.fill_(-5.0)
            last.weight.copy_(torch.tensor([[-1.0], [0.0], [0.0], [1.0]]))
            last.bias.zero_()
    return gate


def test_a_budget_turns_a_gate_for_all_budgets(run):
    save_gate(turnable_gate(network()), run / "gate")
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
    backbone = network().prepare()
    gate = turnable_gate(backbone)
    positions = torch.tensor([0.0, 1.0] * 12)
    walked = rollout(backbone, gate, images(), positions=positions)
    assert (walked.options[::2] == 0).all()
    assert (walked.options[1::2] == len(BITS) - 1).all()


def test_incomplete_or_foreign_folders_are_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no folder 'backbone'"):
        dfs_rl.load(tmp_path / "nothing")
    save_gate(LayerwiseGate((4, 4, 8), BitOptions((0, 2)), hidden=4), run / "gate")
    with pytest.raises(CheckpointError, match=r"chooses from \[0, 2\] bit"):
        dfs_rl.load(run)


def test_a_gated_walk_equals_the_whole_network_at_those_bits():
    backbone = network((0, 2, 4, 8, 32))
    frozen = backbone.prepare()
    table = [4, 1, 3]
    logits, _ = GatedModel(frozen, TableGate(table))(images())
    with torch.no_grad():
        expected = backbone(images(), [backbone.options[o] for o in table])
    torch.testing.assert_close(logits, expected, atol=1e-2, rtol=1e-2)


def test_frozen_walks_do_not_depend_on_their_batch():
    frozen = network().prepare()
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
