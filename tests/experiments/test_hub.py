"""Gates on a hub: a server on this machine stands in for it, through the hub's own library."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, constants

import dfs_rl
from dfs_rl.errors import CheckpointError, ConfigError, HubError, RunFolderError
from dfs_rl.experiments.hub import model_card
from dfs_rl.experiments.stored_evaluation import model_digest
from dfs_rl.gating.storage import load_gate, save_gate
from dfs_rl.utils.io import read_json, write_json
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.hub_server import running_hub

ADDRESS = "hf://user/gate"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An evaluated gate for all budgets, and images of its size."""
    run_dir = tmp_path_factory.mktemp("runs") / "gate"
    gate = dfs_rl.train_gate(
        None, "digits", method="gumbel", timesteps=600, eval_every=600, run_dir=run_dir
    )
    with pytest.raises(RunFolderError, match="not evaluated on the test split"):
        dfs_rl.push_to_hub(gate, "user/gate", licence="mit")
    summary = dfs_rl.evaluate(gate, baselines=None).summary
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return SimpleNamespace(gate=gate, summary=summary, images=images)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def pushed(hub, trained):
    url = dfs_rl.push_to_hub(trained.gate, "user/gate", licence="apache-2.0")
    assert url == f"{hub.url}/user/gate/commit/{hub.sha('user/gate')}"
    return hub.repositories["user/gate"]


def outputs(model, images):
    logits, trace = model(images)
    return logits, trace.options, trace.computation


def test_round_trip(hub, pushed, trained):
    assert set(pushed) == {
        "README.md",
        *(
            f"{part}/{part}.{suffix}"
            for part in ("backbone", "gate")
            for suffix in ("json", "safetensors")
        ),
    }
    for given in ({}, {"budget": trained.gate.points[-1][0]}):
        ours = outputs(trained.gate.load(**given), trained.images)
        for address in (ADDRESS, f"{ADDRESS}@{hub.sha('user/gate')}"):
            theirs = outputs(dfs_rl.load(address, **given), trained.images)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_card_has_figures_licence_and_command(pushed, trained):
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.license == "apache-2.0"
    gate = trained.summary.methods[0]
    figures = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert figures == {"accuracy": gate.accuracy, "computation": gate.computation}
    assert {each.dataset_name for each in card.data.eval_results} == {"digits"}
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line[:2] == "| "][
        2:
    ]
    shown = [(label, float(cost), int(n)) for label, _, cost, n in rows]
    assert shown == [
        (each.label, round(each.computation, 3), each.n) for each in trained.summary.methods
    ]
    assert f'dfs_rl.load("{ADDRESS}")' in card.text
    assert " ".join(RunFolder.open(trained.gate.path).record().command) in card.text


def test_card_links_the_data_of_a_stream(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.gate.path, run)
    summary, structure = run / "summary.json", run / "backbone" / "backbone.json"
    record = read_json(structure)
    write_json(structure, record | {"info": record["info"] | {"dataset": "user/data"}})
    changes = {"dataset": "user/data-mixed", "identity": model_digest(run)}
    write_json(summary, read_json(summary) | changes)
    card = ModelCard(model_card(run, "user/gate", licence="mit"))
    assert card.data.datasets == ["user/data"]
    assert {each.dataset_type for each in card.data.eval_results} == {"user/data"}
    assert {each.dataset_name for each in card.data.eval_results} == {"user/data-mixed"}


def test_figures_of_other_weights_are_not_uploaded(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.gate.path, run)
    gate = load_gate(run / "gate")
    gate.preference = 0.5
    save_gate(gate, run / "gate")
    with pytest.raises(RunFolderError, match="does not belong to the weights"):
        dfs_rl.push_to_hub(run, "user/gate", licence="mit")


def test_page_runs(hub, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.gate.path, "runs/gate")
    page = (Path(dfs_rl.__file__).parents[1] / "docs/how-to/hub.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)), {})
    address, *rest = capsys.readouterr().out.splitlines()
    assert address == f"{hub.url}/user/digits-gate/commit/{hub.sha('user/digits-gate')}"
    assert len(rest) == 16


def test_code_of_a_repository_is_not_downloaded(hub, pushed, tmp_path):
    for name in ("gate.py", "gate/__init__.py", "backbone/config.yaml", "gate/gate.pkl"):
        pushed[name] = b"raise SystemExit"
    dfs_rl.load(ADDRESS)
    stored = {path.suffix for path in (tmp_path / "cache").rglob("snapshots/*/*/*")}
    assert stored == {".json", ".safetensors"}
    assert not any("gate.p" in request for request in hub.requests)


def test_cache_serves_without_a_network(hub, pushed, trained, monkeypatch):
    first = outputs(dfs_rl.load(ADDRESS), trained.images)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = outputs(dfs_rl.load(ADDRESS), trained.images)
    assert torch.equal(first[0], again[0])
    with pytest.raises(HubError, match="user/other cannot be downloaded"):
        dfs_rl.load("hf://user/other")


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("hf://user/nothing", HubError, "no repository user/nothing"),
        ("hf://user/gate@v9", HubError, "user/gate on the hub has no such revision"),
        ("hf://user/empty", CheckpointError, "hf://user/empty has no folder 'backbone'"),
        ("hf://gate", ConfigError, "'gate' names no repository"),
        ("hf://user/gate@", ConfigError, "no revision after '@'"),
    ],
)
def test_bad_addresses_are_one_sentence(hub, pushed, address, error, words):
    hub.repositories["user/empty"] = {"README.md": b"empty"}
    with pytest.raises(error, match=words) as raised:
        dfs_rl.load(address)
    assert "\n" not in str(raised.value)


def test_upload_that_is_not_possible_is_one_sentence(hub, trained, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="run is GatedModel"):
        dfs_rl.push_to_hub(trained.gate.load(), "user/gate", licence="mit")
    with pytest.raises(ConfigError, match="'gate' names no repository"):
        dfs_rl.push_to_hub(trained.gate, "gate", licence="mit")
    with pytest.raises(RunFolderError, match="is not a folder"):
        dfs_rl.push_to_hub(tmp_path / "nowhere", "user/gate", licence="mit")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="user/gate") as raised:
        dfs_rl.push_to_hub(trained.gate, "user/gate", licence="mit")
    assert "\n" not in str(raised.value)
    assert hub.repositories == {}
