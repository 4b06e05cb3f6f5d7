"""Gates of plain policies against the policies themselves, step by step in the environment."""

import copy
from functools import partial
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FlattenObservation
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from dfs_rl.agents.policy_conversion import (
    check_environment,
    gate_of_policy,
    load_policy,
    normalization_of,
)
from dfs_rl.envs import ENV_ID
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import CHANNELS
from tests.helpers.toy_env import toy_image_set, toy_kwargs

N_PLAYED = 12
"""Images whose episodes are played; others would act the same."""
PASSES = PassSettings(limit=3, mirrored=True)
ONE_VIEW = PassSettings(limit=2, answer="surest")
RELU = {"net_arch": [7], "activation_fn": nn.ReLU}


def trained(algorithm=PPO, *, flat=False, normalize=None, policy_kwargs=None, **kwargs):
    """An untrained algorithm on an environment."""
    env = gymnasium.make(ENV_ID, **toy_kwargs(**kwargs))
    env = FlattenObservation(env) if flat else env
    vec = DummyVecEnv([lambda: env])
    if normalize is not None:
        vec = VecNormalize(vec, norm_reward=False, **normalize)
        vec.reset()
        for _ in range(40):
            vec.step(np.array([env.action_space.sample()]))
        vec.training = False
    policy = "MlpPolicy" if flat else "MultiInputPolicy"
    if algorithm is RecurrentPPO:
        policy = "MultiInputLstmPolicy"
    settings = {"buffer_size": 10} if algorithm in (DQN, QRDQN) else {}
    model = algorithm(
        policy, vec, device="cpu", policy_kwargs=policy_kwargs or {"net_arch": [9, 5]}, **settings
    )
    made = SimpleNamespace(model=model, env=env, vec=vec)
    randomize(made, 3)
    return made


def randomize(made, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.model.policy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)


def gate_of(made, **settings):
    policy, _ = load_policy(made.model)
    return gate_of_policy(
        policy,
        made.env.unwrapped.task.backbone,
        normalization=normalization_of(made.model, None),
        **settings,
    )


def episodes(made):
    """Observations, actions and the last info of each image's episode under the policy."""
    found = []
    for index in range(N_PLAYED):
        seen, _ = made.env.reset(options={"index": index})
        steps, done = [], False
        while not done:
            shown = made.vec.normalize_obs(seen) if isinstance(made.vec, VecNormalize) else seen
            action, _ = made.model.predict(shown, deterministic=True)
            steps.append((made.env.unwrapped._observation(), int(action)))
            seen, _, done, _, info = made.env.step(action)
        found.append((steps, info))
    return found


def varied_episodes(made):
    """The episodes at weights that choose different actions for different images."""
    for seed in range(100):
        randomize(made, seed)
        found = episodes(made)
        if len({tuple(action for _, action in steps) for steps, _ in found}) > 1:
            return found
    raise AssertionError("no weights choose different actions")


CASES = {
    "ppo": {},
    "a2c": {"algorithm": A2C, "policy_kwargs": RELU},
    "trpo": {"algorithm": TRPO, "policy_kwargs": {"net_arch": []}},
    "maskable": {"algorithm": MaskablePPO},
    "dqn": {"algorithm": DQN},
    "qrdqn": {"algorithm": QRDQN},
    "own-critic": {"policy_kwargs": {"share_features_extractor": False}},
    "flat": {"flat": True},
    "normalized": {"normalize": {"norm_obs_keys": ["features", "context"]}},
    "bounded": {"normalize": {"norm_obs_keys": ["features"], "clip_obs": 0.5}},
    "flat-normalized": {"flat": True, "normalize": {}},
    "exits": {"after": (1, 3)},
    "passes": {"passes": PASSES},
    "passes-and-exits": {"passes": PASSES, "after": (1, 3)},
    "one-view": {"passes": ONE_VIEW},
}


@pytest.mark.parametrize("case", CASES)
def test_gate_equals_the_policy_at_every_step(case, tmp_path):
    made = trained(**CASES[case])
    played = varied_episodes(made)
    gate = gate_of(made, passes=CASES[case].get("passes", PassSettings()))
    save_gate(gate, tmp_path)
    gate, images = load_gate(tmp_path), toy_image_set().images[:N_PLAYED]
    backbone = made.env.unwrapped.task.backbone
    result = rollout(backbone, gate, images)
    for index, (steps, info) in enumerate(played):
        for seen, action in steps:
            features, context = (
                torch.from_numpy(seen[key])[None] for key in seen if key != "layer"
            )
            chosen = gate.decide(features, int(seen["layer"]), context)
            assert chosen.item() == action
        assert result.logits[index].argmax() == info["prediction"]
        run = [*backbone.options, 0]
        assert [run[i] for i in result.options[index]] == info["bits"].tolist()
        if result.earlier is not None:
            assert result.earlier.n_passes[index] == info["n_passes"]


def test_budget_bounds_every_image():
    budget, made = 50.0, trained(budget=50.0)
    backbone, images = made.env.unwrapped.task.backbone, toy_image_set().images
    gate, costs = gate_of(made, budget=budget), backbone.costs
    gate.rest[-1].bias.data[-1] += 99.0  # it prefers the largest bits
    free, bound = (
        costs.computation(rollout(backbone, gate, images, budget=b).options, gate_macs=gate.macs)
        for b in (None, budget)
    )
    assert bound.max() <= budget < free.min()


def test_macs_by_hand():
    """The one-hot layer and features that a layer lacks cost nothing."""
    gate = gate_of(trained(policy_kwargs={"net_arch": [9, 5]}))
    assert gate.layer_macs == tuple(9 * (size + 3) + 9 * 5 + 5 * 4 for size in CHANNELS)
    assert gate.macs == sum(gate.layer_macs)


