import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.gating.base import RandomGate, TableGate
from dfs_rl.gating.execution import run_layer, run_stem
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.observation import observe
from dfs_rl.gating.rollout import rollout
from tests.helpers.toy_backbone import (
    BITS,
    CHANNELS,
    IMAGE_SHAPE,
    MACS,
    ToyBackbone,
    run_alone,
    toy_images,
)


def learned(seed=0):
    torch.manual_seed(seed)
    gate = MLPGate(CHANNELS, BitOptions(BITS), hidden=4)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(4.0)  # large enough to choose different options for different images
    return gate


def test_a_table_runs_as_each_image_alone():
    backbone, images, table = ToyBackbone(), toy_images(5), [3, 0, 2, 1]
    result = rollout(backbone, TableGate(table), images)
    expected = torch.stack([run_alone(backbone, image, table) for image in images])
    assert torch.equal(result.logits, backbone.head(expected))
    assert result.options.tolist() == [table] * 5
    assert result.first_pass is None


def test_a_learned_gate_decides_the_same_in_any_batch():
    backbone, gate, images = ToyBackbone(), learned(), toy_images(16)
    together = rollout(backbone, gate, images)
    assert len(together.options.unique(dim=0)) > 1
    for i in range(16):
        state = run_stem(backbone, images[i : i + 1])
        for layer in range(4):
            seen = observe(backbone, state, budget=None)
            state = run_layer(backbone, state, gate.decide(seen.features, layer, seen.context))
        assert torch.equal(state.options[0], together.options[i])


def test_a_budget_is_kept_with_the_gate_counted():
    backbone, images = ToyBackbone(), toy_images(64)
    gate = RandomGate(torch.full((4, 4), 0.25), seed=1)
    budget = 3.0
    free = backbone.costs.computation(rollout(backbone, gate, images).options)
    bound = backbone.costs.computation(rollout(backbone, gate, images, budget=budget).options)
    assert free.max() > budget
    assert bound.max() <= budget
    assert bound.max() > 0.8 * budget

    tiny = learned()
    model = GatedModel(backbone, tiny, budget=30.0)
    assert float(model(images)[1].computation.max()) <= 30.0
    with pytest.raises(ConfigError, match="budget 2 %"):
        GatedModel(backbone, tiny, budget=2.0)(images)


def test_within_a_budget_a_learned_gate_takes_the_best_allowed_option_and_others_the_dearest():
    backbone, images = ToyBackbone(), toy_images(3)
    gate = MLPGate(CHANNELS, BitOptions(BITS), hidden=1)
    with torch.no_grad():
        for network in gate.networks:
            network[2].weight.zero_()
            network[2].bias.copy_(torch.tensor([1.0, 2.0, 0.0, 3.0]))  # 8 bit, else 2, else none
    # Beside stem, head and gate there is room for 8 bit in the first layers, but not in the last, and for 4 bit there.
    wanted = float(backbone.costs.computation(torch.tensor([[3, 3, 3, 2]]), gate_macs=gate.macs))
    assert rollout(backbone, gate, images, budget=wanted).options.tolist() == [[3, 3, 3, 1]] * 3
    table = TableGate([3, 3, 3, 3])
    wanted = float(backbone.costs.computation(torch.tensor([[3, 3, 3, 2]])))
    assert rollout(backbone, table, images, budget=wanted).options.tolist() == [[3, 3, 3, 2]] * 3


def test_the_model_reports_bits_and_the_whole_computation():
    backbone = ToyBackbone()
    gate = learned()
    logits, trace = GatedModel(backbone, gate)(toy_images(7))
    assert logits.shape == (7, 3)
    assert trace.bits.dtype == torch.int64
    for i in range(7):
        bits = trace.bits[i].tolist()
        assert bits == [BITS[o] for o in trace.options[i].tolist()]
        macs = (
            sum(m * (b / 32) ** 2 for m, b in zip(MACS, bits, strict=True))
            + 160 * (8 / 32) ** 2
            + 16
            + gate.macs
        )
        assert float(trace.computation[i]) == pytest.approx(100 * macs / sum(MACS))


def test_float_images_in_0_1_equal_uint8_ones():
    model = GatedModel(ToyBackbone(), learned()).eval()
    images = toy_images(4)
    assert torch.equal(model(images)[0], model(images.float() / 255)[0])


@pytest.mark.parametrize(
    ("gate", "complaint"),
    [
        (MLPGate(CHANNELS, BitOptions((0, 2, 4))), r"chooses from \[0, 2, 4\] bit"),
        (MLPGate((2, 2, 4), BitOptions(BITS)), r"reads \[2, 2, 4\] features"),
        (TableGate([0, 0, 0, 0], options=BitOptions((0, 2, 4))), r"chooses from \[0, 2, 4\] bit"),
        (TableGate([0, 0, 0]), "needs 4 options"),
        (TableGate([0, 0, 0, 4]), "from 0 to 3"),
    ],
)
def test_a_gate_of_another_network_is_refused(gate, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        GatedModel(ToyBackbone(), gate)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (torch.zeros(0, *IMAGE_SHAPE), r"\[0, 2, 4, 4\].*\[batch, 2, 4, 4\] with at least one"),
        (torch.zeros(*IMAGE_SHAPE), r"\[2, 4, 4\].*\[batch, 2, 4, 4\]"),
        (torch.zeros(2, *IMAGE_SHAPE)[..., :-1], r"\[2, 2, 4, 3\].*\[batch, 2, 4, 4\]"),
        (torch.zeros(2, *IMAGE_SHAPE, dtype=torch.int64), r"int64.*uint8, or float in \[0, 1\]"),
        (torch.zeros(2, *IMAGE_SHAPE, device="meta"), "on meta.*on cpu"),
        (torch.zeros(2, *IMAGE_SHAPE).numpy(), r"ndarray.*torch\.Tensor"),
        ([[0.0]], r"list.*torch\.Tensor"),
        (torch.full((2, *IMAGE_SHAPE), 255.0), r"255 to 255; .*divide by 255 or pass uint8"),
        (torch.full((2, *IMAGE_SHAPE), -0.5), r"-0\.5 to -0\.5; .*leave out mean and std"),
        (torch.full((2, *IMAGE_SHAPE), torch.nan), "not finite"),
        (torch.full((2, *IMAGE_SHAPE), -torch.inf), "not finite"),
    ],
)
def test_a_deployed_model_refuses_images_it_was_not_made_for(images, named):
    model = GatedModel(ToyBackbone(), TableGate((0,) * ToyBackbone().costs.n_layers))
    with pytest.raises(DataError, match=named):
        model(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_of_every_precision_may_miss_their_range_by_rounding(dtype):
    model = GatedModel(ToyBackbone(), TableGate((0,) * ToyBackbone().costs.n_layers))
    edges = torch.tensor([-0.0009, 1.0009]).to(dtype).reshape(2, 1, 1, 1).expand(2, *IMAGE_SHAPE)
    assert model(edges)[0].shape == (2, 3)
