"""Profiles hold every part of any network, and their sums are those of whole runs."""

import itertools
import json
import time
from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pytest
import torch

import dfs_rl
from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveSwin,
    BackboneInfo,
    ResNet,
    VisionTransformer,
    save_backbone,
)
from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.costs.latency_profile import read_latency_profile
from dfs_rl.costs.machine import check_machine
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LSTMGate, MLPGate, exit_info
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.storage import save_gate
from dfs_rl.profile import main
from dfs_rl.runtime import export as export_module
from dfs_rl.runtime import latency, latency_networks, latency_runs
from dfs_rl.runtime.latency import PartTimes, measure_parts
from dfs_rl.runtime.latency_networks import TimesAlone, timed_networks
from dfs_rl.runtime.latency_runs import time_runs
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import write_json
from tests.helpers.models import BasicResNet, converted
from tests.helpers.networks import network

COSTS = CostTable(
    options=BitOptions((2, 8, 32)),
    layer_macs=(10, 20, 30),
    exits=(ExitCost(after=1, macs=5, bits=8), ExitCost(after=2, macs=5, bits=8)),
)
STEM, HEAD, EXITS, GATE = 5.0, 2.0, {1: 0.75, 2: 0.5}, (0.25, 0.5, 1.0)
LAYERS = np.array([[1.0, 2.0, 4.0], [1.5, 1.25, 3.0], [2.0, 2.0, 5.0]])


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    """Run as little as a fit needs; no test asserts what real times are."""
    monkeypatch.setattr(latency_runs, "_WARM_UP", 1)
    monkeypatch.setattr(latency, "_RUNS_PER_LAYER", 1)
    monkeypatch.setattr(latency, "_FACTORS", (1, 3, 9))  # so few runs may be noise
    monkeypatch.setattr(latency_networks, "_GATES", {"torch": 8, "onnx": 1, "onnx-int8": 1})


class MadeUpNetwork:
    """A network that moves the hands of the clock by known times."""

    def __init__(self):
        self.now = 0.0
        self.settings = cycle([(0, 1, 2), (1, 3, 3), (2, 0, 3)])

    def clock(self):
        return self.now

    def at(self, setting, gate=0.0):
        n = setting.index(3) if 3 in setting else 3
        seconds = STEM + LAYERS[range(n), setting[:n]].sum() + EXITS.get(n, HEAD) + gate

        def run():
            self.now += seconds
            return setting

        return run

    def gated(self):
        setting = next(self.settings)
        decisions = min(setting.index(3) + 1 if 3 in setting else 3, 3)
        return self.at(setting, sum(GATE[:decisions]))

    def times_alone(self):
        parts = [STEM, *LAYERS[:, 0], HEAD]
        return TimesAlone(np.array(parts), 10 * np.array(GATE))


def test_gates_of_several_passes_run_one(monkeypatch):
    backbone, seen = network(ResNet, bits=(0, 4)).to_inference(), []
    gate = MLPGate(backbone.feature_sizes, backbone.options, passes=PassSettings(limit=3))
    model, stem = GatedModel(backbone, gate), backbone.stem
    networks = timed_networks(model, "torch", batch_sizes=(1, 2), threads=1)
    monkeypatch.setattr(backbone, "stem", lambda images: seen.append(len(images)) or stem(images))
    for timed in networks:
        for _ in range(16):
            timed.gated()()
    assert seen == [1] * 16 + [2] * 16


@pytest.mark.parametrize("batch_size", [1, 4])
def test_made_up_times_are_found(batch_size, monkeypatch):
    made_up = MadeUpNetwork()
    monkeypatch.setattr(time, "perf_counter", made_up.clock)
    runs = time_runs(made_up, COSTS, calls=40, batch_size=batch_size)
    times = PartTimes(runs, made_up.times_alone(), costs=COSTS, gate=None)
    found = {(p.part, p.layer, p.bits): p for p in times.part_records(batch_size)}
    scale = 1000 / batch_size
    expected = {("stem", None, None): STEM, ("head", None, None): HEAD}
    expected |= {("exit", after, None): seconds for after, seconds in EXITS.items()}
    expected |= {("gate", layer, None): seconds for layer, seconds in enumerate(GATE)}
    for layer, option in product(range(3), range(3)):
        expected["layer", layer, COSTS.options[option]] = LAYERS[layer, option]
    assert found.keys() == expected.keys()
    for name, seconds in expected.items():
        assert found[name].median == pytest.approx(scale * seconds, rel=0.02), name
        assert found[name].low <= found[name].median <= found[name].high
    checks = times.check_records(batch_size)
    assert len(checks) == 23
    for check in checks:
        assert check.predicted == pytest.approx(check.measured, rel=0.01)
    full = next(check for check in checks if check.bits == (32, 32, 32))
    assert full.measured == pytest.approx(scale * (STEM + LAYERS[:, 2].sum() + HEAD))