def test_saved_algorithm(tmp_path):
    made = trained(DQN, policy_kwargs=RELU)
    made.model.num_timesteps = 77
    made.model.save(tmp_path / "model.zip")
    loaded, timesteps = load_policy(tmp_path / "model.zip")
    ours, theirs = gate_of(made), gate_of_policy(loaded, made.env.unwrapped.task.backbone)
    assert timesteps == 77
    assert all(torch.equal(value, theirs.state_dict()[n]) for n, value in ours.state_dict().items())


def test_saved_normalization(tmp_path):
    """It is given, or lies where rl_zoo3 puts it."""
    made = trained(normalize={"norm_obs_keys": ["features"]})
    (tmp_path / "model").mkdir()
    made.vec.save(tmp_path / "model" / "vecnormalize.pkl")
    for policy, given in (
        (tmp_path / "model.zip", None),
        ("x", tmp_path / "model/vecnormalize.pkl"),
    ):
        found = normalization_of(policy, given)
        np.testing.assert_array_equal(
            found.obs_rms["features"].mean, made.vec.obs_rms["features"].mean
        )
    assert normalization_of(trained(normalize={"norm_obs": False}).model, None) is None


class Reversed(ActorCriticPolicy):
    """Prefers what its networks find worst."""

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(action_logits=-self.action_net(latent_pi))


class Negated(VecNormalize):
    def _normalize_obs(self, obs, obs_rms):
        return -super()._normalize_obs(obs, obs_rms)


@pytest.mark.parametrize("flat", [False, True])
def test_policies_that_compute_something_else_are_refused(flat):
    own, normalize = trained(flat=flat), {} if flat else {"norm_obs_keys": ["features"]}
    other = trained(flat=flat, normalize=normalize)
    own.model.policy.__class__, other.vec.__class__ = Reversed, Negated
    for made in (own, other):
        with pytest.raises(ConfigError, match=r"only \d+% of its actions"):
            gate_of(made)


class Scaled(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 3)

    def forward(self, seen):
        return 2.0 * seen["context"]


REFUSED = {
    "recurrent": ({"algorithm": RecurrentPPO, "policy_kwargs": RELU}, {}, "recurrent"),
    "extractor": ({"policy_kwargs": {"features_extractor_class": Scaled}}, {}, "Scaled"),
    "changed activation": (
        {"policy_kwargs": {"activation_fn": partial(nn.LeakyReLU, 0.5)}},
        {},
        r"LeakyReLU\(negative_slope=0\.5\)",
    ),
    "activation": ({"policy_kwargs": {"activation_fn": nn.Softplus}}, {}, "Softplus"),
    "actions": ({"after": (1, 3)}, {"after": ()}, r"Discrete\(5\).*Discrete\(4\)"),
    "passes": ({"passes": PASSES}, {"passes": ONE_VIEW}, "with these passes"),
    "pass": ({}, {"passes": ONE_VIEW}, "with these passes"),
    "cost weights": ({"cost_weight_range": (1.0, 9.0)}, {}, "cost_weight_range"),
    "masks": ({"algorithm": MaskablePPO, "passes": PASSES}, {"passes": PASSES}, "masks"),
    "budget": (
        {"passes": PASSES},
        {"passes": PASSES, "budget": 9.0},
        "budget is 9 and passes is 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_policies_are_refused(case):
    environment, claimed, named = REFUSED[case]
    made = trained(**environment)
    backbone = toy_kwargs(after=claimed.pop("after", environment.get("after", ())))["backbone"]
    with pytest.raises(ConfigError, match=named):
        gate_of_policy(load_policy(made.model)[0], backbone, **claimed)


@pytest.mark.parametrize(
    ("claimed", "named"),
    [
        ({"passes": PassSettings(limit=3), "budget": None}, "passes is"),
        ({"passes": PASSES, "budget": 3.0}, "budget is 3.0"),
    ],
)
def test_environment_of_the_algorithm_decides(claimed, named):
    """The observations have the same shape."""
    made = trained(passes=PASSES)
    backbone = made.env.unwrapped.task.backbone
    check_environment(made.model, backbone, passes=PASSES, budget=None)
    with pytest.raises(ConfigError, match=named):
        check_environment(made.model, backbone, **claimed)
    other = toy_kwargs(after=(1,))["backbone"]
    with pytest.raises(ConfigError, match="cost"):
        check_environment(made.model, other, passes=PASSES, budget=None)
    retrained = copy.deepcopy(backbone)
    retrained.feature_mean += 0.1
    with pytest.raises(ConfigError, match="other weights"):
        check_environment(made.model, retrained, passes=PASSES, budget=None)


def test_continuous_policies_are_refused():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(ConfigError, match="SACPolicy"):
        gate_of_policy(SAC("MlpPolicy", env).policy, toy_kwargs()["backbone"])


def test_bad_sources(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"model\.zip is no algorithm"):
        load_policy(tmp_path / "model.zip")
    with pytest.raises(CheckpointError, match=r"missing\.zip is no algorithm"):
        load_policy(tmp_path / "missing.zip")
    with pytest.raises(ConfigError, match="policy is a Linear"):
        load_policy(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="no saved VecNormalize"):
        normalization_of("x", tmp_path / "model.zip")
    other, made = trained(flat=True, normalize={}).vec, trained()
    backbone = made.env.unwrapped.task.backbone
    other.obs_rms.mean = other.obs_rms.mean[1:]
    with pytest.raises(ConfigError, match="statistics of"):
        gate_of_policy(made.model.policy, backbone, normalization=other)
