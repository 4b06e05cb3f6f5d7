"""The single environment against closed forms and plain loops."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from dfs_rl.backbones import default_digits
from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone, run_alone_with_exits
from tests.helpers.toy_env import N_IMAGES, WEIGHTS, assert_same, toy_image_set, toy_kwargs

EXIT = len(BITS)
AFTER = (1, 3)


def make(**changes):
    return FractionalSkippingEnv(**toy_kwargs(**changes))


def play(env, actions):
    """Return the transitions of an episode, and its return."""
    transitions = []
    for action in actions:
        transitions.append(env.step(np.int64(action)))
        assert env.observation_space.contains(transitions[-1][0])
        if transitions[-1][2]:
            break
    return transitions, sum(transition[1] for transition in transitions)


@pytest.mark.parametrize("kwargs", [{}, toy_kwargs()], ids=["digits", "toy"])
def test_passes_checkers(kwargs):
    env = gymnasium.make(ENV_ID, render_mode="rgb_array", **kwargs)
    check_env(env.unwrapped)
    check_env_sb3(env)


def test_default_is_the_digits():
    env = gymnasium.make(ENV_ID)
    env.reset(seed=0)
    transitions, _ = play(env, [env.action_space.n - 1] * 99)
    n_layers, info = len(default_digits().layers), transitions[-1][4]
    assert len(transitions) == n_layers
    assert info["bits"].tolist() == [32] * n_layers
    assert info["computation"] > 100.0


@pytest.mark.parametrize("after", [(), AFTER])
@pytest.mark.parametrize("index", range(8))
def test_episode_equals_plain_loop(index, after):
    env, images = make(budget=4.0, after=after), toy_image_set()
    actions = np.random.default_rng(index).integers(EXIT + bool(after), size=4)
    backbone, label = ToyBackbone(exits=after), int(images.labels[index])
    alone = run_alone_with_exits(backbone, images.images[index], actions.tolist())
    ran = [option for option in alone.options if option < EXIT]

    observation, info = env.reset(options={"index": index})
    assert info == {"index": index}
    assert observation["layer"] == 0
    transitions, total = play(env, actions)

    assert len(transitions) == min(len(ran) + 1, 4)
    assert not any(truncated for _, _, _, truncated, _ in transitions)
    assert [info for *_, info in transitions[:-1]] == [{}] * (len(transitions) - 1)
    shares = [m * (BITS[a] / 32) ** 2 / 1000 for m, a in zip(MACS, ran, strict=False)]
    before = len(transitions) - 1
    assert [t[1] for t in transitions[:before]] == pytest.approx([-20 * s for s in shares[:before]])
    log_likelihood = max(float(alone.logits.double().log_softmax(0)[label]), -3.0) / 3.0
    correct = bool(alone.logits.argmax() == label)
    spent = (alone.macs - 160 / 16 - 16) / 1000  # minus the fixed parts
    overshoot = max(0.0, alone.macs / 1000 - 0.04)
    terms = 0.5 * correct, 0.5 * log_likelihood, -20.0 * spent, -3.0 * overshoot
    assert total == pytest.approx(sum(terms))

    last = transitions[-1][4]
    assert last.pop("bits").tolist() == [BITS[o] for o in ran] + [0] * (4 - len(ran))
    assert last.pop("computation") == pytest.approx(alone.macs / 10)
    assert last == {
        "index": index,
        "label": label,
        "prediction": int(alone.logits.argmax()),
        "correct": correct,
        "is_success": correct,
    } | ({"n_layers_run": len(ran)} if after else {})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize("timing", ["step", "terminal"])
def test_cost_weight_of_the_episode(timing):
    weights = RewardWeights(accuracy=0.0, log_likelihood=0.0, cost=999.0, cost_timing=timing)
    env = make(reward=weights, cost_weight_range=(2.0, 32.0))
    observation, info = env.reset(options={"index": 7, "cost_weight": 4.0})
    assert info == {"index": 7, "cost_weight": pytest.approx(4.0)}
    # Halfway could not tell the ends of the range apart.
    assert observation["context"][3] == pytest.approx(0.75)
    actions = [1, 0, 3, 2]
    transitions, total = play(env, actions)
    shares = [m / sum(MACS) * (BITS[a] / 32) ** 2 for m, a in zip(MACS, actions, strict=True)]
    assert total == pytest.approx(-4.0 * sum(shares))
    assert [t[0]["context"][3] for t in transitions] == pytest.approx([0.75] * 4)


def test_types_of_infos():
    env = make(cost_weight_range=(1.0, 9.0))
    _, first = env.reset(seed=0)
    last = play(env, [1, 1, 1, 1])[0][-1][4]
    kinds = {key: type(value) for key, value in (first | last).items()}
    assert kinds == {
        "index": np.int64,
        "cost_weight": np.float64,
        "label": np.int64,
        "prediction": np.int64,
        "computation": np.float64,
        "bits": np.ndarray,
        "correct": bool,
        "is_success": bool,
    }


# Random streams


def test_images_are_uniform_and_cost_weights_log_uniform():
    env = make(cost_weight_range=(1.0, 100.0))
    env.reset(seed=0)
    infos = [env.reset()[1] for _ in range(2000)]
    shares = np.log([info["cost_weight"] for info in infos]) / np.log(100.0)
    counts = np.histogram(shares, bins=20, range=(0.0, 1.0))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    images = np.array([info["index"] for info in infos])
    draws, expected = np.bincount(images, minlength=N_IMAGES), 2000 / N_IMAGES
    assert len(draws) == N_IMAGES
    assert ((draws - expected) ** 2 / expected).sum() < 72.1  # 39 degrees, p = 0.001
    assert abs(np.corrcoef(shares, images)[0, 1]) < 0.075  # 3.3 standard deviations


def test_same_seed_repeats_everything():
    runs = []
    for _ in range(2):
        env, rng = make(), np.random.default_rng(0)
        log = [env.reset(seed=5)[1]["index"]]
        for _ in range(20):
            transitions, total = play(env, rng.integers(len(BITS), size=len(MACS)))
            log += [total, transitions[1][0]["features"].tobytes(), env.reset()[1]["index"]]
        runs.append(log)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("changes", [{}, {"cost_weight_range": (1.0, 9.0)}])
def test_stream_of_images_is_independent(changes):
    plain, other = make(), make(**changes)
    expected = [plain.reset(seed=seed)[1]["index"] for seed in (3, None, None)]
    assert other.reset(seed=3)[1]["index"] == expected[0]
    other.reset(options={"index": 0})
    assert [other.reset()[1]["index"] for _ in range(2)] == expected[1:]


@pytest.mark.parametrize("state", [False, True], ids=["running", "restored"])
def test_cost_weights_vary_on_a_given_image(state):
    env = make(cost_weight_range=(1.0, 100.0))
    env.reset(seed=0)
    weights = []
    for _ in range(2000):
        weights.append(env.reset(options={"index": 3})[1]["cost_weight"])
        if state:
            sampler = env._episodes.sampler
            sampler.set_state(json.loads(json.dumps(sampler.get_state())))
    counts = np.histogram(np.log(weights) / np.log(100.0), bins=20, range=(0.0, 1.0))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001


# Observations and masks


def test_masks_follow_budget_but_bind_nothing():
    two_bits = float(ToyBackbone().costs.computation(torch.ones(1, 4, dtype=torch.int64)))
    bound, free = make(budget=two_bits), make()
    bound.reset(seed=0)
    free.reset(seed=0)
    assert bound.action_masks().tolist() == [True, True, True, False]
    assert free.action_masks().all()
    penalty = play(free, [3, 3, 3, 3])[1] - play(bound, [3, 3, 3, 3])[1]
    assert penalty == pytest.approx(WEIGHTS.overshoot * ((8 / 32) ** 2 - (2 / 32) ** 2))


def test_observation_after_an_exit():
    env = make(after=AFTER)
    env.reset(seed=0)
    env.step(np.int64(2))
    assert env.action_masks().tolist() == [True] * (EXIT + 1)
    observation, *_ = env.step(np.int64(EXIT))
    assert not observation["features"].any()
    assert observation["layer"] == 1
    assert observation["context"][2] == pytest.approx(2 / 3)


def test_exit_action_without_exit_is_cheapest():
    ours, theirs = make(after=AFTER), make(after=AFTER)
    ours.reset(seed=4)
    theirs.reset(seed=4)
    assert ours.action_masks().tolist() == [True] * EXIT + [False]
    assert_same(ours.step(np.int64(EXIT))[0], theirs.step(np.int64(0))[0])


# Errors


def test_bad_steps():
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="from 0 to 3"):
        env.step(np.int64(4))


def test_bad_cost_weight():
    with pytest.raises(ConfigError, match=r"no cost_weight_range and one cost weight, 20"):
        make().reset(options={"cost_weight": 3.0})
    with pytest.raises(ConfigError, match="cost_weight is 99; allowed are"):
        make(cost_weight_range=(1.0, 9.0)).reset(options={"cost_weight": 99.0})


def test_bad_labels():
    images = toy_image_set()
    labels = images.labels.clone()
    labels[0] = 3
    with pytest.raises(DataError, match="labels from 0 to 3; allowed are labels from 0 to 2"):
        make(dataset=type(images)(images.images, labels))
