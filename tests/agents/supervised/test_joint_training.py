"""Joint training of gate and backbone: one backward pass, separate images, exact resumption."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from dfs_rl.agents.cotraining import CoTrainer, gated_rollout
from dfs_rl.agents.hyperparameters import CoTrainConfig, LabelCoTrainConfig
from dfs_rl.agents.supervised.config import SUPERVISED_METHODS, GumbelConfig
from dfs_rl.agents.supervised.trainer import GateTask
from dfs_rl.backbones import load_backbone
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.training.calibration import calibrate_scales
from dfs_rl.utils.seeding import torch_generator
from tests.agents.supervised.test_gumbel import (
    PER_STEP,
    TRAINERS,
    assert_resumes,
    make_config,
    new_run,
    train,
)
from tests.experiments.test_resume import make_dataset, untrained
from tests.helpers.brightness import brightness
from tests.helpers.pictures import no_pictures

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)

LABELS_ALONE = LabelCoTrainConfig(batch_size=8)
BOTH_LOSSES = LabelCoTrainConfig(batch_size=8, distillation=1.0, full_precision=1.0)


@pytest.fixture
def dataset():
    return brightness()


def make_trainer(dataset, *, cotrain, method="gumbel", **changes):
    """Return the trainer of a gate on an untrained backbone, and the backbone."""
    backbone = copy.deepcopy(untrained()).backbone
    calibrate_scales(backbone, dataset.train.images, parts=[backbone])
    if cotrain is None:
        backbone.requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    task = GateTask(
        backbone=backbone,
        frozen=backbone.to_inference(),
        gate=MLPGate(backbone.feature_sizes, backbone.options, hidden=4),
        images=dataset.agent,
        target=lambda preferences: torch.full_like(preferences, 0.3),
        steps=60,
        seed=0,
    )
    cotrainer = cotrain and CoTrainer(
        cotrain, backbone, dataset, seed=0, budget=None, greedy=method == "dfs"
    )
    config = SUPERVISED_METHODS[method](**({"batch_size": 18} | changes))
    return TRAINERS[method](config, task, cotrainer), backbone


def are_equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_gate_learns_as_on_a_frozen_backbone(dataset):
    alone, _ = make_trainer(dataset, cotrain=None)
    together, _ = make_trainer(dataset, cotrain=CoTrainConfig(batch_size=8))
    before = copy.deepcopy(alone.gate.state_dict())
    losses = [trainer.step() for trainer in (alone, together)]
    assert not are_equal(alone.gate.state_dict(), before)
    assert are_equal(alone.gate.state_dict(), together.gate.state_dict())
    assert losses[0] == {**losses[1], "backbone": None}
    assert losses[1]["backbone"] is not None


def test_backbone_learns_from_its_own_images_alone(dataset):
    trainer, backbone = make_trainer(dataset, cotrain=LABELS_ALONE)
    other, gate = copy.deepcopy(backbone), copy.deepcopy(trainer.gate)
    trainer.step()

    weights = [p for p in other.parameters() if p.requires_grad]
    teacher = CoTrainer(LABELS_ALONE, other, dataset, seed=0, budget=None)
    images, labels = teacher._batch()
    draws = torch_generator(0, "co-train options", 0)  # those of the first step
    logits = gated_rollout(other, gate, images, draws, budget=None)
    optimizer = torch.optim.Adam(weights, lr=LABELS_ALONE.learning_rate)
    functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    assert are_equal(other.state_dict(), backbone.state_dict())


@pytest.mark.parametrize("method", ["gumbel", "dfs"])
def test_inference_form_follows_the_weights(dataset, method):
    trainer, backbone = make_trainer(
        dataset, cotrain=LABELS_ALONE, method=method, learning_rate=0.3
    )
    first = trainer.frozen
    while trainer.step()["backbone"] is None:
        assert trainer.frozen is first  # the first phase of DFS
    hidden = first.stem(dataset.val.images)
    before, now, expected = (
        form.layers[0](hidden, 8) for form in (first, trainer.frozen, backbone.to_inference())
    )
    assert torch.equal(now, expected)
    assert not torch.equal(now, before)


def test_untrained_backbone_learns_with_its_gate(dataset):
    accuracies = []
    for cotrain in (None, CoTrainConfig(batch_size=36, learning_rate=0.02, distillation=0.0)):
        trainer, _ = make_trainer(dataset, cotrain=cotrain, method="dfs", learning_rate=0.1)
        for _ in range(60):
            trainer.step()
        records = evaluate_gate(trainer.frozen, trainer.gate, dataset.val)
        accuracies.append(records.accuracy)
    assert accuracies[0] < 70.0 < 95.0 <= accuracies[1]
    assert float(trainer.frozen.costs.fractions(records.options).mean()) <= 0.3 * 1.2


# --- runs


def joint_config(**changes):
    """Return a configuration whose gate has as many steps as with a frozen backbone."""
    method = SUPERVISED_METHODS[changes.get("method", "gumbel")]
    # At this learning rate the gate of DFS executes everything after two or three steps.
    fast = method(batch_size=8, learning_rate=0.3, multiplier=1.0)
    return make_config(
        **({"backbone_mode": "co-train", "timesteps": 20 * PER_STEP, "training": fast} | changes)
    )


@pytest.mark.parametrize(
    "config",
    [
        joint_config(method="dfs", gate="ff", cotrain=LABELS_ALONE),
        joint_config(
            fixed_budget=False,
            cotrain=BOTH_LOSSES,
            training=GumbelConfig(batch_size=8, distillation=0.5),
        ),
    ],
    ids=["dfs", "gumbel-all"],
)
def test_ctrl_c_saves_and_the_run_resumes(tmp_path, config):
    result = assert_resumes(tmp_path, config)
    folders = [tmp_path / name / "backbone" for name in ("whole", "parts")]
    assert are_equal(*(load_backbone(folder).state_dict() for folder in folders))
    assert 3 * 8 < result.images_seen["backbone"] <= result.images_seen["gate"] == 10 * 8


@pytest.mark.parametrize("method", ["dfs", "gumbel"])
def test_best_gate_is_kept_with_its_backbone(tmp_path, method):
    cotrain = replace(BOTH_LOSSES, learning_rate=0.05)  # the weights of no two steps are alike
    run = new_run(tmp_path / "run")
    best = train(run, joint_config(method=method, gate="ff", cotrain=cotrain)).best_on_val
    kept = load_backbone(run.path / "backbone").eval()
    records = evaluate_gate(kept.to_inference(), load_gate(run.path / "gate"), make_dataset().val)
    assert records.accuracy == best["accuracy"]
    assert float(records.computation(kept.costs).mean()) == best["computation"]
