"""Command ``evaluate``: files, stored summaries and refusal of bad input."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch

from dfs_rl.backbones import load_backbone, save_backbone
from dfs_rl.data import ImageSet, load_dataset
from dfs_rl.errors import CheckpointError, ConfigError, DataError, RunFolderError
from dfs_rl.evaluate import main
from dfs_rl.evaluation.baselines.registry import BASELINES
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.summary import FORMAT
from dfs_rl.experiments.config import EvaluateConfig
from dfs_rl.experiments.evaluation import EvaluationCache, evaluate_run
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.loading import load
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.run_folder import TRAINING_FILE, RunFolder
from tests.helpers.small_backbone import small_backbone

GATE_FILES = ["accuracy.png", "images.png", "options.png"]
SHORT = SearchConfig(tables=12)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    dataset: str = "digits"
    seed: int = 0
    budget: float | None = None


def evaluate(run, dataset=None, *, progress=lambda _: None, cache=None, baselines=None, **settings):
    config = EvaluateConfig(run=run.path, **settings)
    return evaluate_run(config, dataset, progress=progress, cache=cache, baselines=baselines)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def stored(digits):
    return small_backbone(digits, bits=(0, 2, 4, 32))


@pytest.fixture(scope="module")
def make_run(stored):
    """Return a function that writes a run with an untrained backbone and gate."""

    def make(path, kind="train_agent", *, gate_seed=1, dataset="digits", **settings):
        config = TrainConfig(dataset=dataset)
        folder = RunFolder.create(path, kind=kind, name="run", config=config, command=["test"])
        save_backbone(stored.backbone, stored.info, folder.path / "backbone")
        if gate_seed is not None:
            write_gate(folder, stored.backbone, gate_seed, **settings)
            (folder.path / TRAINING_FILE).touch()
        return folder

    return make


def write_gate(folder, backbone, seed, **settings):
    torch.manual_seed(seed)
    sizes, options = backbone.feature_sizes, backbone.options
    save_gate(MLPGate(sizes, options, hidden=4, name="tiny gate", **settings), folder.path / "gate")


@pytest.fixture(scope="module")
def evaluated(make_run, digits, tmp_path_factory):
    """Folder of an evaluated run, and its evaluation."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run", budget=60.0)
    return run, evaluate(run, digits)


@pytest.fixture
def copied(evaluated, tmp_path):
    shutil.copytree(evaluated[0].path, tmp_path / "copy")
    return RunFolder.open(tmp_path / "copy")


def test_run_gets_summary_and_figures(evaluated, digits):
    run, result = evaluated
    assert not result.stored
    assert result.path == run.path / "summary.json"
    summary = result.summary
    uniform = ["uniform_0", "uniform_2", "uniform_4", "full"]
    matched = ["static_table", "cascade", "mode_table", "random", "patterns"]
    assert [method.key for method in summary.methods] == ["gate", *uniform, *matched, "oracle"]
    assert (summary.split, summary.n, summary.dataset) == ("test", len(digits.test), "digits")
    stored = json.loads(result.path.read_text())
    assert stored["methods"][0]["label"] == "tiny gate"
    assert sorted(path.name for path in run.plots_dir.iterdir()) == GATE_FILES


def test_gate_matches_the_loaded_model(evaluated, digits):
    run, result = evaluated
    gate = result.summary.by_key["gate"]
    logits, trace = load(run.path)(digits.test.images)
    right = (logits.argmax(dim=1) == digits.test.labels).double()
    assert gate.accuracy == pytest.approx(100 * right.mean().item())
    assert gate.computation == pytest.approx(trace.computation.mean().item())
    assert trace.computation.max() <= 60.0


def test_stored_summary_lasts_until_a_change(evaluated, copied, digits, stored):
    first = evaluated[1]
    written = (copied.path / "summary.json").stat().st_mtime_ns
    again = evaluate(copied, digits)
    assert again.stored
    assert again.summary == first.summary
    assert again.path.stat().st_mtime_ns == written

    messages = []
    write_gate(copied, stored.backbone, 2)
    third = evaluate(copied, digits, progress=messages.append)
    assert not third.stored
    assert third.summary.identity != first.summary.identity
    assert any("other weights" in text for text in messages)
    assert evaluate(copied, digits, search=SHORT).summary.search.tables <= 12