@pytest.mark.parametrize("busy_runs", [200, 10_000])
def test_layers_without_time_are_measured_again(busy_runs, monkeypatch):
    made_up, plain, n = MadeUpNetwork(), LAYERS, itertools.count()
    monkeypatch.setattr(time, "perf_counter", made_up.clock)
    monkeypatch.setattr(latency, "_FACTORS", (1, 2))
    busy = np.where(LAYERS == 1.25, -0.1, LAYERS)  # layer 1 at 8 bit, beside other work

    def at(setting, gate=0.0):
        monkeypatch.setitem(globals(), "LAYERS", busy if next(n) < busy_runs else plain)
        return MadeUpNetwork.at(made_up, setting, gate)

    monkeypatch.setattr(made_up, "at", at)
    given = {"calls": 20, "batch_size": 1}
    if busy_runs > 200:
        with pytest.raises(ConfigError, match=r"calls is 20, .* layer 1 at 8 bit took no time"):
            measure_parts(made_up, COSTS, None, **given)
    else:
        parts, _ = measure_parts(made_up, COSTS, None, **given)
        (found,) = (p.median for p in parts if (p.part, p.layer, p.bits) == ("layer", 1, 8))
        assert found == pytest.approx(1250, rel=0.1)


@pytest.mark.parametrize("kind", [ResNet, AdaptiveMobileNet, VisionTransformer, AdaptiveSwin])
def test_every_kind_of_network_is_measured(kind, tmp_path):
    net = network(kind)
    profile = dfs_rl.profile(net, tmp_path / "p.json", batch_sizes=[1], calls=20)
    assert profile == read_latency_profile(tmp_path / "p.json")
    check_machine(profile)
    costs = net.costs.with_cost_model("latency", profile)  # every part is there
    options = torch.randint(len(net.options), (5, costs.n_layers))
    parts = [
        profile.milliseconds("stem")
        + sum(profile.milliseconds("layer", i, net.options[o]) for i, o in enumerate(row))
        + sum(profile.milliseconds("gate", i) for i in range(costs.n_layers))
        + profile.milliseconds("head")
        for row in options.tolist()
    ]
    percent = costs.computation(options, gate_macs=profile.gate_macs)
    np.testing.assert_allclose(percent * costs.total_cost / 100, parts, rtol=1e-9)


def test_your_own_network_is_measured():
    backbone = converted(BasicResNet)[1]
    profile = dfs_rl.profile(backbone, batch_sizes=[1], calls=20)
    backbone.costs.with_cost_model("latency", profile)


def test_own_gate_and_exits():
    net = network(ResNet, bits=(4, 32))
    net.set_exits((1, 2))
    gate = LSTMGate(net.feature_sizes, net.options, exits=exit_info(net), hidden=3)
    before = torch.get_num_threads()
    profile = dfs_rl.profile(GatedModel(net, gate), batch_sizes=[2, 1], calls=20)
    assert profile.batch_sizes == (1, 2)
    profile = profile.at(2)
    assert profile.gate_macs == gate.macs
    assert [part.layer for part in profile.parts if part.part == "exit"] == [1, 2]
    assert torch.get_num_threads() == before


def test_macs_of_the_gate_are_those_of_computation():
    net = network(ResNet, bits=(0, 32))
    computed = net.feature_macs
    net.set_cost_model("macs")  # which counts features at 8 bit as much as at 32
    gate = MLPGate(net.feature_sizes, net.options, feature_macs=net.feature_macs)
    profile = dfs_rl.profile(GatedModel(net, gate), batch_sizes=[1], calls=20)
    assert profile.gate_macs == sum(gate.layer_macs) + computed


