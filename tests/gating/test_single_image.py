"""Single images: the same decisions and logits as in ``rollout``, with the present weights."""

import copy
import pickle
from functools import cache

import pytest
import torch
from torch import nn

from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.backbones.interfaces import confidence_sizes
from dfs_rl.costs import BitOptions
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.errors import DataError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate, exit_info
from dfs_rl.gating.passes import PassSettings, confidence
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.rules import Rule, RuleGate, RulePass, cascade
from dfs_rl.gating.single_image import SingleImageForm
from dfs_rl.training.calibration import calibrate_scales, measure_features
from dfs_rl.utils.seeding import torch_generator
from tests.helpers.rules import confident_gains

BITS = (0, 2, 4, 8, 32)
N = 80
KINDS = (MLPGate, LSTMGate, OneShotGate)


def images(n=N, seed=0, size=(12, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, *size), generator=generator, dtype=torch.uint8)


def network(exits=(), stem_bits=8, size=(12, 8), bits=BITS):
    return copy.deepcopy(calibrated(exits, stem_bits, size, bits))


@cache
def calibrated(exits, stem_bits, size, bits):
    torch.manual_seed(0)
    config = ResNetConfig(
        depth=8, width=4, in_channels=1, image_size=size, bits=bits, stem_bits=stem_bits
    )
    backbone = ResNet(config, ChannelStatistics(mean=(0.5,), std=(0.25,))).eval()
    calibrate_scales(backbone, images(16, 1, size), parts=[backbone])
    backbone.set_exits(exits)
    image_set = ImageSet(images(64, 2, size), torch.arange(64) % 10)
    measure_features(backbone, [image_set], torch_generator("tests"))
    return backbone


def learned(kind, backbone, *, sizes=None, **settings):
    """Return a gate that chooses different options for different images."""
    torch.manual_seed(1)
    gate = kind(sizes or backbone.feature_sizes, backbone.options, **{"hidden": 6, **settings})
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(4.0)
    return gate.eval()


def check(backbone, gate, budget=None, n=N):
    """Check each image of a batch against the batch, and return its trace."""
    model = GatedModel(backbone, gate, budget=budget)
    assert SingleImageForm(backbone, gate, budget).usable
    pictures = images(n, size=backbone.image_shape[1:])
    result = rollout(backbone, gate, pictures, budget=budget)
    _, whole = model(pictures)
    for i in range(n):
        logits, trace = model(pictures[i : i + 1])
        torch.testing.assert_close(logits[0], result.logits[i], rtol=1e-5, atol=1e-5)
        assert trace.computation.item() == pytest.approx(whole.computation[i].item(), rel=1e-12)
        for name in ("options", "bits", "n_layers_run", "n_passes", "pass_options"):
            assert torch.equal(getattr(trace, name)[0], getattr(whole, name)[i]), name
    return whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["plain", "budget", "exits", "conditioned", "confidence", "some"])
def test_images_alone_equal_the_batch(kind, case):
    exits = (1, 2) if case == "exits" else ()
    training = network(exits)
    backbone = training.to_inference()
    settings = {
        "exits": {"exits": exit_info(training)},
        "conditioned": {
            "budget_conditioning": BudgetConditioning(computations=(2.0, 40.0)),
            "preference": 0.3,
        },
        "confidence": {"sizes": confidence_sizes(backbone.feature_sizes)},
        "some": {"choices": (0, 2, 4)},
    }.get(case, {})
    gate = learned(kind, backbone, **settings)
    budget = {"budget": 30.0, "exits": 60.0}.get(case)
    trace = check(backbone, gate, budget)
    assert len(trace.options.unique(dim=0)) > 2
    if budget is not None:
        used = backbone.costs.computation(trace.options, gate_macs=gate.macs)
        assert (used <= budget + 1e-9).all()


@torch.no_grad()
def tell_answers_apart(backbone, gate):
    """Make a gate of several passes answer about every third time."""
    seen, (first, _, last) = [], gate.networks[-1]
    hook = first.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    rollout(backbone, gate, images(60))
    hook.remove()
    first.weight.mul_(30.0)
    first.bias.copy_(-first.weight @ torch.cat(seen).mean(dim=0))
    last.bias.zero_()


@pytest.mark.parametrize(
    ("case", "answer"),
    [
        *(("plain", "mean"), ("budget", "last"), ("exits", "surest")),
        *(("conditioned", "mean"), ("two options", "mean")),
    ],
)
def test_several_passes(case, answer):
    exits = (1, 2) if case == "exits" else ()
    training = network(exits, bits=(0, 8) if case == "two options" else BITS)
    backbone = training.to_inference()
    settings = {"exits": exit_info(training), "feature_macs": training.feature_macs}
    if case == "conditioned":
        measured = BudgetConditioning(computations=(2.0, 40.0))
        settings |= {"budget_conditioning": measured, "preference": 0.3}
    passes = PassSettings(limit=3, mirrored=True, answer=answer)
    gate = learned(MLPGate, backbone, passes=passes, **settings)
    tell_answers_apart(backbone, gate)
    budget = {"budget": 40.0, "exits": 70.0, "two options": 9.0}.get(case)
    trace = check(backbone, gate, budget, n=40)
    assert len(trace.n_passes.unique()) > 1
    if budget is not None:
        assert (trace.computation <= budget + 1e-9).all()


