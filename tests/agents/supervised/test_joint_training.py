"""Gate and backbone learn together: each from images of its own, by one backward pass, and goes on exactly where it was stopped."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.cotraining import CoTrainer, gated_rollout
from dfs_rl.agents.cotraining_config import CoTrainConfig, LabelCoTrainConfig
from dfs_rl.agents.supervised.config import RelaxedMethod, SupervisedConfig
from dfs_rl.agents.supervised.relaxed import RelaxedTrainer
from dfs_rl.agents.supervised.trainer import GateTask
from dfs_rl.backbones import ResNet, load_backbone
from dfs_rl.data import Dataset, ImageSet
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.experiments.supervised_training import TrainGumbelConfig
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.training.calibration import calibrate_scales
from dfs_rl.utils.run_folder import LAST_CHECKPOINT
from dfs_rl.utils.seeding import torch_generator
from tests.agents.supervised.test_gumbel import PER_STEP, TRAINERS, make_config, new_run, train
from tests.experiments.test_resume import assert_equal_runs, make_dataset, make_stored
from tests.helpers.pictures import no_pictures

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)

LABELS_ALONE = LabelCoTrainConfig(batch_size=8)
BOTH_LOSSES = LabelCoTrainConfig(batch_size=8, distillation=1.0, full_precision=1.0)


@pytest.fixture
def dataset() -> Dataset:
    """Three classes told apart by their brightness."""
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> ImageSet:
        labels = torch.arange(n) % 3
        noise = torch.randint(50, (n, 1, 8, 8), generator=generator)
        return ImageSet((noise + 100 * labels[:, None, None, None]).to(torch.uint8), labels)

    splits = {name: images(36) for name in ("train", "agent", "val", "test")}
    return Dataset(name="brightness", class_names=("a", "b", "c"), flip=True, **splits)


def make_trainer(
    dataset: Dataset,
    *,
    cotrain: CoTrainConfig | None,
    method: RelaxedMethod = "gumbel",
    **changes: float,
) -> tuple[RelaxedTrainer, ResNet]:
    """Return the trainer of a gate on an untrained backbone, and that."""
    backbone = make_stored(dataset).backbone
    calibrate_scales(backbone, dataset.train.images, parts=[backbone])
    if cotrain is None:
        backbone.requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    gate = MLPGate(backbone.feature_sizes, backbone.options, hidden=4)
    task = GateTask(
        backbone=backbone,
        frozen=backbone.to_inference(),
        gate=gate,
        images=dataset.agent,
        target=lambda preferences: torch.full_like(preferences, 0.3),
        steps=60,
        seed=0,
    )
    cotrainer = cotrain and CoTrainer(
        cotrain, backbone, dataset, seed=0, budget=None, greedy=method == "dfs"
    )
    config = SupervisedConfig(**({"batch_size": 18} | changes))  # type: ignore[arg-type]
    return TRAINERS[method](config, task, cotrainer), backbone


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def are_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_in_one_step_the_gate_learns_as_on_a_frozen_backbone(dataset: Dataset) -> None:
    alone, _ = make_trainer(dataset, cotrain=None)
    together, _ = make_trainer(dataset, cotrain=CoTrainConfig(batch_size=8))
    before = copied(alone.gate.state_dict())
    losses = [trainer.step() for trainer in (alone, together)]
    assert not are_equal(alone.gate.state_dict(), before)
    assert are_equal(alone.gate.state_dict(), together.gate.state_dict())
    assert losses[0] == losses[1]._replace(backbone=None)
    assert losses[1].backbone is not None


def test_in_one_step_the_weights_follow_the_gradient_on_their_own_images_alone(
    dataset: Dataset,
) -> None:
    trainer, backbone = make_trainer(dataset, cotrain=LABELS_ALONE)
    other = copy.deepcopy(backbone)
    gate = copy.deepcopy(trainer.gate)
    trainer.step()

    weights = [p for p in other.parameters() if p.requires_grad]
    teacher = CoTrainer(LABELS_ALONE, other, dataset, seed=0, budget=None)
    images, labels = teacher._batch()
    draws = torch_generator(0, "co-train options", 0)  # those of the first step
    walked = gated_rollout(other, gate, images, draws, budget=None)
    optimizer = torch.optim.Adam(weights, lr=LABELS_ALONE.learning_rate)
    functional.cross_entropy(walked, labels).backward()
    optimizer.step()
    assert are_equal(other.state_dict(), backbone.state_dict())


@pytest.mark.parametrize("method", ["gumbel", "dfs"])
def test_the_frozen_form_is_renewed_with_the_weights(
    dataset: Dataset, method: RelaxedMethod
) -> None:
    trainer, backbone = make_trainer(
        dataset, cotrain=LABELS_ALONE, method=method, learning_rate=0.3
    )
    first = trainer.frozen
    while trainer.step().backbone is None:
        assert trainer.frozen is first  # of dfs: the gate alone learns to execute everything
    hidden = first.stem(dataset.val.images)
    before, now, expected = (
        form.layers[0](hidden, 8) for form in (first, trainer.frozen, backbone.to_inference())
    )
    assert torch.equal(now, expected)
    assert not torch.equal(now, before)


def test_a_backbone_that_knows_nothing_learns_with_its_gate_and_within_the_budget(
    dataset: Dataset,
) -> None:
    accuracies = []
    for cotrain in (None, CoTrainConfig(batch_size=36, learning_rate=0.02, distillation=0.0)):
        trainer, _ = make_trainer(dataset, cotrain=cotrain, method="dfs", learning_rate=0.1)
        for _ in range(60):
            trainer.step()
        records = evaluate_gate(trainer.frozen, trainer.gate, dataset.val)
        accuracies.append(records.accuracy)
    costs = trainer.frozen.costs
    assert accuracies[0] < 70.0 < 95.0 <= accuracies[1]
    assert float(costs.fractions(records.options).mean()) <= 0.3 * 1.2


# A gate that learns fast executes everything after two or three steps, from where dfs teaches the backbone as well.
FAST = SupervisedConfig(batch_size=8, learning_rate=0.3, multiplier=1.0)


@pytest.mark.parametrize(
    "config",
    [
        make_config(
            method="dfs", gate="ff", training=FAST, backbone_mode="co-train", cotrain=LABELS_ALONE
        ),
        make_config(fixed_budget=False, backbone_mode="co-train", cotrain=BOTH_LOSSES),
    ],
    ids=["dfs", "gumbel-all"],
)
def test_ctrl_c_saves_and_the_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, config: TrainGumbelConfig
) -> None:
    config = lengthened(config)
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    result = train(whole, config)
    with pytest.raises(KeyboardInterrupt):
        train(parts, config, stop_at=6 * PER_STEP)
    assert 0 < parts.load_checkpoint(LAST_CHECKPOINT).state["trainer"]["backbone_steps"] <= 6
    assert train(parts, config) == result
    assert_equal_runs(whole, parts)
    weights = [load_backbone(run.path / "backbone").state_dict() for run in (whole, parts)]
    assert are_equal(*weights)
    assert 3 * 8 < result.images_seen["backbone"] <= result.images_seen["gate"] == 10 * 8


@pytest.mark.parametrize("method", ["dfs", "gumbel"])
def test_the_gate_is_kept_with_the_weights_that_it_was_best_on(
    tmp_path: Path, method: RelaxedMethod
) -> None:
    # The weights of no two steps are alike.
    cotrain = replace(BOTH_LOSSES, learning_rate=0.05)
    config = lengthened(
        make_config(
            method=method, gate="ff", training=FAST, backbone_mode="co-train", cotrain=cotrain
        )
    )
    run = new_run(tmp_path / "run")
    best = train(run, config).best
    kept = load_backbone(run.path / "backbone").eval()
    records = evaluate_gate(kept.to_inference(), load_gate(run.path / "gate"), make_dataset().val)
    assert records.accuracy == best["accuracy"]
    assert float(records.computation(kept.costs).mean()) == best["computation"]


def lengthened(config: TrainGumbelConfig) -> TrainGumbelConfig:
    """Give the gate as many steps as it has without a backbone that learns."""
    return replace(config, timesteps=2 * config.timesteps)