def test_onnx_has_the_same_parts():
    pytest.importorskip("onnxruntime")
    net = network(ResNet, bits=(0, 8))
    net.set_exits((2,))
    ours, *theirs = (
        dfs_rl.profile(net, batch_sizes=[1, 12], calls=20, runtime=runtime)
        for runtime in ("torch", "onnx", "onnx-int8")
    )
    names = [[(p.part, p.layer, p.bits) for p in profile.parts] for profile in (ours, *theirs)]
    assert names[0] == names[1] == names[2]
    assert [profile.runtime for profile in theirs] == ["onnx", "onnx-int8"]
    assert all(profile.versions[0].startswith("onnxruntime ") for profile in theirs)


def stored(folder):
    net = network(ResNet, bits=(0, 32))
    info = BackboneInfo(dataset="noise", fingerprint="0" * 16, class_names=("a", "b", "c"))
    save_backbone(net, info, folder / "run" / "backbone")
    return net


def test_command(tmp_path, capsys):
    net, run, out = stored(tmp_path), str(tmp_path / "run"), tmp_path / "profile.json"
    flags = [run, "--out", str(out), "--batch-sizes", "1", "--calls", "20"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "mean absolute error" in printed
    default = read_latency_profile(out).gate_macs
    gate = MLPGate(net.feature_sizes, net.options, hidden=50, feature_macs=net.feature_macs)
    for own, expected in ((gate, gate.macs), (TableGate([0, 1, 0], options=net.options), default)):
        save_gate(own, tmp_path / "run" / "gate")
        assert main(flags) == 0  # a profile may be replaced
        assert (
            f"and is replaced by the profile of one of {expected:,.0f}" in capsys.readouterr().err
        )
        assert read_latency_profile(out).gate_macs == expected


def test_the_profile_of_something_else_stays(tmp_path, capsys):
    stored(tmp_path)
    out = tmp_path / "profile.json"
    flags = [str(tmp_path / "run"), "--out", str(out), "--batch-sizes", "1", "--calls", "20"]
    assert main(flags) == 0
    assert flags[0] in capsys.readouterr().out
    assert main(flags[1:]) == 2  # of the included digits network
    assert str(out) in capsys.readouterr().err
    profile = read_latency_profile(out)
    others = [("machine", "another"), ("runtime", "onnx"), ("threads", 2)]
    parts = tuple(part for part in profile.parts if part.bits != 32)
    for name, value in [*others, ("parts", parts)]:
        write_json(out, config_to_dict(replace(profile, **{name: value})))
        kept = out.read_bytes()
        assert main(flags) == 2
        field = "bits" if name == "parts" else name
        assert f"its {field} is {getattr(read_latency_profile(out), field)}, and here it is " in (
            capsys.readouterr().err
        )
        assert out.read_bytes() == kept


def test_an_interrupted_profile_leaves_no_file(tmp_path, monkeypatch, capsys):
    calls = iter(range(300))

    def interrupted():
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return 0.001 * time.monotonic_ns()

    stored(tmp_path)
    monkeypatch.setattr(time, "perf_counter", interrupted)
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out" / "profile.json")]) == 130
    assert not (tmp_path / "out").exists()


def test_bad_input(tmp_path, refusal, monkeypatch):
    stored(tmp_path)
    run = str(tmp_path / "run")
    (tmp_path / "other.json").write_text(json.dumps({"format": 1}))
    for flags, words in (
        (["nowhere"], "nowhere"),
        ([run, "--batch-sizes", "0"], "batch_sizes"),
        ([run, "--batch-sizes", "10000000000"], "batch_sizes has 10000000000, which takes about "),
        ([run, "--runtime", "tflite"], "runtime"),
        ([run, "--calls", "1"], "calls is 1; it must be at least 20"),
        ([run, "--threads", "100000"], "threads is 100000"),
        ([run, "--device", "abacus"], "abacus"),
        ([run, "--out", str(tmp_path / "other.json")], "other.json"),
        ([run, "--out", run], "run"),
        ([run, "--out", str(tmp_path / "other.json" / "p.json")], "cannot read or write"),
    ):
        assert words in refusal(main, flags)
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    assert "dfs-rl[export]" in refusal(main, [run, "--runtime", "onnx"])
    assert (tmp_path / "other.json").read_text() == '{"format": 1}'
    assert not (tmp_path / "profile.json").exists()


def test_bad_values_in_python():
    for settings in (
        {"runtime": "tflite"},
        {"batch_sizes": []},
        {"batch_sizes": 64},
        {"threads": 0},
        {"calls": 2},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            dfs_rl.profile(**settings)
    with pytest.raises(CheckpointError):
        dfs_rl.profile("nowhere")
