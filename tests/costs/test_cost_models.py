"""Cost models: agreement of all figures, storage, environments and comparisons."""

import gymnasium
import pytest
import torch

from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.backbones import PRETRAINED_DIGITS, default_digits, load_backbone, save_backbone
from dfs_rl.backbones.storage import load_info
from dfs_rl.costs import COST_MODELS, BitOptions, CostTable, FixedCost
from dfs_rl.data import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_gate
from tests.helpers.latencies import made_up_profile

OPTIONS = torch.tensor([[0, 0], [1, 1], [0, 2]])


def under(name: str) -> CostTable:
    return CostTable(
        options=BitOptions((0, 8, 32)),
        layer_macs=(10, 30),
        fixed=(FixedCost(name="stem", macs=20, bits=8),),
        cost_model=name,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("computation", [50 / 16, 50 / 16 + 100 / 16, 50 / 16 + 75]),
        ("bitops", [50 / 16, 50 / 16 + 100 / 16, 50 / 16 + 75]),
        ("macs", [50.0, 150.0, 125.0]),
        ("energy", [x / 4.6 for x in (15.0, 15.0 + 30.0, 15.0 + 345.0)]),  # 0.3 pJ at 8 bit
    ],
)
def test_the_cost_of_images_in_percent(name: str, expected: list[float]) -> None:
    assert under(name).computation(OPTIONS).tolist() == pytest.approx(expected)


def test_an_unknown_cost_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="cost is 'speed'; allowed are computation, "):
        under("speed")


def test_a_stored_backbone_keeps_its_cost_model(tmp_path) -> None:
    backbone = default_digits()
    probes = backbone.feature_macs
    backbone.set_cost_model("macs")
    save_backbone(backbone, load_info(PRETRAINED_DIGITS), tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.costs.cost_model == "macs"
    assert loaded.feature_macs == backbone.feature_macs == 16 * probes  # they run at 8 bit


@pytest.mark.parametrize("name", COST_MODELS)
@pytest.mark.parametrize("after", [(), (1,)])
def test_bitops_count_probes_at_their_bits(name: str, after: tuple[int, ...]) -> None:
    backbone = default_digits()
    backbone.set_exits(after)
    backbone.set_cost_model(name, made_up_profile(backbone.costs) if name == "latency" else None)
    torch.manual_seed(0)
    gate = untrained_gate(backbone, kind="ff", features="all", hidden=5)
    torch.nn.init.normal_(gate.networks[1][2].weight[-1], std=3.0)  # some images leave
    pixels = torch.randint(0, 256, (40, *backbone.image_shape)).byte()
    images = ImageSet(pixels, torch.zeros(40, dtype=torch.int64))
    records, costs = evaluate_gate(backbone, gate, images), backbone.costs
    n_layers, heads = costs.n_layers, {exit_.after: exit_.macs for exit_ in costs.exits}
    probes = [heads.get(i, size * 10) for i, size in enumerate(backbone.probe_sizes)]
    by_hand = []
    for options in records.options.tolist():
        bits = [backbone.options[o] for o in options if o != costs.exit_action]
        n = len(bits)
        at_8_bit = sum(part.macs for part in costs.fixed if n == n_layers or part.layer is None)
        at_8_bit += sum(probes[:n]) + (0 if n == n_layers else heads[n])
        gated = sum(macs * b**2 for macs, b in zip(costs.layer_macs, bits, strict=False))
        own = sum(gate.layer_macs[: n + 1])
        by_hand.append(gated + at_8_bit * 8**2 + own * 32**2)
    assert records.bitops(costs).tolist() == pytest.approx(by_hand)
    assert len(set(by_hand)) > 1


def test_an_environment_charges_by_the_cost_model() -> None:
    rewards = {}
    for name in ("computation", "macs"):
        env = gymnasium.make("dfs_rl/FractionalSkipping-v0", cost=name, reward={"cost": 1.0})
        env.reset(seed=0)
        _, rewards[name], *_ = env.step(4)  # 8 bit
    assert rewards["macs"] == pytest.approx(16 * rewards["computation"])
