"""Budgets in milliseconds and bounds on the loss of accuracy, from the commands to the gate.

By the made-up profile, the gated layers take 69.3 ms in full precision: 0.1 * 33 ms times 1 to 6.
"""

import re
import shutil

import pytest
import torch

import dfs_rl
from dfs_rl import train_agent, train_cascade, train_gumbel, train_static
from dfs_rl.backbones import default_digits
from dfs_rl.compare import main as compare_main
from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.evaluate import main as evaluate_main
from dfs_rl.experiments.budgets import check_highest_budget
from dfs_rl.experiments.comparison_config import GATE_COMMANDS, CompareConfig
from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.config import config_to_dict, load_config
from dfs_rl.utils.io import read_json, write_json
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.latencies import made_up_profile
from tests.helpers.shown import read_comparison, sentence

FULL_MS = 69.3
AGENT = ["--timesteps", "400", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]
AGENT += ["--passes", "1"]
GUMBEL = ["--timesteps", "400", "--training.batch-size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    write_json(path, config_to_dict(made_up_profile(default_digits().costs, gate_macs=300.0)))
    return path


@pytest.fixture(scope="module")
def in_ms(profile):
    given = ["--latency.profile", str(profile), "--latency.other-machine"]
    return ["--cost", "latency", *given, "--budget-unit", "ms"]


@pytest.fixture(scope="module")
def agent(in_ms, tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "run"
    assert train_agent.main([*AGENT, *in_ms, "--budget", "20.79", "--run-dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "run"
    assert train_gumbel.main([*GUMBEL, "--max-accuracy-drop", "100", "--run-dir", str(path)]) == 0
    return path


def stored_config(run) -> GateRunConfig:
    config_type = GATE_COMMANDS[RunFolder.open(run).kind]
    return load_config(run / "config.yaml", config_type)


def milliseconds(options: torch.Tensor) -> torch.Tensor:
    """Time of images without gate, by the definition of the made-up profile."""
    bits = torch.tensor([0, 2, 3, 4, 8, 32])[options].double()
    return 0.5 + 0.25 + (0.1 * torch.arange(1, 7) * (1 + bits)).sum(dim=1)


# --- milliseconds --------------------------------------------------------------------------------


def test_an_agent_is_set_to_milliseconds(agent):
    config, gate = stored_config(agent), load_gate(agent / "gate")
    assert (config.budget, config.budget_unit) == (pytest.approx(30.0), "percent")
    measured = gate.budget_conditioning
    least, _ = measured.budget_range
    assert gate.preference == measured.preference_for_budget(max(config.budget, least))
    _, trace = dfs_rl.load(agent)(load_dataset("digits").val.images)
    spent = milliseconds(trace.options) + 6 * 0.0625 * gate.macs / 300.0
    torch.testing.assert_close(trace.computation, 100 * spent / FULL_MS)


def test_a_resumed_run_keeps_its_percent(agent, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(agent, run)
    (run / "training.json").unlink()  # as if it had been killed before the end
    before = load_gate(agent / "gate").preference
    assert train_agent.main(["--resume", str(run)]) == 0
    macs = load_gate(run / "gate").macs
    told = f"the profile measured a gate of 300 MACs, and this one has {macs:,.0f}."
    assert told in " ".join(capsys.readouterr().out.split())
    assert stored_config(run).budget == stored_config(agent).budget
    assert load_gate(run / "gate").preference == before


def test_the_same_budget_in_both_units(agent):
    least, most = load_gate(agent / "gate").budget_conditioning.rounded_range
    percent = (least + most) / 2
    ms = percent * FULL_MS / 100
    model = dfs_rl.load(agent, budget=ms, budget_unit="ms")
    assert model.gate.preference == pytest.approx(
        dfs_rl.load(agent, budget=percent).gate.preference
    )
    model.set_budget((most - 1e-6) * FULL_MS / 100, unit="ms")
    assert model.gate.preference == pytest.approx(
        dfs_rl.load(agent, budget=most - 1e-6).gate.preference
    )
    with pytest.raises(ConfigError, match=r"ms \(.* %\), but .* on average; give a budget in this"):
        model.set_budget(most * FULL_MS / 100 * 1.001, unit="ms")
    assert evaluate_main([str(agent), "--budget", f"{ms}", "--budget-unit", "ms"]) == 0
    assert (agent / f"summary-at-{ms:g}-ms.json").is_file()
    assert (agent / "plots" / f"at-{ms:g}-ms-accuracy.png").is_file()


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (train_static.main, ["--method", "greedy", "--images", "60"]),
        (train_cascade.main, ["--passes", "2"]),
    ],
    ids=["static", "cascade"],
)
def test_gates_without_training_take_milliseconds(in_ms, tmp_path, main, flags):
    run = tmp_path / "run"
    assert main([*flags, *in_ms, "--budget", "20.79", "--run-dir", str(run)]) == 0
    assert stored_config(run).budget == pytest.approx(30.0)
    _, trace = dfs_rl.load(run)(load_dataset("digits").val.images)
    once = milliseconds(trace.options)
    spent = trace.computation * FULL_MS / 100
    assert float(spent.mean()) <= 20.79 * (1 + 1e-9)
    torch.testing.assert_close(spent[trace.n_passes == 1], once[trace.n_passes == 1])


def test_a_comparison_trains_for_milliseconds(in_ms, tmp_path):
    folder = tmp_path / "contest"
    chosen = ["--gates", "static_greedy", "--budgets", "20.79", "--search.tables", "5"]
    flags = ["--dataset", "digits", *chosen, "--run-dir", str(folder)]
    assert compare_main([*flags, *in_ms]) == 0
    assert compare_main(["--resume", str(folder)]) == 0
    config = load_config(folder / "config.yaml", CompareConfig)
    assert (config.budgets, config.budget_unit) == (pytest.approx((30.0,)), "percent")
    assert stored_config(folder / "gates" / "static_greedy-seed0-at-30").budget == config.budgets[0]


def test_finished_runs_are_compared_at_milliseconds(agent, plain, tmp_path, capsys):
    folder = tmp_path / "report"
    most = load_gate(agent / "gate").budget_conditioning.budget_range[1]
    ms = ["--budgets", str(most * FULL_MS / 50), "--budget-unit", "ms"]
    flags = [*ms, "--search.tables", "5", "--run-dir"]
    assert compare_main([str(agent), *flags, str(folder)]) == 0
    assert compare_main(["--resume", str(folder)]) == 0
    found = read_comparison(folder)
    assert [p.budget for p in found.points if p.kind == "gate"] == [pytest.approx(2 * most)]
    assert compare_main([str(plain), *flags, str(tmp_path / "other")]) == 2
    assert "ms, but the cost is computation" in sentence(capsys)
    assert not (tmp_path / "other").exists()


# --- accuracy ------------------------------------------------------------------------------------


def right_at_full_precision(images):
    backbone = default_digits().to_inference()
    with torch.inference_mode():
        h = backbone.stem(images.images)
        for layer in backbone.layers:
            h = layer(h, 32)
        return backbone.head(h).argmax(dim=1) == images.labels


def test_a_gate_is_set_to_its_loss_of_accuracy(plain, capsys):
    gate, val = load_gate(plain / "gate"), load_dataset("digits").val
    measured = gate.budget_conditioning
    right = right_at_full_precision(val)
    assert measured.full_precision_accuracy == pytest.approx(100 * float(right.double().mean()))
    cheapest = measured.computations.index(min(measured.computations))
    assert gate.preference == measured.preferences[cheapest]  # it may lose 100 points
    drop = max(0.0, measured.smallest_accuracy_drop)
    model = dfs_rl.load(plain, max_accuracy_drop=drop)
    logits, _ = model(val.images)
    reached = 100 * float((logits.argmax(dim=1) == val.labels).double().mean())
    assert reached >= measured.full_precision_accuracy - drop - 1e-6
    assert evaluate_main([str(plain), "--max-accuracy-drop", f"{drop}", "--split", "val"]) == 0
    method = read_json(plain / f"summary-val-drop-{drop:g}.json")["methods"][0]
    assert method["accuracy"] == pytest.approx(reached)


def test_the_loss_of_accuracy_is_told_with_its_interval(tmp_path, capsys):
    run, val = tmp_path / "run", load_dataset("digits").val
    flags = ["--passes", "1", "--max-accuracy-drop", "1.5", "--run-dir", str(run)]
    assert train_cascade.main(flags) == 0
    said = capsys.readouterr().err
    told = re.search(r"loses ([-\d.]+) .*\(95 %: ([-\d.]+) to ([-\d.]+)\)", said)
    right = dfs_rl.load(run)(val.images)[0].argmax(dim=1) == val.labels
    full = right_at_full_precision(val)
    lost, won = int((full & ~right).sum()), int((right & ~full).sum())
    n = len(val) + 2  # an image for each is added
    mean = (lost - won) / n
    margin = 1.96 * ((lost + won + 2) / n - mean**2) ** 0.5 / n**0.5
    expected = [(lost - won) / len(val), mean - margin, mean + margin]
    assert [float(each) for each in told.groups()] == pytest.approx(
        [100 * each for each in expected], abs=0.006
    )
    assert (f"Warning: with {len(val)} val images" in said) == (200 * margin > 1.5)
    detail = read_json(run / "summary.json")["methods"][0]["detail"]
    share = float(right.double().mean())
    error = 100 * (share * (1 - share) / len(val)) ** 0.5
    assert f"{100 * share:.2f} ± {error:.2f} % accuracy on {len(val)} val images" in detail


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "flags", "words"),
    [
        (train_agent.main, ["--budget", "1"], "budget_unit is 'ms', but cost is computation"),
        (train_cascade.main, ["--cost", "macs"], "budget_unit is 'ms', but cost is macs"),
        (compare_main, ["--dataset", "digits", "--budgets", "1"], "but cost is computation"),
        (compare_main, [".", "--dataset", "digits"], "budgets is empty; give budgets in ms"),
    ],
)
def test_milliseconds_need_measured_times(refusal, main, flags, words):
    assert words in refusal(main, [*flags, "--budget-unit", "ms"])


@pytest.mark.parametrize(
    ("main", "flags", "words"),
    [
        (train_agent.main, ["--budget", "2"], "budget is 2 and max_accuracy_drop is 1; give one"),
        (train_agent.main, ["--cost-weight", "2"], "cost_weight is 2 and max_accuracy_drop is 1"),
        (train_agent.main, ["--fixed-budget"], "this gate learns for one"),
        (train_gumbel.main, ["--budget", "1"], "budget is 1 and max_accuracy_drop is 1"),
        (train_gumbel.main, ["--method", "dfs"], "this gate learns for one"),
    ],
)
def test_a_gate_has_one_aim(refusal, main, flags, words):
    assert words in refusal(main, [*flags, "--max-accuracy-drop", "1"])


def test_latency_has_no_default_budgets(refusal, profile):
    given = ["--dataset", "digits", "--latency.profile", str(profile), "--cost", "latency"]
    assert "cost is latency, which has no default budgets" in refusal(compare_main, given)


def test_a_high_budget_in_measured_time_is_reported(capsys):
    costs = default_digits().costs
    check_highest_budget(2000.0, costs.with_cost_model("latency", made_up_profile(costs)))
    assert capsys.readouterr().err == (
        "Warning: budget is 1386 ms (2000 %), but an image costs at most 70.05 ms (101.082 %), "
        "so it bounds nothing.\n"
    )


def test_a_small_budget_is_told_in_milliseconds(refusal, in_ms, agent):
    said = refusal(train_static.main, [*in_ms, "--budget", "0.693"])
    assert "budget is 0.693 ms (1 %), too little" in said
    assert "costs 2.85 ms (4.11255 %)" in said  # 0.75 and 0.1 * 21 ms
    with pytest.raises(ConfigError, match=r"budget is 0\.693 ms \(1 %\), but .* ms .* on average"):
        dfs_rl.load(agent, budget=0.693, budget_unit="ms")


def test_a_unit_without_a_budget_is_refused(refusal, in_ms, agent):
    said = "budget_unit is 'ms', but no budget is given; leave it out"
    assert said in refusal(train_agent.main, in_ms)
    assert said in refusal(train_agent.main, [*in_ms, "--max-accuracy-drop", "1"])
    assert said in refusal(evaluate_main, [str(agent), "--budget-unit", "ms"])
    with pytest.raises(ConfigError, match=said):
        dfs_rl.load(agent, budget_unit="ms", max_accuracy_drop=1.0)


def test_what_a_gate_cannot_be_set_to(plain):
    for settings, words in (
        ({"budget": 2.0, "budget_unit": "ms"}, "2 ms, but the cost is computation"),
        ({"budget": 2.0, "budget_unit": "s"}, "unit of the budget is 's'; allowed are percent, ms"),
        ({"budget": 2.0, "max_accuracy_drop": 1.0}, "give one of them"),
        ({"max_accuracy_drop": -1.0}, "allowed are numbers from 0 to 100"),
        ({"max_accuracy_drop": 100.5}, "allowed are numbers from 0 to 100"),
    ):
        with pytest.raises(ConfigError, match=words):
            dfs_rl.load(plain, **settings)
