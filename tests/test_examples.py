"""Each example runs at toy size, and what it made fits what it printed."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO

import dfs_rl
from dfs_rl.backbones import default_digits
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.gating.reward import REWARD_TERMS
from dfs_rl.runtime import OnnxModel
from tests.helpers.custom_models import forgotten_trust
from tests.helpers.quick import few_steps, quick_runs

__all__ = ["few_steps", "quick_runs"]

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
LONGEST = 59
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def digits():
    return dfs_rl.load_dataset("digits")


@pytest.fixture(scope="module")
def network():
    return default_digits().to_inference()


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """Return a function that runs an example and returns the numbers of each printed line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(REWARD_TERMS, "data", dict(REWARD_TERMS.data))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with forgotten_trust():
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        shown = capsys.readouterr()
        assert "Warning" not in shown.err
        return numbers(shown.out)

    return run


def numbers(text):
    """Return the numbers of each line."""
    return [[float(number) for number in NUMBER.findall(line)] for line in text.splitlines()]


def accuracy(logits, labels):
    """Return the accuracy of logits in percent."""
    return 100 * float((torch.as_tensor(logits).argmax(dim=1) == labels).double().mean())


def measured(run, digits, **settings):
    """Return accuracy and mean computation of a stored gate on the test split."""
    with torch.inference_mode():
        logits, trace = dfs_rl.load(run, **settings)(digits.test.images)
    return accuracy(logits, digits.test.labels), float(trace.computation.mean())


@torch.inference_mode()
def accuracy_at(backbone, images, bits):
    """Return the accuracy in percent of a plain loop over the layers."""
    hidden = backbone.stem(images.images)
    for layer in backbone.layers:
        hidden = layer(hidden, bits)
    return accuracy(backbone.head(hidden), images.labels)


@pytest.mark.parametrize("name", NAMES)
def test_example_is_short(name):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST


def test_readme_lists_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\)", text, re.MULTILINE)) == NAMES


def test_environment_loop(printed, digits, network):
    rows = [row[-3:] for row in printed("environment_loop", "--episodes", "300")]
    *uniform, random, unsure = np.array(rows)
    costs = network.costs
    for option, row in enumerate(uniform):
        right = accuracy_at(network, digits.val, network.options[option])
        table = torch.full((1, costs.n_layers), option)
        assert row[1] == pytest.approx(float(costs.computation(table)), abs=6e-4)
        # Images are drawn with replacement: four standard deviations, half a digit.
        spread = 400 * np.sqrt(right / 100 * (1 - right / 100) / 300)
        assert abs(row[0] - right) <= spread + 0.005
    assert random[1] <= 1.0
    assert uniform[1][1] < unsure[1] < uniform[2][1]
    assert max(row[2] for row in rows) <= 0.5  # the weight of accuracy


def test_sb3_unchanged(printed, tmp_path, digits):
    *rows, gate = printed("sb3_unchanged", "--timesteps", "3072")
    folder = tmp_path / "runs/sb3"
    stored = np.load(folder / "evaluations.npz")
    shares = [100 * successes.mean() for successes in stored["successes"]]
    assert [row[-1] for row in rows] == pytest.approx(shares, abs=0.06)
    assert gate == pytest.approx(measured(folder / "gate", digits), abs=0.006)
    # The policy itself, on every test image at once.
    n = len(digits.test)
    model = PPO.load(folder / "best_model", device="cpu")
    env = FractionalSkippingVectorEnv(n, split="test")
    observation, _ = env.reset(options={"index": np.arange(n)})
    ended = np.zeros(n, dtype=bool)
    while not ended.all():
        actions, _ = model.predict(observation, deterministic=True)
        observation, _, ended, _, infos = env.step(actions)
    assert gate[0] == pytest.approx(100 * infos["correct"].mean(), abs=0.3)  # one image
    assert gate[1] > infos["computation"].mean()  # which does without the policy's own cost


def test_train_and_ship(printed, tmp_path, digits):
    rows = printed("train_and_ship", "--timesteps", "1000")
    summary = json.loads((tmp_path / "runs/gate/summary.json").read_text())
    gate = summary["methods"][0]
    right, computation = measured(tmp_path / "runs/gate", digits)
    assert (gate["accuracy"], gate["computation"]) == pytest.approx((right, computation), rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "shipped").iterdir()) == ["backbone", "gate"]
    for place, budget in ((-4, 1.0), (-2, 1.5)):
        logits, trace = dfs_rl.load(tmp_path / "shipped", budget=budget)(digits.test.images[:10])
        correct = int((logits.argmax(dim=1) == digits.test.labels[:10]).sum())
        assert rows[place][:2] == [budget, correct]
        shown = [*trace.bits[0].tolist(), *trace.computation.tolist()]
        assert rows[place + 1] == pytest.approx(shown, abs=0.006)


