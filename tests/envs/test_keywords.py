"""Keywords of the environments: what JSON can hold makes the same environment, and anything else is refused."""

import json
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from dfs_rl.backbones import PRETRAINED_DIGITS
from dfs_rl.envs import ENV_ID, NETWORK_WIDE_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.toy_env import toy_kwargs

# Every keyword of the single environment but the weights of a network that somebody else made.
WRITTEN = {
    "backbone": str(PRETRAINED_DIGITS),
    "exits": False,
    "dataset": "digits",
    "split": "val",
    "reward": {"cost": 5.0, "accuracy": 1, "cost_timing": "terminal"},
    "budget": 3,
    "cost_weight_range": [0.5, 30.0],
    "render_mode": "rgb_array",
    "device": "cpu",
}
OBJECTS = WRITTEN | {
    "backbone": PRETRAINED_DIGITS,
    "reward": RewardWeights(cost=5.0, accuracy=1.0, cost_timing="terminal"),
    "budget": np.float32(3.0),
    "cost_weight_range": (0.5, 30.0),
    "device": torch.device("cpu"),
}
FORMS = {
    "single": FractionalSkippingEnv,
    "vector": partial(FractionalSkippingVectorEnv, 2),
    "sb3": lambda **kwargs: SB3GatingVecEnv(make_task(**kwargs), 2),
    "network_wide": NetworkWideEnv,
}


def episode(env):
    """Rewards of one episode, every layer at option 2."""
    env.reset(seed=4)
    action = env.action_space.sample() * 0 + 2
    return [env.step(action)[1] for _ in range(env.unwrapped.task.backbone.costs.n_layers)]


def test_an_environment_comes_back_from_json():
    env = gymnasium.make(ENV_ID, **json.loads(json.dumps(WRITTEN)))
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    objects = gymnasium.make(ENV_ID, **OBJECTS)
    task = again.unwrapped.task
    assert task.reward == objects.unwrapped.task.reward == OBJECTS["reward"]
    assert (task.budget, task.cost_weight_range.lowest, task.cost_weight_range.highest) == (
        3.0,
        0.5,
        30.0,
    )
    assert len(task.images) == len(make_task(split="val").images)
    assert episode(env) == episode(again) == episode(objects)


def test_the_vector_environment_comes_back_from_json():
    settings = WRITTEN | {"autoreset_mode": "SameStep", "max_episode_steps": 3}
    env = gymnasium.make_vec(ENV_ID, num_envs=2, **json.loads(json.dumps(settings)))
    again = gymnasium.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert again.num_envs == 2
    np.testing.assert_array_equal(episode(env), episode(again))


def test_the_network_wide_environment_comes_back_from_json():
    settings = {"split": "val", "images": 20, "cost_weight": 3, "budget": 5, "continuous": False}
    env = gymnasium.make(NETWORK_WIDE_ID, dataset="digits", device="cpu", **settings)
    assert episode(env) == episode(gymnasium.make(EnvSpec.from_json(env.spec.to_json())))


def test_weights_of_a_mapping_are_charged():
    """Skipping no layer of the toy network costs the weight times the share of each layer."""
    env = FractionalSkippingEnv(**toy_kwargs(reward={"cost": 7.0}))
    costs = env.task.backbone.costs.option_costs()[:, 3]
    env.reset(seed=0)
    rewards = [env.step(np.int64(3))[1] for _ in range(3)]
    assert rewards == pytest.approx((-7.0 * costs[:3]).tolist())


def test_commands_and_environments_have_the_same_defaults():
    command, weights = TrainAgentConfig().reward, make_task().reward
    for name in ("accuracy", "log_likelihood", "log_likelihood_floor", "overshoot", "cost_timing"):
        assert getattr(command, name) == getattr(weights, name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "x"),
        ("budget", "3"),
        ("budget", True),
        ("budget", [3.0]),
        ("budget", float("inf")),
        ("budget", float("nan")),
        ("cost_weight_range", 5),
        ("cost_weight_range", "ab"),
        ("cost_weight_range", [1.0]),
        ("cost_weight_range", [1.0, "2"]),
        ("cost_weight_range", {"lowest": 1.0, "highest": 2.0}),
        ("exits", "no"),
        ("exits", 0),
        ("split", "validation"),
        ("split", None),
        ("device", "tpu"),
        ("device", "x"),
        ("device", "meta"),
        ("device", 5),
        ("device", None),
        ("backbone_weights", 3),
        ("reward", 5.0),
        ("reward", [1.0]),
    ],
)
def test_a_wrong_type_is_refused_by_name(form, name, value):
    absent = {"cost_weight_range", "exits", "reward"} if form == "network_wide" else set()
    if name in absent:
        pytest.skip("it has no such keyword")
    kwargs = {key: value for key, value in toy_kwargs().items() if key not in absent}
    with pytest.raises(ConfigError) as refusal:
        FORMS[form](**(kwargs | {name: value}))
    assert str(refusal.value).startswith(f"{name} is ")


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"cots": 1.0}, ["reward", "cots", "cost"]),
        ({1: 2.0}, ["reward", "1", "cost"]),
        ({"cost": "5"}, ["cost", "'5'"]),
        ({"cost": [5.0]}, ["cost", "[5.0]"]),
        ({"cost": -1.0}, ["cost", "-1.0"]),
        ({"cost": float("inf")}, ["cost", "inf"]),
        ({"cost": None}, ["cost", "null"]),
        ({"cost": True}, ["cost", "true"]),
        ({"cost": 10**400}, ["cost"]),
        ({"cost_timing": "later"}, ["cost_timing", "'later'", "'terminal'"]),
        ({"log_likelihood_floor": 0.0}, ["log_likelihood_floor", "0.0"]),
    ],
)
def test_a_mapping_of_weights_is_checked_when_the_environment_is_made(weights, named):
    with pytest.raises(ConfigError) as refusal:
        make_task(**toy_kwargs(reward=weights))
    assert all(word in str(refusal.value) for word in named)