def test_stored_summary_lacks_no_baseline(evaluated, copied, digits, monkeypatch):
    monkeypatch.setitem(
        BASELINES,
        "twin",
        lambda setup: [replace(setup.uniform[1], key="twin", label="twin", role="matched")],
    )
    again = evaluate(copied, digits)
    assert not again.stored
    assert set(again.summary.by_key) == {*evaluated[1].summary.by_key, "twin"}


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', f'{{"format": {FORMAT}}}'])
def test_damaged_summary_is_replaced(evaluated, copied, digits, damage):
    (copied.path / "summary.json").write_text(damage)
    again = evaluate(copied, digits)
    assert not again.stored
    assert again.summary == evaluated[1].summary


def test_val_split_has_its_own_files(make_run, tmp_path, digits):
    run = make_run(tmp_path / "run")
    result = evaluate(run, digits, split="val", search=SHORT)
    assert result.path == run.path / "summary-val.json"
    assert result.summary.n == len(digits.val)
    assert not (run.path / "summary.json").exists()
    names = sorted(path.name for path in run.plots_dir.iterdir())
    assert names == [f"val-{name}" for name in GATE_FILES]


def test_another_precision_has_its_own_files(copied, digits):
    before = (copied.path / "summary.json").read_bytes()
    result = evaluate(copied, digits, search=SHORT, precision="bfloat16")
    assert result.path == copied.path / "summary-bfloat16.json"
    assert (copied.path / "summary.json").read_bytes() == before


def test_each_budget_of_a_gate_has_its_own_files(make_run, tmp_path, digits):
    conditioning = BudgetConditioning(computations=(0.5, 60.0))
    folder = make_run(tmp_path / "run", budget_conditioning=conditioning)
    own = evaluate(folder, digits, search=SHORT)
    low = evaluate(folder, digits, search=SHORT, budget=0.5)
    assert (own.path.name, low.path.name) == ("summary.json", "summary-at-0.5.json")
    assert low.results_path.name == "outcomes-at-0.5.safetensors"
    names = {path.name for path in folder.plots_dir.glob("*.png")}
    assert names == {*GATE_FILES, *(f"at-0.5-{name}" for name in GATE_FILES)}
    assert evaluate(folder, digits, search=SHORT, budget=0.5).stored
    assert "cost 0.5 %;" in low.summary.methods[0].detail
    _, trace = load(folder.path, budget=0.5)(digits.test.images)
    assert low.summary.methods[0].computation == pytest.approx(float(trace.computation.mean()))
    with pytest.raises(ConfigError, match=r"budget is 0\.2 %"):
        evaluate(folder, digits, budget=0.2)
    assert evaluate(folder, digits, search=SHORT, budget=60.0).path.name == "summary-at-60.json"
    files = sorted(folder.path.rglob("*"))
    with pytest.raises(ConfigError, match=r"budget is 500 %.* 0\.5 % to 60 %"):
        evaluate(folder, digits, budget=500.0)
    assert sorted(folder.path.rglob("*")) == files


