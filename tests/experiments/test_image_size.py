"""Images of several sizes, from the first command to the deployed gate."""

import numpy as np
import pytest
import torch
from PIL import Image

import dfs_rl
from dfs_rl import train_agent, train_cascade, train_exits
from dfs_rl.backbones import load_stored_backbone
from dfs_rl.data import load_dataset
from dfs_rl.envs.task import make_task
from dfs_rl.experiments.config import EvaluateConfig
from dfs_rl.experiments.evaluation import evaluate_run
from dfs_rl.train_backbone import main as train_backbone_main
from dfs_rl.utils.yaml_core import read_yaml
from tests.helpers.images import write_image_folder

SHAPE = ["--backbone", "resnet8", "--width", "4", "--bits", "0", "4", "32"]
TINY = ["--timesteps", "300", "--num-envs", "32", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_image_folder(tmp_path_factory.mktemp("sizes") / "pictures")
    for name in ("dark/3.png", "dark/7.png", "light/5.png"):
        picture = Image.open(folder / name)
        picture.resize((20, 12)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def supernet(folder):
    run = folder.parent / "supernet"
    few = ["--epochs", "2", "--training.calibration-rounds", "1", "--run-dir", str(run)]
    sizes = ["--image-size", "8", "--no-flip"]
    assert train_backbone_main([*SHAPE, *few, *sizes, "--dataset", str(folder)]) == 0
    return run


@pytest.fixture(scope="module")
def gate(folder, supernet):
    run = folder.parent / "gate"
    flags = ["--dataset", str(folder), "--backbone", str(supernet), "--run-dir", str(run)]
    assert train_agent.main([*TINY, *flags]) == 0
    return run


def test_the_size_is_stated_and_stored(folder, supernet):
    config = read_yaml(supernet / "config.yaml")
    assert (config["image_size"], config["flip"]) == (8, False)
    info = load_stored_backbone(supernet).info
    assert (info.image_size, info.flip) == (8, False)
    assert info.fingerprint == load_dataset(str(folder), image_size=8).fingerprint
    assert train_backbone_main(["--resume", str(supernet)]) == 0


def test_a_gate_takes_the_size_of_its_backbone(folder, gate):
    assert load_stored_backbone(gate).info.image_size == 8
    model = dfs_rl.load(gate)
    most = model.gate.budget_conditioning.rounded_range[1]
    model.set_budget(most)  # where its answers are right
    assert (model.image_size, model.classes) == (8, ("dark", "light"))
    files = [folder / "dark" / "3.png", folder / "light" / "5.png"]
    raw = torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])
    assert raw.shape == (2, 1, 12, 20)
    assert model(raw)[0].argmax(dim=1).tolist() == [0, 1]
    result = evaluate_run(EvaluateConfig(run=gate))
    assert result.stored  # by the command itself, on the same images
    assert train_agent.main(["--resume", str(gate)]) == 0


def test_so_do_exits_cascades_and_environments(folder, supernet, tmp_path):
    flags = ["--dataset", str(folder), "--backbone", str(supernet)]
    exits = tmp_path / "exits"
    assert train_exits.main([*flags, "--after", "1", "--run-dir", str(exits)]) == 0
    info = load_stored_backbone(exits).info
    assert (info.image_size, info.flip) == (8, False)
    cascade = tmp_path / "cascade"
    assert train_cascade.main([*flags, "--budget", "90", "--run-dir", str(cascade)]) == 0
    assert dfs_rl.load(cascade).image_size == 8
    task = make_task(backbone=supernet, dataset=str(folder))
    assert task.images.image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image-size", "16"], "image_size is 16, but the backbone in"),
        (["--flip"], "was trained without mirrored images"),
    ],
)
def test_a_contradiction_is_refused(folder, supernet, refusal, flags, words):
    named = ["--dataset", str(folder), "--backbone", str(supernet)]
    assert words in refusal(train_agent.main, [*TINY, *named, *flags])


def test_images_of_several_sizes_are_refused(folder, refusal):
    said = refusal(train_backbone_main, [*SHAPE, "--dataset", str(folder)])
    assert "--image-size N" in said
    assert "20 x 12" in said


def test_default_supernet_has_the_given_image_size(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", str(folder), "--supernet-epochs", "1", "--image-size", "8", "--no-flip"]
    assert train_cascade.main([*flags, "--budget", "90", "--run-dir", "cascade"]) == 0
    info = load_stored_backbone("cascade").info
    assert (info.image_size, info.flip) == (8, False)