@pytest.mark.parametrize("value", ["x", None, True, float("nan"), -1.0, 10**400])
def test_weights_that_are_no_numbers_are_refused(value):
    with pytest.raises(ConfigError, match="cost is "):
        RewardWeights(cost=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_envs", -1),
        ("num_envs", 0),
        ("num_envs", 1.5),
        ("num_envs", "2"),
        ("num_envs", None),
        ("max_episode_steps", 0),
        ("max_episode_steps", 2.5),
        ("autoreset_mode", 3),
    ],
)
def test_wrong_numbers_of_environments_and_steps_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} is "):
        gymnasium.make_vec(ENV_ID, **{"num_envs": 2, **toy_kwargs(), name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("images", "20"), ("images", 2.0), ("continuous", 1), ("cost_weight", "x")]
)
def test_wrong_types_of_the_network_wide_environment_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} is "):
        NetworkWideEnv(**{name: value})


def test_a_task_of_sb3_environments_is_one():
    with pytest.raises(ConfigError, match="make_task"):
        SB3GatingVecEnv(ENV_ID, 2)


@pytest.mark.parametrize("n_envs", [1.5, "2", None, -1])
def test_wrong_numbers_of_sb3_environments_are_refused(n_envs):
    with pytest.raises(ConfigError, match=str(n_envs)):
        SB3GatingVecEnv(make_task(**toy_kwargs()), n_envs)


def test_numpy_numbers_are_numbers():
    env = FractionalSkippingVectorEnv(np.int64(2), **toy_kwargs(budget=np.float32(3.0)))
    assert (env.num_envs, env.task.budget) == (2, 3.0)


@pytest.mark.parametrize("form", ["single", "vector", "network_wide"])
@pytest.mark.parametrize(
    "options",
    [
        {"indx": 3},
        {"index": 1.5},
        {"index": "3"},
        {"index": True},
        {"index": [0, 1, 2, 3, 4]},
        {"index": -1},
        {"index": 10**30},
        {"cost_weight": "x"},
        {"cost_weight": float("nan")},
        {"cost_weight": [[1.0], [2.0, 3.0]]},
        [("index", 3)],
    ],
)
def test_wrong_options_of_reset_are_refused(form, options):
    kwargs = toy_kwargs(cost_weight_range=[1.0, 9.0])
    if form == "network_wide":
        kwargs = {key: kwargs[key] for key in ("backbone", "dataset")}
    env = FORMS[form](**kwargs)
    env.reset(seed=0)
    with pytest.raises(ConfigError):
        env.reset(options=options)


@pytest.mark.parametrize("options", [{"indx": 3}, {"index": 1.5}, [{"index": 3}, {}]])
def test_wrong_options_of_sb3_environments_are_refused(options):
    env = FORMS["sb3"](**toy_kwargs())
    env.set_options(options)
    with pytest.raises(ConfigError, match="options"):
        env.reset()


@pytest.mark.parametrize("seed", ["x", 1.5, [1], [1.5, 2], [1, "x"]])
def test_wrong_seeds_are_refused(seed):
    env = FORMS["vector"](**toy_kwargs())
    with pytest.raises((ConfigError, gymnasium.error.Error)):
        env.reset(seed=seed)


def test_seeds_may_be_numpys():
    env = FORMS["vector"](**toy_kwargs())
    expected = env.reset(seed=[7, 8])[1]["index"].tolist()
    for seed in (np.int64(7), np.array([7, 8]), [np.int64(7), 8]):
        assert env.reset(seed=seed)[1]["index"].tolist() == expected


@pytest.mark.parametrize("form", ["single", "vector", "sb3"])
@pytest.mark.parametrize("method", ["render", "action_masks", "step", "get_state", "set_backbone"])
def test_nothing_is_answered_before_the_first_reset(form, method):
    if method in ("get_state", "set_backbone") and form != "sb3":
        pytest.skip("it has no such method")
    env = FORMS[form](**toy_kwargs())
    env.render_mode = "rgb_array"
    arguments = {"step": [np.zeros(2, dtype=np.int64)], "set_backbone": [env.task.backbone]}
    with pytest.raises(gymnasium.error.ResetNeeded):
        getattr(env, method)(*arguments.get(method, []))
