"""The Python API makes what the commands make, and raises errors instead of exit codes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import dfs_rl
from dfs_rl.backbones import load_backbone
from dfs_rl.backbones.storage import load_info
from dfs_rl.data import load_dataset
from dfs_rl.errors import CheckpointError, ConfigError, DataError, RunFolderError
from dfs_rl.train_agent import main as train_agent_main
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.yaml_core import read_yaml
from tests.helpers.custom_models import write
from tests.helpers.quick import few_steps, quick_runs
from tests.helpers.small_backbone import small_backbone

__all__ = ["few_steps", "quick_runs"]

SETTINGS = {
    "timesteps": 600,
    "num_envs": 32,
    "eval_every": 200,
    "fixed_budget": True,
    "seed": 3,
    "passes": 1,
}


def validations(path):
    return [r for r in RunFolder.open(path).read_metrics() if r["kind"] == "validation"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gate, the records that its callback got, and the folder of all runs."""
    folder, records = tmp_path_factory.mktemp("api"), []
    gate = dfs_rl.train_gate(
        None, "digits", n_epochs=2, callback=records.append, run_dir=folder / "gate", **SETTINGS
    )
    return SimpleNamespace(gate=gate, records=records, folder=folder)


# --- training


def test_gate_equals_that_of_the_command(made):
    flags = [f"--{name.replace('_', '-')}={v}" for name, v in SETTINGS.items() if v is not True]
    path = made.folder / "command"
    assert (
        train_agent_main(
            [*flags, "--fixed-budget", "--algorithm.n-epochs=2", "--run-dir", str(path)]
        )
        == 0
    )
    ours, theirs = (load_file(p / "gate" / "gate.safetensors") for p in (made.gate.path, path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert validations(made.gate.path) == validations(path)


def test_callback_gets_each_validation(made):
    stored = validations(made.gate.path)
    assert [r["timesteps"] for r in made.records] == [r["timesteps"] for r in stored]
    assert len(stored) >= 3
    best = made.gate.validation
    assert (best["computation"], best["accuracy"]) == made.gate.points[0]
    assert best["accuracy"] in [r["accuracy"] for r in made.records]


def test_exception_in_a_callback_ends_the_training(tmp_path):
    def stop(record):
        raise LookupError(record["timesteps"])

    with pytest.raises(LookupError, match="0"):
        dfs_rl.train_gate(None, "digits", callback=stop, run_dir=tmp_path / "run", **SETTINGS)


def test_a_folder_of_another_run_is_refused_before_data_is_read(made):
    with pytest.raises(RunFolderError, match="--resume"):
        dfs_rl.train_gate(None, "no/such/data", run_dir=made.gate.path, **SETTINGS)


def test_backbone_in_memory_equals_the_stored_one(tmp_path, capsys):
    digits = load_dataset("digits")
    epochs = []
    backbone = dfs_rl.train_backbone(
        "resnet8", digits, epochs=1, width=4, callback=epochs.append, run_dir=tmp_path / "net"
    )
    assert [record["epoch"] for record in epochs] == [1]
    stored = load_backbone(tmp_path / "net").state_dict()
    assert all(torch.equal(value, stored[n]) for n, value in backbone.state_dict().items())
    gates = [
        dfs_rl.train_gate(source, digits, method="static_greedy", budget=8.0, run_dir=tmp_path / n)
        for n, source in (("a", backbone), ("b", tmp_path / "net"))
    ]
    said = capsys.readouterr().err
    for what, folder in (("backbone", "net"), ("gate", "a"), ("gate", "b")):
        assert f"The {what} is in {tmp_path / folder}.\n" in said
    tables = [gate.load().gate.table for gate in gates]
    assert tables[0] == tables[1]


def test_backbone_in_memory_for_resized_images(tmp_path):
    resized = load_dataset("digits", image_size=16)
    backbone = small_backbone(resized).backbone
    settings = {"method": "static_greedy", "budget": 40.0, "image_size": 16}
    gate = dfs_rl.train_gate(backbone, "digits", run_dir=tmp_path / "run", **settings)
    info = load_info(gate.path)
    assert (info.image_size, info.fingerprint) == (16, resized.fingerprint)


def test_backbone_in_memory_for_other_classes(tmp_path):
    digits = load_dataset("digits")
    more = replace(digits, class_names=(*digits.class_names, "ten"))
    backbone = small_backbone(digits).backbone
    with pytest.raises(DataError, match=r"has 10 classes, but data set 'digits' has .* and 11"):
        dfs_rl.train_gate(backbone, more, method="cascade", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_functions_use_one_thread_as_commands_do(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        dfs_rl.train_gate(None, "digits", method="cascade", budget=1.0, run_dir=tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert read_yaml(tmp_path / "run" / "config.yaml")["threads"] == 1


def test_threads_of_the_process_stay(tmp_path):
    before = torch.get_num_threads()
    with pytest.raises(ConfigError, match=r"budget is 0\.01 %"):
        dfs_rl.train_gate(
            None, "digits", method="cascade", budget=0.01, threads=2, run_dir=tmp_path / "run"
        )
    assert torch.get_num_threads() == before
    assert not (tmp_path / "run").exists()


def test_constructors_run_only_where_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("ownnets")
    settings = {"method": "static_greedy", "images": 50, "budget": 40.0}
    gate = dfs_rl.train_gate("ownnets:backbone", "digits", run_dir="run", **settings)
    with pytest.raises(ConfigError, match="ownnets:backbone"):
        dfs_rl.evaluate("run")
    with pytest.raises(CheckpointError, match="ownnets:backbone"):
        dfs_rl.compare("run", run_dir="report")
    evaluated = dfs_rl.evaluate("run", trust_code=True)
    assert evaluated.summary == dfs_rl.evaluate(gate).summary
    assert len(dfs_rl.compare(gate, run_dir="report").figures.points) >= 1


# --- results


def test_evaluation_has_a_row_per_method(made):
    every = dfs_rl.evaluate(made.gate).to_frame()
    methods = dfs_rl.evaluate(made.gate).summary.methods
    assert every["accuracy"].tolist() == [method.accuracy for method in methods]
    two = dfs_rl.evaluate(made.gate, baselines=["cascade", "static_table"]).to_frame()
    assert sorted(two["key"]) == ["cascade", "gate", "static_table"]
    row = two.set_index("key").loc["cascade"]
    gate = two.set_index("key").loc["gate"]
    assert row["difference"] == pytest.approx(gate["accuracy"] - row["accuracy"])


def test_comparison_has_the_rows_of_points_csv(made):
    found = dfs_rl.compare(made.gate, run_dir=made.folder / "report")
    stored = pd.read_csv(found.path / "points.csv")
    assert found.to_frame()["label"].tolist() == stored["label"].tolist()
    assert found.to_frame()["accuracy_mean"].tolist() == stored["accuracy_mean"].tolist()


# --- errors


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "reinforce"}, "method is 'reinforce'"),
        ({"timestep": 3}, "timestep is not a setting"),
        ({"timesteps": -1}, "timesteps is -1"),
        ({"method": "gumbel", "n_epochs": 3}, "n_epochs is not a setting"),
        ({"n_epochs": 3, "algorithm": {"n_epochs": 2}}, "n_epochs is given twice"),
        ({"reward": {"terms": [["novelty", 1.0]]}}, "novelty"),
    ],
)
def test_bad_settings_are_refused(settings, named, tmp_path):
    with pytest.raises(ConfigError, match=f"^(?!settings: ).*{named}"):
        dfs_rl.train_gate(None, "digits", run_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"baselines": ["nearest"]}, "baselines has 'nearest'"),
        ({"baselines": 3}, "baselines is 3; allowed is a list"),
        ({"baselines": [["cascade"]]}, r"baselines has \['cascade'\]"),
        ({"split": "train"}, "split is 'train'"),
        ({"precision": "int8"}, "precision is 'int8'"),
    ],
)
def test_bad_evaluations_are_refused(settings, named, made):
    with pytest.raises(ConfigError, match=named):
        dfs_rl.evaluate(made.gate, **settings)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: dfs_rl.load_dataset(3), "data set is 3; allowed are 'digits'"),
        (lambda: dfs_rl.load_dataset(None), "data set is None; allowed are 'digits'"),
        (lambda: dfs_rl.train_backbone("resnet8", 3), "data set is 3;"),
        (lambda: dfs_rl.train_gate(None, None), "data set is None;"),
        (lambda: dfs_rl.evaluate("run", 3), "data set is 3;"),
        (lambda: dfs_rl.compare("run", dataset=3), "data set is 3;"),
    ],
)
def test_other_types_are_no_data_sets(call, named):
    with pytest.raises(ConfigError, match=f"^{named}"):
        call()


