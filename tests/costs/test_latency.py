"""The cost model ``latency``: costs by hand, storage, environments and what is refused."""

from dataclasses import replace

import gymnasium
import pytest
import torch

from dfs_rl.backbones import PRETRAINED_DIGITS, default_digits, load_backbone, save_backbone
from dfs_rl.backbones.storage import load_info
from dfs_rl.costs import BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.costs.latency_profile import LatencySettings, check_cost, read_latency_profile
from dfs_rl.costs.machine import load_latency_profile
from dfs_rl.errors import ConfigError, RunFolderError
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import read_json, write_json
from tests.helpers.latencies import made_up_profile

PLAIN = CostTable(
    options=BitOptions((0, 8, 32)),
    layer_macs=(10, 30),
    fixed=(
        FixedCost(name="stem", macs=20, bits=8),
        FixedCost(name="mandatory", macs=5, bits=8, layer=1),
        FixedCost(name="head", macs=4, bits=8, layer=2),
    ),
    exits=(ExitCost(after=1, macs=6, bits=8),),
)
MS = {0: (0.5, 2.0, 3.0), 1: (0.25, 4.0, 7.0)}  # full precision takes 10 ms


def measured(costs: CostTable = PLAIN) -> CostTable:
    times = made_up_profile(costs, layer=lambda layer, bits: MS[layer][costs.options.index(bits)])
    return costs.with_cost_model("latency", times)


def saved(folder, costs: CostTable):
    path = folder / "profile.json"
    write_json(path, config_to_dict(made_up_profile(costs, batch_sizes=(1, 64))))
    return path


def here(path, batch_size: int | None = None) -> LatencySettings:
    return LatencySettings(profile=path, batch_size=batch_size, other_machine=True)


# --- costs by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "milliseconds"),
    [
        ((0, 0), 0.5 + 0.5 + 0.25 + 0.25),  # stem, both layers, head
        ((1, 2), 0.5 + 2.0 + 7.0 + 0.25),
        ((1, 3), 0.5 + 2.0 + 0.125),  # the exit spares the head
    ],
)
def test_the_time_of_an_image(options: tuple[int, int], milliseconds: float) -> None:
    costs = measured()
    assert costs.total_cost == 10.0
    assert costs.computation(torch.tensor([options])).item() == pytest.approx(10 * milliseconds)


def test_a_gate_takes_time_in_proportion_to_its_macs() -> None:
    costs, options = measured(), torch.tensor([[0, 0]])  # 1,000 MACs take 0.125 ms
    extra = costs.computation(options, gate_macs=3000.0) - costs.computation(options)
    assert extra.item() == pytest.approx(10 * 0.375)
    assert costs.fixed_cost(gate_macs=3000.0) == pytest.approx((0.75 + 0.375) / 10)


def test_decisions_take_their_own_times() -> None:
    times = made_up_profile(PLAIN)
    parts = tuple(
        replace(p, median=0.01, low=0.01, high=0.01) if (p.part, p.layer) == ("gate", 0) else p
        for p in times.parts
    )
    costs = PLAIN.with_cost_model("latency", replace(times, parts=parts))
    macs = costs.decided_macs(500.0, torch.tensor([0, 1, 2]))  # half of the measured gate
    assert costs.gate_cost(macs).tolist() == pytest.approx([0.005, 0.03625, 0.03625])


def test_an_exit_that_is_passed_takes_its_time() -> None:
    costs = measured()
    macs = costs.exit_macs(costs.exits[0])
    assert costs.gate_cost(macs) == pytest.approx(0.125)


def test_the_smallest_batch_size_counts_unless_one_is_chosen(tmp_path) -> None:
    path = saved(tmp_path, PLAIN)
    stems = [load_latency_profile(here(path, size)).milliseconds("stem") for size in (None, 1, 64)]
    assert stems == [0.5, 0.5, 0.25]


def test_a_budget_in_milliseconds_becomes_percent() -> None:
    costs = measured()  # full precision takes 10 ms
    assert costs.percent_of_budget(0.35, "ms") == pytest.approx(3.5)
    assert costs.percent_of_budget(0.35, "percent") == 0.35
    assert (costs.cost_text(3.5), PLAIN.cost_text(3.5)) == ("0.35 ms (3.5 %)", "3.5 %")
    with pytest.raises(ConfigError, match=r"budget is 0\.35 ms, but the cost is computation"):
        PLAIN.percent_of_budget(0.35, "ms")


# --- storage and environments --------------------------------------------------------------------


