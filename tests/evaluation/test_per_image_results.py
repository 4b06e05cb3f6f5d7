import pytest
import torch

from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.baselines.methods import (
    MethodResult,
    matched_cost_baselines,
    uniform_baselines,
)
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.per_image_results import (
    load_per_image_results,
    per_image_results_of,
    save_per_image_results,
)
from dfs_rl.utils.checkpoint import save_tensors


@pytest.fixture
def methods(backbone, evaluation_setup, look_gate):
    gate, selected = (
        evaluate_gate(backbone, look_gate(), images)
        for images in (evaluation_setup.reported, evaluation_setup.selection)
    )
    uniform = uniform_baselines(
        backbone, evaluation_setup.reported, selection=evaluation_setup.selection
    )
    baselines = matched_cost_baselines(
        backbone, evaluation_setup, gate=gate, gate_selection=selected, uniform=uniform
    )
    first = MethodResult(key="gate", label="gate", role="gate", records=(gate,), selection=selected)
    return [first, *uniform, *baselines]


def test_outcomes_are_means_over_draws_on_both_splits(backbone, methods, tmp_path):
    save_per_image_results(
        tmp_path / "o.safetensors", per_image_results_of(methods, backbone.costs)
    )
    results = load_per_image_results(tmp_path / "o.safetensors")
    assert set(results.reported) == {method.key for method in methods}
    # What could be shipped: everything but the mode table and the shuffles.
    assert set(results.selection) == {m.key for m in methods} - {
        "mode_table",
        "random",
        "patterns",
    }
    for method in methods:
        found = results.reported[method.key]
        accuracy = sum(r.accuracy for r in method.records) / len(method.records)
        assert 100 * found.correct.mean().item() == pytest.approx(accuracy, rel=1e-5)
        cost = sum(r.computation(backbone.costs).mean().item() for r in method.records)
        assert found.computation.mean().item() == pytest.approx(
            cost / len(method.records), rel=1e-5
        )
        if method.selection is not None:
            chosen = results.selection[method.key]
            assert torch.equal(chosen.correct, method.selection.correct.float())
            assert len(chosen.computation) == 157


def test_the_static_table_is_as_good_on_val_as_its_search_says(backbone, methods):
    static = next(method for method in methods if method.key == "static_table")
    assert static.selection.accuracy == pytest.approx(static.search.accuracy)


def test_other_files_are_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="does not hold the outcomes"):
        load_per_image_results(tmp_path / "x.safetensors")