def test_own_model(printed, tmp_path, digits):
    rows = printed("own_model", "--epochs", "2", "--timesteps", "600")
    run = tmp_path / "runs/own"
    model = dfs_rl.load(run, trust_code=True)
    assert model.backbone.costs.n_layers == 4
    assert tuple(model.backbone.options) == (0, 2, 4, 8, 32)
    expected = measured(run, digits, trust_code=True)
    table = [row[-2:] for row in rows if len(row) >= 2][-6:]  # the gate and five options
    assert table[0] == pytest.approx(expected, abs=0.006)
    full = accuracy_at(model.backbone, digits.test, 32)
    assert table[-1][0] == pytest.approx(full, abs=0.006)


def test_own_reward_term(printed, tmp_path, digits):
    plain, sure = printed("own_reward_term", "--timesteps", "3000")
    rows = {"plain": plain, "sure": sure}
    for name, terms in (("plain", []), ("sure", [["sure", 0.5]])):
        run = tmp_path / "runs" / name
        assert yaml.safe_load((run / "config.yaml").read_text())["reward"]["terms"] == terms
        assert rows[name][:2] == pytest.approx(measured(run, digits), abs=0.006)
    # Both learn from the same start, and only the term makes more bits worth their cost.
    assert sure[1] > plain[1]
    assert sure[2] > plain[2]


def test_latency_and_onnx(printed, tmp_path, digits):
    (full, budget), table = printed("latency_and_onnx", "--epochs", "1", "--backbone", "resnet8")[
        -2:
    ]
    record = json.loads((tmp_path / "latency.json").read_text())
    times = {(p["part"], p["layer"], p["bits"]): p["median"] for p in record["parts"]}
    bits = [int(value) for value in table[:3]]
    fixed = times["stem", None, None] + times["head", None, None]
    spent = fixed + sum(times["layer", layer, each] for layer, each in enumerate(bits))
    assert full == pytest.approx(fixed + sum(times["layer", i, 32] for i in range(3)), abs=6e-5)
    assert spent <= budget + 6e-5
    assert dfs_rl.load(tmp_path / "runs/fast").gate.table == tuple(int(b == 32) for b in bits)
    right, _ = measured(tmp_path / "runs/fast", digits)
    assert table[-1] == pytest.approx(right, abs=0.3)  # an image at most may differ by rounding
    result = OnnxModel(tmp_path / "table.onnx")(digits.test.images.numpy())
    assert accuracy(result.logits, digits.test.labels) == pytest.approx(table[-1], abs=0.006)


@pytest.mark.timeout(300)
def test_tune_with_asha(tmp_path):
    """In a process of its own, which starts Ray."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "tune_with_asha.py", "--timesteps", "1200", "--trials", "2"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    rows = numbers(done.stdout)[-2:]
    results = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "runs/tune").glob("*/*/result.json")
    ]
    assert len(rows) == len(results) == 2
    objectives = [row[0] for row in rows]
    assert objectives == sorted(objectives, reverse=True)  # two short trainings may be equal
    last = sorted((records[-1] for records in results), key=lambda r: r["config"]["cost_weight"])
    for row, record in zip(sorted(rows, key=lambda row: row[2]), last, strict=True):
        cost_weight, rate = record["config"]["cost_weight"], record["config"]["learning_rate"]
        shown = [record["objective"], record["training_iteration"], cost_weight, rate]
        assert row == pytest.approx(shown, abs=1e-6)
        assert record["objective"] == pytest.approx(record["accuracy"] - 10 * record["computation"])
        assert 0.5 < record["accuracy"] <= 1
        assert 1 < cost_weight < 30
        assert 3e-4 < rate < 1e-2


def test_compare_gates(printed, tmp_path, digits):
    *table, learned, cascade, difference = printed("compare_gates", "--timesteps", "1000")
    points = list(
        csv.DictReader((tmp_path / "runs/comparison/points.csv").read_text().splitlines())
    )
    assert len(table) == len(points) + 1
    runs = [tmp_path / "runs" / name for name in ("learned", "cascade")]
    expected = [measured(run, digits, budget=1.0) for run in runs]
    for row, figures in zip((learned, cascade), expected, strict=True):
        assert row == pytest.approx(figures, abs=0.006)
        stored = [float(p["accuracy_mean"]) for p in points if p["kind"] == "gate"]
        assert any(figures[0] == pytest.approx(value, abs=1e-6) for value in stored)
    mean, _, low, high = difference
    assert mean == pytest.approx(expected[0][0] - expected[1][0], abs=0.006)
    assert low <= mean <= high
    assert (tmp_path / "runs/comparison/report.html").stat().st_size > 10_000