def test_a_stored_backbone_keeps_its_profile(tmp_path) -> None:
    backbone = default_digits()
    backbone.set_cost_model("latency", made_up_profile(backbone.costs))
    save_backbone(backbone, load_info(PRETRAINED_DIGITS), tmp_path)
    assert load_backbone(tmp_path).costs == backbone.costs


def test_an_environment_charges_milliseconds(tmp_path) -> None:
    costs = default_digits().costs
    path = saved(tmp_path, costs)
    env = gymnasium.make(
        "dfs_rl/FractionalSkipping-v0",
        cost="latency",
        latency={"profile": str(path), "other_machine": True},
        reward={"cost": 2.0},
    )
    env.reset(seed=0)
    _, reward, *_ = env.step(4)  # 8 bit
    total = sum(0.1 * (layer + 1) * 33 for layer in range(costs.n_layers))
    assert reward == pytest.approx(-2.0 * 0.9 / total)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "own", "said"),
    [
        ((10, 30), (10, 31), r"its layer_macs is \(10, 30\), and here it is \(10, 31\);"),
        ((9,) * 5, (9, 9, 9, 8, 7), r"its layer_macs\[3\] is 9, and here it is 8;"),
        ((9,) * 5, (9,) * 4, "it has 5 layer_macs, and here are 4;"),
    ],
)
def test_a_profile_of_another_network_is_refused(
    theirs: tuple[int, ...], own: tuple[int, ...], said: str
) -> None:
    measured, other = (replace(PLAIN, fixed=(), layer_macs=macs) for macs in (theirs, own))
    with pytest.raises(ConfigError, match=said):
        other.with_cost_model("latency", made_up_profile(measured))


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"options": BitOptions((0, 4, 32))}, "lacks layer 0 at 4 bit"),
        ({"exits": (ExitCost(after=0, macs=6, bits=8),)}, "lacks exit before layer 0"),
    ],
)
def test_what_a_profile_lacks_is_named(changes: dict[str, object], lacks: str) -> None:
    with pytest.raises(ConfigError, match=lacks):
        replace(PLAIN, **changes).with_cost_model("latency", made_up_profile(PLAIN))


def test_latency_and_a_profile_belong_together(tmp_path) -> None:
    given = LatencySettings(profile=tmp_path / "profile.json")
    for cost, settings in (("latency", LatencySettings()), ("macs", given)):
        with pytest.raises(ConfigError, match=f"cost is {cost}"):
            check_cost(cost, settings)
    with pytest.raises(ConfigError, match="cost is latency without a latency profile"):
        PLAIN.with_cost_model("latency")
    with pytest.raises(ConfigError, match="cost is macs with a latency profile"):
        PLAIN.with_cost_model("macs", made_up_profile(PLAIN))


def test_a_profile_without_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="parts is empty"):
        replace(made_up_profile(PLAIN), parts=())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"median": 1e308, "high": 1e308}, "at most 1000000000"),
        ({"median": -1.0}, "at least 0"),
        ({"low": 0.6}, "median of stem is 0.5 ms, which is not between"),
    ],
)
def test_impossible_times_are_refused(tmp_path, changes: dict[str, float], message: str) -> None:
    path = saved(tmp_path, PLAIN)
    record = read_json(path)
    record["parts"][0].update(changes)
    write_json(path, record)
    with pytest.raises(ConfigError, match=message):
        read_latency_profile(path)


def test_a_profile_of_another_format_is_refused(tmp_path) -> None:
    path = saved(tmp_path, PLAIN)
    write_json(path, {**read_json(path), "format": 1})
    with pytest.raises(ConfigError, match="has format 1; this version of dfs-rl reads format 2"):
        read_latency_profile(path)


def test_a_file_that_is_no_profile_is_refused(tmp_path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        read_latency_profile(tmp_path / "none.json")
    for content in ([1], {"machine": "m"}, {"format": 5, "machine": {"system": "Linux"}}):
        write_json(tmp_path / "other.json", content)
        with pytest.raises(ConfigError, match=r"other\.json is no .* dfs_rl\.profile writes one"):
            read_latency_profile(tmp_path / "other.json")
    (tmp_path / "README.md").write_text("# A page")
    with pytest.raises(ConfigError, match=r"README\.md is no latency profile"):
        read_latency_profile(tmp_path / "README.md")
    path = saved(tmp_path, PLAIN)
    with pytest.raises(ConfigError, match="was measured with a machine"):
        load_latency_profile(LatencySettings(profile=path))
    with pytest.raises(ConfigError, match=r"batch_size is 8, but the profile has \[1, 64\]"):
        load_latency_profile(here(path, 8))
