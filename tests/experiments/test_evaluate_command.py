import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from dfs_rl.backbones import BackboneInfo, ResNet, ResNetConfig, save_backbone
from dfs_rl.data import Dataset, ImageSet, channel_statistics, load_dataset
from dfs_rl.errors import CheckpointError, ConfigError, DataError, RunFolderError
from dfs_rl.evaluate import main
from dfs_rl.evaluation.cache import EvaluationCache
from dfs_rl.evaluation.static_tables.config import SearchConfig
from dfs_rl.evaluation.summary import FORMAT
from dfs_rl.experiments.evaluation import evaluate_run
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import load
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.run_folder import RunFolder

GATE_FILES = ["accuracy.png", "images.png", "options.png"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    dataset: str = "digits"
    seed: int = 0


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def save_gate_of(seed, folder, backbone, budget=None):
    torch.manual_seed(seed)
    gate = MLPGate(
        backbone.feature_sizes, backbone.options, hidden=4, budget=budget, name="tiny gate"
    )
    save_gate(gate, folder.path / "gate")


@pytest.fixture
def make_run(tmp_path, digits):
    """Returns a function that writes a run with an untrained backbone and gate."""

    def make(kind="train_agent", *, gate=True, budget=None, dataset="digits"):
        folder = RunFolder.create(
            tmp_path / kind,
            kind=kind,
            name="run",
            config=TrainConfig(dataset=dataset),
            command=["test"],
        )
        torch.manual_seed(0)
        config = ResNetConfig(
            depth=8, width=4, in_channels=1, image_size=(8, 8), bits=(0, 2, 4, 32)
        )
        backbone = ResNet(config, channel_statistics(digits.train.images)).eval()
        info = BackboneInfo(
            dataset="digits", fingerprint=digits.fingerprint, class_names=digits.class_names
        )
        save_backbone(backbone, info, folder.path / "backbone")
        if gate:
            save_gate_of(1, folder, backbone, budget)
        return folder

    return make


def test_a_run_gets_its_summary_and_pictures(make_run, digits):
    run = make_run()
    result = evaluate_run(run, dataset=digits)
    assert not result.stored
    assert result.path == run.path / "summary.json"
    summary = result.summary
    assert [method.key for method in summary.methods] == [
        "gate",
        "uniform_0",
        "uniform_2",
        "uniform_4",
        "full",
        "static_table",
        "cascade",
        "mode_table",
        "random",
        "patterns",
        "oracle",
    ]
    assert (summary.split, summary.n, summary.dataset) == ("test", len(digits.test), "digits")
    stored = json.loads(result.path.read_text())
    assert stored["methods"][0]["label"] == "tiny gate"
    assert sorted(path.name for path in run.plots_dir.iterdir()) == GATE_FILES
    for path in run.plots_dir.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_the_gate_is_the_one_that_the_library_loads(make_run, digits):
    run = make_run(budget=60.0)
    gate = evaluate_run(run.path, dataset=digits).summary.method("gate")
    logits, trace = load(run.path)(digits.test.images)
    right = (logits.argmax(dim=1) == digits.test.labels).double()
    assert gate.accuracy == pytest.approx(100 * right.mean().item())
    assert gate.computation == pytest.approx(trace.computation.mean().item())
    assert trace.computation.max() <= 60.0


def test_a_second_look_runs_nothing_until_something_changes(make_run, digits):
    run = make_run()
    first = evaluate_run(run, dataset=digits)
    written = first.path.stat().st_mtime_ns
    again = evaluate_run(run, dataset=digits)
    assert again.stored
    assert again.summary == first.summary
    assert first.path.stat().st_mtime_ns == written

    said = []
    save_gate_of(2, run, load(run.path).backbone)
    third = evaluate_run(run, dataset=digits, progress=said.append)
    assert not third.stored
    assert third.summary.identity != first.summary.identity
    assert any("other weights" in text for text in said)

    search = SearchConfig(tables=7)
    assert evaluate_run(run, dataset=digits, search=search).summary.search.tables <= 7


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', f'{{"format": {FORMAT}}}'])
def test_a_damaged_summary_is_made_anew(make_run, digits, damage):
    run = make_run()
    first = evaluate_run(run, dataset=digits)
    first.path.write_text(damage)
    again = evaluate_run(run, dataset=digits)
    assert not again.stored
    assert again.summary == first.summary


def test_the_val_split_has_files_of_its_own(make_run, digits):
    run = make_run()
    result = evaluate_run(run, dataset=digits, split="val")
    assert result.path == run.path / "summary-val.json"
    assert result.summary.n == len(digits.val)
    assert not (run.path / "summary.json").exists()
    names = sorted(path.name for path in run.plots_dir.iterdir())
    assert names == [f"val-{name}" for name in GATE_FILES]


def test_a_gate_for_all_budgets_is_turned_and_each_budget_has_files_of_its_own(make_run, digits):
    folder = make_run()
    backbone = load(folder.path).backbone
    torch.manual_seed(1)
    budget_conditioning = BudgetConditioning(computations=(0.5, 60.0))
    gate = MLPGate(
        backbone.feature_sizes, backbone.options, hidden=4, budget_conditioning=budget_conditioning
    )
    save_gate(gate, folder.path / "gate")
    short = SearchConfig(tables=4)
    own = evaluate_run(folder, dataset=digits, search=short)
    low = evaluate_run(folder, dataset=digits, search=short, budget=0.5)
    assert (own.path.name, low.path.name) == ("summary.json", "summary-at-0.5.json")
    assert low.results_path.name == "outcomes-at-0.5.safetensors"
    names = {path.name for path in (folder.path / "plots").glob("*.png")}
    assert names == {*GATE_FILES, *(f"at-0.5-{name}" for name in GATE_FILES)}
    assert evaluate_run(folder, dataset=digits, search=short, budget=0.5).stored
    assert low.summary.methods[0].detail.endswith("images of the validation split cost 0.5 %")
    # The figures are those of the gate at that position.
    _, trace = load(folder.path, budget=0.5)(digits.test.images)
    assert low.summary.methods[0].computation == pytest.approx(float(trace.computation.mean()))
    with pytest.raises(ConfigError, match=r"budget 0.2 % is below the smallest computation"):
        evaluate_run(folder, dataset=digits, budget=0.2)


def test_only_a_gate_for_all_budgets_is_turned(make_run, digits):
    with pytest.raises(ConfigError, match="is not budget-conditioned"):
        evaluate_run(make_run(), dataset=digits, budget=2.0)
    with pytest.raises(ConfigError, match="has no gate to turn"):
        evaluate_run(make_run("train_backbone", gate=False), dataset=digits, budget=2.0)


def test_a_backbone_alone_gets_its_uniform_options(make_run, digits):
    run = make_run("train_backbone", gate=False)
    result = evaluate_run(run, dataset=digits)
    assert result.path == run.path / "summary-test.json"
    assert {method.role for method in result.summary.methods} == {"fixed"}
    assert [path.name for path in run.plots_dir.iterdir()] == ["accuracy.png"]


def test_a_run_without_a_gate_is_refused(make_run, digits):
    with pytest.raises(CheckpointError, match="'gate'"):
        evaluate_run(make_run(gate=False), dataset=digits)


def test_other_images_are_refused(make_run, digits):
    changed = Dataset(
        name="digits",
        class_names=digits.class_names,
        train=digits.train,
        agent=digits.agent,
        val=digits.val,
        test=ImageSet(255 - digits.test.images, digits.test.labels),
        flip=False,
    )
    with pytest.raises(DataError, match="is not the one that the backbone"):
        evaluate_run(make_run(), dataset=changed)


def test_a_data_set_that_is_gone_is_asked_for(make_run):
    run = make_run(dataset="no/such/folder")
    with pytest.raises(DataError, match="say where it is with --dataset"):
        evaluate_run(run)


def test_a_device_that_is_not_there_is_refused(make_run, digits):
    with pytest.raises(ConfigError, match="device is 'abacus', which torch does not find"):
        evaluate_run(make_run(), dataset=digits, device="abacus")


def test_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        evaluate_run(tmp_path)


def test_the_command_prints_the_table_and_the_stored_one_again(make_run, capsys):
    run = make_run()
    assert main([str(run.path), "--search.tables", "20"]) == 0
    first = capsys.readouterr()
    assert "tiny gate" in first.out
    assert "random, same marginals" in first.out
    assert "Written to" in first.err
    assert main([str(run.path), "--search.tables", "20"]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "have changed" in second.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "holds no run"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--search.finalists", "0"], "finalists is 0"),
        (["--split", "train"], "split"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys, flags, said):
    assert main([str(tmp_path), *flags]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom dfs_rl.evaluate import main\n"
        "assert main(['--help']) == 0\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--split" in done.stdout


def test_what_evaluations_have_in_common_changes_no_figure(make_run, digits):
    alone, other = make_run(), make_run("train_gumbel")
    save_gate_of(7, other, load(other.path).backbone)
    short = SearchConfig(tables=12)
    expected = [evaluate_run(run, dataset=digits, search=short).summary for run in (alone, other)]
    cache = EvaluationCache()
    for run, summary in zip((alone, other), expected, strict=True):
        (run.path / "summary.json").unlink()
        found = evaluate_run(run, dataset=digits, search=short, cache=cache)
        assert not found.stored
        assert found.summary == summary
