"""TensorBoard of the training of a gate, read from its event files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.agents.validation import Validator
from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.experiments import session
from dfs_rl.experiments.session import (
    RunSession,
    validation_pictures,
    validation_scalars,
    write_hyperparameters,
)
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning, preference_grid
from dfs_rl.gating.loading import GATE_FOLDER
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.planted_task import OPTIONS, PlantedBackbone, planted_images

BIT_OPTIONS = BitOptions(OPTIONS)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    path = tmp_path / "run"
    return RunFolder.create(path, kind="test", name="test", config=PPOConfig(), command=("test",))


def events(run: RunFolder) -> EventAccumulator:
    return EventAccumulator(str(run.tensorboard_dir)).Reload()


def scalars(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    found = events(run)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def two_passes(last: tuple[int, int]) -> RuleGate:
    """Return a gate that runs every image at 16 bit, and again at the options ``last``."""
    rule = Rule(passes=(RulePass(options=(1, 1)), RulePass(options=last)), thresholds=(2.0,))
    return RuleGate((rule,), answer="last", options=BIT_OPTIONS)


def validate(run: RunFolder, *gates) -> None:
    """Validate gates one after the other, at the steps 0, 10 and so on."""
    trained: RunSession[None] = RunSession(run, None)
    trained.open_board(purge_step=None)
    trained.keep = lambda _: None
    validator = Validator(
        planted_images(),
        reward=lambda records, _: records.correct.double(),
        every=1,
        total=100,
        backbone=PlantedBackbone,
    )
    trained.validate_on(validator, ("no", "yes"))
    for i, gate in enumerate(gates):
        trained.validate(gate, 10 * i)
    trained.writer.close()


def test_bits_of_each_layer_at_each_validation(run):
    validate(run, *(TableGate(t, options=BIT_OPTIONS, name="t") for t in ((0, 1), (2, 1))))
    found = scalars(run)
    assert found["bits/layer_1"] == [(0, 0.0), (10, 32.0)]
    assert found["bits/layer_2"] == [(0, 16.0), (10, 16.0)]
    assert [step for step, _ in found["val/accuracy"]] == [0, 10]
    assert not any(tag.startswith("passes/") for tag in found)


def test_bits_and_passes_of_a_gate_with_several_passes(run):
    validate(run, two_passes((2, 0)))
    found = scalars(run)
    assert found["bits/layer_1"] == [(0, 24.0)]  # 16 bit, then 32 bit
    assert found["bits/layer_2"] == [(0, 8.0)]
    assert found["passes/mean"] == [(0, 2.0)]
    assert found["passes/pass_2"] == [(0, 100.0)]


def test_layers_behind_an_exit_have_no_bits():
    costs = CostTable(
        options=BIT_OPTIONS, layer_macs=(100,) * 12, exits=(ExitCost(after=1, macs=6, bits=8),)
    )
    options = torch.tensor([[2] + [3] * 11, [2] + [1] * 11, [1] + [3] * 11, [1] + [0] * 11])
    zeros = torch.zeros(4, dtype=torch.int64)
    records = GateRecords(
        name="gate",
        predictions=zeros,
        labels=zeros,
        options=options,
        log_likelihood=torch.zeros(4),
        confidence=torch.ones(4),
    )
    figures = dict.fromkeys(("accuracy", "computation", "reward", "patterns"), 1.0)
    record = {**figures, "histogram": records.histogram(costs.n_actions).tolist()}
    found = validation_scalars(record, records, costs)
    assert found["bits/layer_01"] == 24.0
    assert found["bits/layer_12"] == 4.0


def test_samples_are_the_first_images_with_their_bits(run, monkeypatch):
    drawn = []
    plot = session.images_plot

    def spy(*arguments):
        drawn.append(arguments)
        return plot(*arguments)

    monkeypatch.setattr(session, "validation_pictures", validation_pictures)
    monkeypatch.setattr(session, "images_plot", spy)
    validate(run, two_passes((2, 0)), two_passes((0, 2)))
    found = events(run)
    assert set(found.Tags()["images"]) == {"val/options", "val/samples"}
    assert [event.step for event in found.Images("val/samples")] == [0, 10]
    pixels = np.asarray(Image.open(io.BytesIO(found.Images("val/samples")[0].encoded_image_string)))
    assert pixels.ndim == 3
    images = planted_images()
    for last, (rows, records, shown, _, names) in zip(([2, 0], [0, 2]), drawn, strict=True):
        assert list(*rows.values()) == list(range(8))
        assert names == ("no", "yes")
        assert torch.equal(records.labels[:8], images.labels[:8])
        assert torch.equal(shown[:8], images.images[:8])
        assert records.earlier.options[:8].tolist() == [[[1, 1]]] * 8
        assert records.options[:8].tolist() == [last] * 8


@pytest.mark.parametrize(
    ("preference", "point"), [(0.0, (0.5, 80.0)), (0.49, (0.5, 80.0)), (0.5, (1.0, 90.0))]
)
def test_hyperparameters_with_the_result(run, preference, point):
    points = ((0.5, 80.0), (1.0, 90.0), (2.0, 95.0))
    costs, accuracies = zip(*points, strict=True)
    gate = RuleGate(
        [Rule(passes=(RulePass(options=(option, option)),)) for option in range(3)],
        answer="last",
        options=BIT_OPTIONS,
        budget_conditioning=BudgetConditioning(
            preferences=preference_grid(3),
            computations=costs,
            accuracies=accuracies,
            full_precision_accuracy=95.0,
        ),
        preference=preference,
    )
    save_gate(gate, run.path / GATE_FOLDER)
    write_hyperparameters(run, {"timesteps": 300}, points)
    found = scalars(run)
    assert found["final/val_computation"] == [(300, point[0])]
    assert found["final/val_accuracy"] == [(300, point[1])]
    content = events(run).PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    settings = started.session_start_info.hparams
    assert settings["clip_range"].number_value == PPOConfig().clip_range
    assert settings["n_epochs"].number_value == PPOConfig().n_epochs
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"final/val_accuracy", "final/val_computation"}
