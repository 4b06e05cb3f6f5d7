"""Runs of gates that plain Stable-Baselines3 trained: evaluation, loading, export, comparison."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import dfs_rl
from dfs_rl.backbones import default_digits
from dfs_rl.data import load_dataset
from dfs_rl.envs import ENV_ID
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import write_json
from tests.helpers.latencies import made_up_profile
from tests.helpers.small_backbone import small_backbone

COSTS = {"reward": {"cost": 5.0}}


def learned(*, normalize=False, **kwargs):
    env = make_vec_env(ENV_ID, 8, seed=0, env_kwargs=COSTS | kwargs)
    if normalize:
        env = VecNormalize(env, norm_reward=False, norm_obs_keys=["features", "context"])
    model = PPO("MultiInputPolicy", env, n_steps=32, batch_size=64, n_epochs=2, seed=0)
    return model.learn(1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model = learned(normalize=True)
    return SimpleNamespace(
        model=model, gate=dfs_rl.gate_from_sb3(model, run_dir=folder / "gate"), folder=folder
    )


def test_accuracy_is_the_success_rate_of_the_environment(made):
    """Every test image, with the actions, bits and computation of the policy."""
    env = gymnasium.make(ENV_ID, split="test", **COSTS)
    normalize, images = made.model.get_vec_normalize_env(), load_dataset("digits").test
    model, macs = made.gate.load(), made.gate.load().gate.macs
    _, trace = model(images.images)
    costs, successes, computation = model.backbone.costs, [], []
    gate_cost = 100.0 * (costs.fixed_cost(gate_macs=macs) - costs.fixed_cost())
    for index in range(len(images)):
        seen, _ = env.reset(options={"index": index})
        done = False
        while not done:
            action, _ = made.model.predict(normalize.normalize_obs(seen), deterministic=True)
            seen, _, done, _, info = env.step(action)
        assert trace.bits[index].tolist() == info["bits"].tolist()
        successes.append(info["is_success"])
        computation.append(info["computation"] + gate_cost)
    (row,) = dfs_rl.evaluate(made.gate, baselines=[]).to_frame().to_dict("records")
    assert row["accuracy"] == pytest.approx(100.0 * np.mean(successes))
    assert row["computation"] == pytest.approx(np.mean(computation))


def test_run_is_one_like_any_other(made):
    record = made.gate.validation
    assert made.gate.points == ((record["computation"], record["accuracy"]),)
    two = dfs_rl.gate_from_sb3(learned(), run_dir=made.folder / "two", name="mine")
    compared = dfs_rl.compare(made.gate, two, run_dir=made.folder / "report").to_frame()
    assert {"SB3 policy", "mine"} <= set(compared["label"])


def test_exported_gate_chooses_the_same(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    digits = load_dataset("digits")
    stored = small_backbone(digits, bits=(0, 4, 32))
    policy = learned(normalize=True, backbone=stored.backbone, dataset=digits)
    model = dfs_rl.gate_from_sb3(policy, stored, digits, run_dir=tmp_path / "run").load()
    session = runtime.InferenceSession(dfs_rl.export(model, tmp_path / "gate.onnx"))
    for image in digits.val.images[:20].float() / 255.0:
        logits, options, computation = session.run(None, {"images": image[None].numpy()})
        expected, trace = model(image[None])
        assert options.tolist() == trace.options.tolist()
        np.testing.assert_allclose(computation, trace.computation)
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_saved_policy_is_the_same_gate(made):
    (made.folder / "saved").mkdir()
    made.model.save(made.folder / "saved.zip")
    made.model.get_vec_normalize_env().save(made.folder / "saved" / "vecnormalize.pkl")
    gate = dfs_rl.gate_from_sb3(made.folder / "saved.zip", run_dir=made.folder / "of-the-file")
    ours, theirs = (one.load().gate.state_dict() for one in (made.gate, gate))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_statistics_of_a_saved_policy_are_not_left_out(made, tmp_path):
    best, statistics = tmp_path / "best_model.zip", tmp_path / "statistics.pkl"
    made.model.save(best)
    made.model.get_vec_normalize_env().save(statistics)
    for policy in (best, PPO.load(best)):
        with pytest.raises(ConfigError, match="normalize is not given"):
            dfs_rl.gate_from_sb3(policy, run_dir=tmp_path / "run")
    gate = dfs_rl.gate_from_sb3(best, normalize=statistics, run_dir=tmp_path / "run")
    assert gate.validation == made.gate.validation


@pytest.mark.parametrize("normalize", [False, True])
def test_budget_of_a_saved_policy_must_be_its_own(normalize, tmp_path):
    model = learned(budget=60.0, normalize=normalize)
    model.save(tmp_path / "saved.zip")
    given = {"normalize": model.get_vec_normalize_env(), "run_dir": tmp_path / "run"}
    for wrong in ({}, {"budget": 50.0}):
        with pytest.raises(ConfigError, match="budget is"):
            dfs_rl.gate_from_sb3(tmp_path / "saved.zip", **given, **wrong)
    gate = dfs_rl.gate_from_sb3(tmp_path / "saved.zip", **given, budget=60.0)
    assert gate.load().budget == 60.0


def test_one_gate_for_all_budgets(tmp_path):
    env_settings = {"cost_weight_range": (0.5, 50.0)}
    model = learned(**env_settings)
    gate = dfs_rl.gate_from_sb3(model, run_dir=tmp_path / "run", **env_settings)
    budget = sorted(cost for cost, _ in gate.points)[4]
    chosen = gate.load(budget=budget).gate
    assert chosen.budget_conditioning.computation_at(chosen.preference) <= budget + 1e-9
    with pytest.raises(ConfigError, match="policy observes"):
        dfs_rl.gate_from_sb3(model, run_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_budget_in_milliseconds(made, tmp_path):
    profile = made_up_profile(default_digits().costs, gate_macs=1e6)  # 69.3 ms at 32 bit
    write_json(tmp_path / "profile.json", config_to_dict(profile))
    model = dfs_rl.gate_from_sb3(
        made.model.policy,
        run_dir=tmp_path / "run",
        cost="latency",
        latency={"profile": tmp_path / "profile.json", "other_machine": True},
        budget=20.79,
        budget_unit="ms",
    ).load()
    assert model.budget == pytest.approx(30.0)


def test_unknown_setting(tmp_path, made):
    with pytest.raises(ConfigError, match="split is not a setting"):
        dfs_rl.gate_from_sb3(made.model, split="val", run_dir=tmp_path / "run")