@pytest.mark.parametrize("by_gain", [False, True])
def test_rules_of_several_passes(by_gain):
    backbone = network(exits=(2,)).to_inference()
    passes = [RulePass(options=(1, 3, 1)), RulePass(options=(2, 1, 1), mirrored=True)]
    passes.append(RulePass(options=(4, 4, 5)))
    sure = confidence(rollout(backbone, TableGate((1, 3, 1)), images()).logits)
    threshold = sure.median().item()
    for answer in ("mean", "last", "surest"):
        thresholds = threshold, sure.quantile(0.3).item()
        gains = confident_gains(backbone.n_classes, 0.001) if by_gain else ()
        rule = Rule(passes=tuple(passes), thresholds=thresholds, gains=gains)
        gate = RuleGate([rule], answer=answer, options=backbone.options, exits=(2,))
        trace = check(backbone, gate, n=40)
        assert len(trace.n_passes.unique()) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["training", "unquantized", "uneven", "bfloat16"])
def test_other_networks(kind, form):
    stem_bits = 32 if form == "unquantized" else 8
    training = network(stem_bits=stem_bits, size=(10, 6) if form == "uneven" else (12, 8))
    backbone = {
        "training": lambda: training,
        "bfloat16": lambda: training.to_inference(torch.bfloat16),
    }.get(form, training.to_inference)()
    check(backbone, learned(kind, backbone), n=20)


@torch.no_grad()
def test_probe_that_is_not_a_number():
    backbone = network().to_inference()
    gate = learned(MLPGate, backbone)
    backbone.network.probes[1].at().bias[0] = torch.nan
    check(backbone, gate, n=5)


def test_tables_and_cascades():
    backbone = network(exits=(2,)).to_inference()
    check(backbone, TableGate((1, 0, 4)), n=8)
    check(backbone, TableGate((1, 3, 5)), n=8)
    first = TableGate((0,) * 3)
    threshold = float(confidence(rollout(backbone, first, images()).logits).median())
    gate = cascade((0,) * 3, (3,) * 3, threshold=threshold, options=BitOptions(BITS))
    escalated = GatedModel(backbone, gate)(images())[1].n_passes > 1
    assert 0 < escalated.float().mean() < 1
    check(backbone, gate)


def change_in_place(model):
    for parameter in model.gate.parameters():
        parameter.data.mul_(-1.0)


def load_gate(model):
    torch.manual_seed(5)
    other = learned(MLPGate, model.backbone)
    state = {name: -value for name, value in other.state_dict().items()}
    model.gate.load_state_dict(state, assign=True)


def replace_layers(model):
    model.gate.networks = learned(MLPGate, model.backbone, choices=None).networks
    for one in model.gate.networks:
        one[2] = nn.Linear(one[2].in_features, one[2].out_features)


def replace_gate(model):
    model.gate = learned(OneShotGate, model.backbone)


def move(model):
    model.gate.double().float()
    change_in_place(model)


def other_features(model):
    model.backbone.network.feature_mean = model.backbone.feature_mean + 5.0


def change_probes(model):
    for name, values in model.backbone.named_buffers():
        if "probes" in name and name.endswith(("weight", "bias")):
            values.numpy()[:] *= -3.0


def change_statistics(model):
    model.backbone.feature_std.data.mul_(0.1)


def add_hook(model):
    model.gate.networks[0][2].register_forward_hook(lambda *_: torch.tensor([[0, 0, 0, 0, 1.0]]))


@pytest.mark.parametrize(
    "change",
    [
        *(change_in_place, load_gate, replace_layers, replace_gate, move, other_features),
        *(change_probes, change_statistics, add_hook),
    ],
)
@torch.no_grad()
def test_changed_weights_count(change):
    backbone = network().to_inference()
    model = GatedModel(backbone, learned(MLPGate, backbone))
    image = images(1)
    model(image)
    before = torch.cat([model(image[:1])[1].options for image in images(60).split(1)])
    change(model)
    after = torch.cat([model(image)[1].options for image in images(60).split(1)])
    assert not torch.equal(before, after)
    assert torch.equal(after, rollout(backbone, model.gate, images(60)).options)


def test_a_form_comes_back_after_a_conversion():
    backbone = network().to_inference()
    model = GatedModel(backbone, learned(MLPGate, backbone))
    with pytest.raises(DataError, match="was converted to "):
        model.double()(images(1))
    model.float()(images(1))
    assert model._form.usable


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_independent(make_copy):
    backbone = network().to_inference()
    model = GatedModel(backbone, learned(MLPGate, backbone))
    expected = [model(image)[1].options for image in images(20).split(1)]
    copied = make_copy(model)
    change_in_place(copied)
    assert all(
        torch.equal(model(image)[1].options, options)
        for image, options in zip(images(20).split(1), expected, strict=True)
    )
    options = torch.cat([copied(image)[1].options for image in images(20).split(1)])
    assert torch.equal(options, rollout(copied.backbone, copied.gate, images(20)).options)


def test_gates_of_other_kinds_take_the_general_way():
    class Own(MLPGate):
        def _score(self, features, layer, context):
            return -super()._score(features, layer, context)

    backbone = network().to_inference()
    gate = learned(Own, backbone)
    assert not SingleImageForm(backbone, gate, None).usable
    model = GatedModel(backbone, gate)
    options = torch.cat([model(image)[1].options for image in images(20).split(1)])
    assert torch.equal(options, rollout(backbone, gate, images(20)).options)