def test_a_path_names_a_data_set(made, tmp_path):
    digits = Path("digits")
    assert dfs_rl.load_dataset(digits).fingerprint == load_dataset("digits").fingerprint
    settings = {"method": "cascade", "budget": 1.0}
    assert dfs_rl.train_gate(None, digits, run_dir=tmp_path / "run", **settings).points
    net = dfs_rl.train_backbone("resnet8", digits, epochs=1, width=4, run_dir=tmp_path / "net")
    assert net.n_classes == 10
    named = dfs_rl.evaluate(made.gate, digits, baselines=["cascade"])
    assert named.summary == dfs_rl.evaluate(made.gate, "digits", baselines="cascade").summary
    with pytest.raises(DataError, match="'no/such/folder' does not exist"):
        dfs_rl.load_dataset(Path("no/such/folder"))


def test_the_device_of_a_trained_gate_may_be_auto(made):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert made.gate.load(device="auto").backbone.feature_mean.device.type == expected


@pytest.mark.parametrize(("network", "shown"), [(3, "3"), (torch.nn.Linear(2, 2), "of type Lin")])
def test_what_is_no_backbone_is_refused(network, shown):
    with pytest.raises(ConfigError, match=rf"^backbone is {shown}.* dfs_rl\.fractionalize .* None"):
        dfs_rl.train_gate(network, "digits")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda gated: dfs_rl.export("runs/gate", "a.onnx"),
            "model is 'runs/gate'; .* dfs_rl.load",
        ),
        (lambda gated: dfs_rl.evaluate(gated), "gate is of type GatedModel; .* of a run folder"),
        (lambda gated: dfs_rl.compare(gated), "gate is of type GatedModel; .* of a run folder"),
        (lambda gated: dfs_rl.compare(3), "gate is 3;"),
        (
            lambda gated: dfs_rl.compare("run", seeds=3),
            "seeds is 3, which is for gates that are tr",
        ),
        (lambda gated: dfs_rl.profile(3), "network is 3;"),
        (lambda gated: dfs_rl.train_gate(None, "digits", callback=3), "callback is 3;"),
        (lambda gated: dfs_rl.train_backbone("resnet8", "digits", callback=3), "callback is 3;"),
        (lambda gated: dfs_rl.train_gate(None, "digits", method=["ppo"]), "method is .'ppo'.;"),
        (lambda gated: dfs_rl.train_gate(None, "digits", algorithm=3), "algorithm is 3;"),
        (lambda gated: dfs_rl.compare(dataset="digits", kinds=3), "kinds is 3;"),
        (lambda gated: dfs_rl.compare(dataset="digits", kinds="pp"), r"gates\[0\] is 'pp';"),
    ],
)
def test_arguments_of_other_types_are_refused(call, named, made):
    with pytest.raises(ConfigError, match=f"^{named}"):
        call(made.gate.load())


def test_functions_that_use_the_package_reach_other_processes():
    assert cloudpickle.loads(cloudpickle.dumps(dfs_rl)) is dfs_rl


def test_commands_do_not_hide_functions():
    assert callable(dfs_rl.compare)
    assert callable(dfs_rl.evaluate)
    assert callable(dfs_rl.train_backbone)