def test_budget_that_a_gate_does_not_have_names_the_run(evaluated, capsys):
    run = evaluated[0].path
    assert main([str(run), "--budget", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run}: budget is 2 %, but gate 'tiny gate' is not budget-cond")
    assert said.endswith("; leave it out.\n")


def test_only_the_named_baselines_run(evaluated, copied, digits, monkeypatch):
    whole = (copied.path / "summary.json").read_bytes()
    monkeypatch.setitem(BASELINES, "static_table", None)  # fails if it is called
    names, started = ["random", "cascade"], []
    found = evaluate(copied, digits, baselines=names, progress=started.append)
    assert [text for text in started if "baseline" in text] == [
        "baseline cascade",
        "baseline random",
    ]
    expected = [m for m in evaluated[1].summary.methods if m.key in {"gate", *names}]
    assert list(found.summary.methods) == expected
    assert found.path.name == "summary-only-cascade-random.json"
    assert (copied.path / "plots" / "only-cascade-random-accuracy.png").is_file()
    assert (copied.path / "summary.json").read_bytes() == whole
    for same in (["cascade", "random"], (name for name in [*names, "cascade"])):
        assert evaluate(copied, digits, baselines=same).stored
    with pytest.raises(ConfigError, match="'exits' does not apply"):
        evaluate(copied, digits, baselines=["exits"])


def test_backbone_alone_gets_uniform_options(make_run, tmp_path, digits):
    run = make_run(tmp_path / "run", "train_backbone", gate_seed=None)
    result = evaluate(run, digits)
    assert result.path == run.path / "summary-test.json"
    assert {method.role for method in result.summary.methods} == {"fixed"}
    assert [path.name for path in run.plots_dir.iterdir()] == ["test-accuracy.png"]
    with pytest.raises(ConfigError, match=r"budget is 2 %.* no gate"):
        evaluate(run, digits, budget=2.0)
    with pytest.raises(ConfigError, match=r"baselines is \['cascade'\].* no gate"):
        evaluate(run, digits, baselines=["cascade"])


def test_runs_that_cannot_be_evaluated_are_refused(make_run, tmp_path, evaluated, digits):
    run = evaluated[0]
    changed = replace(digits, test=ImageSet(255 - digits.test.images, digits.test.labels))
    with pytest.raises(DataError, match="images, labels or splits differ"):
        evaluate(run, changed)
    with pytest.raises(ConfigError, match="device is 'abacus'"):
        evaluate(run, digits, device="abacus")
    with pytest.raises(ConfigError, match="budget"):  # a gate for one budget
        evaluate(run, digits, budget=2.0)
    without_gate = make_run(tmp_path / "a", gate_seed=None)
    (without_gate.path / TRAINING_FILE).touch()
    with pytest.raises(CheckpointError, match="'gate'"):
        evaluate(without_gate, digits)
    with pytest.raises(DataError, match="with --dataset"):
        evaluate(make_run(tmp_path / "b", dataset="no/such/folder"))
    with pytest.raises(RunFolderError):
        evaluate_run(EvaluateConfig(run=tmp_path))


def test_command_prints_the_stored_table_again(copied, capsys):
    assert main([str(copied.path), "--search.tables", "20"]) == 0
    first = capsys.readouterr()
    assert "tiny gate" in first.out
    assert "random, same marginals" in first.out
    assert "Written to" in first.err
    assert main([str(copied.path), "--search.tables", "20"]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "Stored in" in second.err


def test_cache_changes_no_figure(make_run, tmp_path, digits):
    runs = [make_run(tmp_path / str(seed), gate_seed=seed) for seed in (1, 7)]
    expected = [evaluate(run, digits, search=SHORT).summary for run in runs]
    cache = EvaluationCache()
    for run, summary in zip(runs, expected, strict=True):
        (run.path / "summary.json").unlink()
        found = evaluate(run, digits, search=SHORT, cache=cache)
        assert not found.stored
        assert found.summary == summary


@pytest.mark.parametrize("kind", ["train_agent", "train_backbone"])
def test_an_unfinished_training_is_named(make_run, tmp_path, capsys, kind):
    run = make_run(tmp_path / "run", kind, gate_seed=None).path
    if kind == "train_backbone":
        (run / "backbone" / "backbone.json").unlink()  # written last
    readers = [load] if kind == "train_agent" else [load, load_backbone]
    for read in [*readers, lambda path: evaluate_run(EvaluateConfig(run=path))]:
        with pytest.raises(RunFolderError, match=f"dfs_rl.{kind} --resume {run}"):
            read(run)
    assert main([str(run)]) == 2
    assert f"--resume {run}" in capsys.readouterr().err


def test_the_best_gate_so_far_comes_with_a_warning(make_run, tmp_path, capsys):
    run = make_run(tmp_path / "run", gate_seed=1).path
    (run / TRAINING_FILE).unlink()
    load(run)
    assert f"--resume {run}" in capsys.readouterr().err
    (run / "run.json").write_text("{")  # the gate is intact
    load(run)
    assert not capsys.readouterr().err


def test_a_budget_that_is_not_held_is_told(make_run, tmp_path, digits):
    run = make_run(tmp_path / "run", budget_conditioning=BudgetConditioning())
    (run.path / TRAINING_FILE).unlink()
    run.replace_config(TrainConfig(budget=0.8))
    summary = evaluate(run, digits, baselines="mode_table").summary
    gate = summary.by_key["gate"]
    assert "not calibrated" in gate.detail
    assert gate.computation > 0.8
    assert f"The gate costs {gate.computation:.3g} %" in summary.verdict[0]
    assert "budget of 0.8 %" in summary.verdict[0]
