"""Wrappers and callbacks of Stable-Baselines3 work on the environments as they are."""

import gymnasium
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from dfs_rl.envs import ENV_ID, SB3GatingVecEnv, make_task
from tests.helpers.toy_backbone import MACS
from tests.helpers.toy_env import toy_kwargs

N = 4
LAYERS = len(MACS)
PPO_SETTINGS = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


def vec_env(form, *, seed=0, **changes):
    """Return ``N`` environments of one form: Gymnasium's one by one, or ours as one batch."""
    if form == "batch":
        return SB3GatingVecEnv(make_task(**toy_kwargs(**changes)), N, seed=seed)
    return make_vec_env(ENV_ID, N, seed=seed, env_kwargs=toy_kwargs(**changes))


with_forms = pytest.mark.parametrize("form", ["batch", "single"])


# --- action masks


def test_action_masker_keeps_every_episode_within_its_budget():
    env = ActionMasker(
        gymnasium.make(ENV_ID, **toy_kwargs(budget=3.0)), lambda e: e.unwrapped.action_masks()
    )
    model = MaskablePPO("MultiInputPolicy", env, **PPO_SETTINGS)
    model.learn(64)
    computations, mask_sums = [], []
    for episode in range(20):
        observation, _ = env.reset(seed=episode)
        ended = False
        while not ended:
            masks = get_action_masks(env)
            np.testing.assert_array_equal(masks, env.unwrapped.action_masks())
            mask_sums.append(int(masks.sum()))
            action, _ = model.predict(observation, action_masks=masks)
            observation, _, ended, _, info = env.step(action)
        computations.append(info["computation"])
    assert max(computations) <= 3.0
    assert min(mask_sums) < env.action_space.n  # the budget binds


@with_forms
def test_masks_are_found_without_a_wrapper(form):
    env = vec_env(form, budget=3.0)
    model = MaskablePPO("MultiInputPolicy", env, **PPO_SETTINGS)
    model.learn(64)
    computations = []
    observation = env.reset()
    for _ in range(5 * LAYERS):
        actions, _ = model.predict(observation, action_masks=get_action_masks(env))
        observation, _, _, infos = env.step(actions)
        computations += [info["computation"] for info in infos if "computation" in info]
    assert len(computations) == 5 * N
    assert max(computations) <= 3.0


# --- normalisation


@with_forms
@pytest.mark.parametrize("flat", [False, True])
def test_normalised_observations_have_the_deviation_of_what_was_seen(form, flat):
    if flat and form == "batch":
        env = DummyVecEnv([lambda: gymnasium.make(ENV_ID, flat=True, **toy_kwargs())] * N)
    else:
        env = vec_env(form, flat=True) if flat else vec_env(form)
    keys = {} if flat else {"norm_obs_keys": ["features", "context"]}
    env = VecNormalize(env, clip_obs=1e6, **keys)
    seen = [env.reset()]
    raw = [env.get_original_obs()]
    rng = np.random.default_rng(0)
    for _ in range(12):
        seen.append(env.step(rng.integers(env.action_space.n, size=N))[0])
        raw.append(env.get_original_obs())
    key = (lambda o: o) if flat else (lambda o: o["features"])
    stacked = np.concatenate([key(o) for o in raw])
    # VecNormalize starts its averages at 0 and 1 with a weight of 1e-4 images.
    expected = (key(raw[-1]) - stacked.mean(0)) / np.sqrt(stacked.var(0) + env.epsilon)
    np.testing.assert_allclose(key(seen[-1]), expected, rtol=0.01, atol=0.01)
    if not flat:
        np.testing.assert_array_equal(seen[-1]["layer"], raw[-1]["layer"])


@with_forms
def test_algorithms_learn_from_normalised_rewards(form):
    env = VecNormalize(vec_env(form), norm_obs_keys=["features", "context"])
    model = PPO("MultiInputPolicy", env, **PPO_SETTINGS)
    model.learn(128)
    assert env.ret_rms.var != pytest.approx(1.0, abs=1e-3)
    assert len(model.ep_success_buffer) == 128 // LAYERS


# --- evaluation


def success_rate(model, env, episodes):
    """Return the share of ``episodes`` of ``env`` that end with the right class."""
    observation, correct = env.reset(), []
    while len(correct) < episodes:
        actions, _ = model.predict(observation, deterministic=True)
        observation, _, _, infos = env.step(actions)
        correct += [info["prediction"] == info["label"] for info in infos if "label" in info]
    return np.mean(correct)


@with_forms
def test_eval_callback_logs_the_accuracy(form, tmp_path):
    callback = EvalCallback(
        vec_env(form, seed=5),
        n_eval_episodes=6 * N,
        eval_freq=16,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = PPO("MultiInputPolicy", vec_env(form, seed=1), **PPO_SETTINGS)
    model.learn(16 * N, callback=callback)
    stored = np.load(tmp_path / "evaluations.npz")
    assert stored["ep_lengths"].tolist() == [[LAYERS] * (6 * N)]
    best = PPO.load(tmp_path / "best_model", device="cpu")
    expected = success_rate(best, vec_env(form, seed=5), 6 * N)
    assert stored["successes"].mean() == pytest.approx(expected)


def test_eval_callback_takes_the_averages_of_the_training():
    keys = {"norm_obs_keys": ["features", "context"]}
    training = VecNormalize(vec_env("batch", seed=1), **keys)
    evaluated = VecNormalize(vec_env("batch", seed=5), training=False, norm_reward=False, **keys)
    callback = EvalCallback(evaluated, n_eval_episodes=N, eval_freq=16, verbose=0)
    PPO("MultiInputPolicy", training, **PPO_SETTINGS).learn(16 * N, callback=callback)
    np.testing.assert_array_equal(
        evaluated.obs_rms["features"].mean, training.obs_rms["features"].mean
    )
    assert training.obs_rms["features"].mean.any()


def test_batch_counts_as_monitored():
    env = vec_env("batch")
    assert env.env_is_wrapped(Monitor) == [True] * N
    assert env.env_is_wrapped(ActionMasker, indices=[0]) == [False]
    model = PPO("MultiInputPolicy", env, **PPO_SETTINGS)
    returns, lengths = evaluate_policy(model, env, 2 * N, return_episode_rewards=True)
    assert lengths == [LAYERS] * (2 * N)
    assert max(returns) <= 0.5  # the weight of accuracy
