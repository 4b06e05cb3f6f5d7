"""Keywords of the environments, as objects and as JSON, and their errors."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from dfs_rl.backbones import PRETRAINED_DIGITS, default_digits
from dfs_rl.data import ImageSet, load_dataset
from dfs_rl.envs import ENV_ID, NETWORK_WIDE_ID, register_envs
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.training.custom_model import build_calibrated_backbone
from dfs_rl.utils import trusted_import
from tests.helpers.custom_models import write
from tests.helpers.toy_env import toy_image_set, toy_kwargs

CUSTOM = "ownnets:make"
# Every keyword of the single environment but the weights of a custom network.
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


def make(form, **changes):
    kwargs = toy_kwargs(**changes)
    if form == "network_wide" and "reward" not in changes:
        del kwargs["reward"]
    return FORMS[form](**kwargs)


def episode(env, option=2):
    """Return the rewards of one episode, every layer at one option."""
    env.reset(seed=4)
    action = env.action_space.sample() * 0 + option
    n_layers = env.unwrapped.task.backbone.costs.n_layers
    return np.array([env.step(action)[1] for _ in range(n_layers)])


def test_registration_is_light_and_repeatable():
    code = (
        "import sys, dfs_rl.envs as envs; envs.register_envs()\n"
        "heavy = [m for m in ('torch', 'stable_baselines3', 'dfs_rl.gating') if m in sys.modules]\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before = gymnasium.spec(ENV_ID)
    register_envs()
    assert gymnasium.spec(ENV_ID) is before


# Round trips through JSON


def test_single_environment_from_json():
    env = gymnasium.make(ENV_ID, **json.loads(json.dumps(WRITTEN)))
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    objects = gymnasium.make(ENV_ID, **OBJECTS)
    task = again.unwrapped.task
    assert task.reward == objects.unwrapped.task.reward == OBJECTS["reward"]
    assert task.budget == 3.0
    assert (task.cost_weight_range.lowest, task.cost_weight_range.highest) == (0.5, 30.0)
    assert len(task.images) == len(make_task(split="val").images)
    assert episode(env).tolist() == episode(again).tolist() == episode(objects).tolist()


def test_vector_environment_from_json():
    settings = WRITTEN | {"autoreset_mode": "SameStep", "max_episode_steps": 3}
    env = gymnasium.make_vec(ENV_ID, num_envs=2, **json.loads(json.dumps(settings)))
    again = gymnasium.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert again.num_envs == 2
    np.testing.assert_array_equal(episode(env), episode(again))


def test_network_wide_environment_from_json():
    settings = {"split": "val", "images": 20, "cost_weight": 3, "budget": 5, "continuous": False}
    env = gymnasium.make(NETWORK_WIDE_ID, dataset="digits", device="cpu", **settings)
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_array_equal(episode(env), episode(again))


# Values


def test_reward_of_a_mapping():
    env = make("single", reward={"cost": 7.0})
    costs = env.task.backbone.costs.option_costs()[:, 3]
    assert episode(env, 3)[:3] == pytest.approx((-7.0 * costs[:3]).tolist())


def test_commands_and_environments_share_defaults():
    command, weights = TrainAgentConfig().reward, make_task().reward
    for name in ("accuracy", "log_likelihood", "log_likelihood_floor", "overshoot", "cost_timing"):
        assert getattr(command, name) == getattr(weights, name)


def test_numpy_numbers():
    env = FractionalSkippingVectorEnv(np.int64(2), **toy_kwargs(budget=np.float32(3.0)))
    assert (env.num_envs, env.task.budget) == (2, 3.0)


@pytest.mark.usefixtures("no_allowed_constructors")
def test_custom_network_is_that_of_the_commands(tmp_path):
    write("ownnets")
    trusted_import.trust_constructor(CUSTOM)
    weights = trusted_import.call_constructor(CUSTOM).state_dict()
    torch.save({**weights, "5.bias": torch.arange(10.0)}, "weights.pt")
    digits = load_dataset("digits")
    stored = build_calibrated_backbone(CUSTOM, digits, weights=tmp_path / "weights.pt")
    frozen = stored.backbone.to_inference()
    register_envs()
    given = {"backbone": CUSTOM, "backbone_weights": "weights.pt", "dataset": "digits"}
    single, network_wide = gymnasium.make(ENV_ID, **given), NetworkWideEnv(images=50, **given)
    expected = FractionalSkippingEnv(backbone=frozen)
    np.testing.assert_array_equal(episode(single), episode(expected))
    expected = NetworkWideEnv(backbone=frozen, images=50)
    np.testing.assert_array_equal(episode(network_wide), episode(expected))


def test_without_exits():
    backbone = default_digits()
    backbone.set_exits((1, 3))
    assert FractionalSkippingEnv(backbone=backbone).action_space.n == 7
    single = FractionalSkippingEnv(backbone=backbone, exits=False)
    assert single.action_space.n == 6
    np.testing.assert_array_equal(episode(single, 3), episode(FractionalSkippingEnv(), 3))
    batched = FractionalSkippingVectorEnv(2, backbone=backbone, exits=False)
    assert batched.single_action_space.n == 6
    assert backbone.costs.exits_after == (1, 3)
    assert backbone.exit_heads is not None


# Errors


def cases(**values):
    """Return pairs of a name and each of its values."""
    return [(name, value) for name, each in values.items() for value in each]


WRONG = cases(
    budget=["3", True, [3.0], float("inf"), float("nan")],
    cost_weight_range=[5, "ab", [1.0], [1.0, 2.0, 3.0], {"lowest": 1.0, "highest": 2.0}],
    exits=["no", 0],
    split=["validation", None],
    device=["tpu", "meta", 5, None],
    backbone=[3],
    backbone_weights=[3],
    dataset=[3],
    reward=[5.0, [1.0]],
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_type(form, name, value):
    with pytest.raises(ConfigError, match=f"^{name} is "):
        make(form, **{name: value})


@pytest.mark.parametrize("form", FORMS)
def test_unknown_keyword(form):
    with pytest.raises(TypeError, match="budgt"):
        make(form, budgt=3.0)


@pytest.mark.parametrize("form", ["single", "vector"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": 0.5}, ConfigError, "budget is 0.5 %, too little"),
        ({"render_mode": "human"}, ConfigError, "render_mode is 'human'"),
        ({"cost_weight_range": [1.0, "2"]}, ConfigError, r"cost_weight_range\[1\] is '2'"),
        ({"cost_weight_range": (5.0, 1.0)}, ConfigError, "the cost weights run from 5 to 1"),
        ({"dataset": "digits"}, DataError, r"images are \[1, 8, 8\]"),
        ({"backbone": CUSTOM}, ConfigError, "train split, but dataset is an ImageSet"),
        ({"backbone_weights": "w.pt"}, ConfigError, "w.pt, but backbone is ToyBackbone;"),
        ({"after": (1, 3), "exits": False}, ConfigError, "exits of a ToyBackbone cannot be"),
    ],
)
def test_bad_combination(form, changes, error, message):
    with pytest.raises(error, match=message):
        make(form, **changes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([-1, 0], "labels from -1 to 0; .* 0 to 2"), ([2, 3], "labels from 2 to 3"), ([], "no image")],
)
@pytest.mark.parametrize("form", FORMS)
def test_labels_out_of_range(form, labels, message):
    images = toy_image_set().images[: len(labels)]
    with pytest.raises(DataError, match=message):
        make(form, dataset=ImageSet(images, torch.tensor(labels, dtype=torch.int64)))


@pytest.mark.parametrize("backbone", [None, str(PRETRAINED_DIGITS)])
@pytest.mark.parametrize("form", FORMS)
def test_stored_backbone_for_other_classes(form, backbone):
    digits = load_dataset("digits")
    reversed_names = replace(digits, class_names=digits.class_names[::-1])
    with pytest.raises(DataError, match=r"apart \(0, 1, .*, but data set 'digits' has 9, 8, "):
        FORMS[form](backbone=backbone, dataset=reversed_names)


@pytest.mark.parametrize("weights", [{"cots": 1.0}, {1: 2.0}, {"cost": "5"}, {"cost": 10**400}])
def test_bad_reward_mapping(weights):
    with pytest.raises(ConfigError, match=str(next(iter(weights)))):
        make_task(**toy_kwargs(reward=weights))


@pytest.mark.parametrize(
    ("name", "value"),
    cases(num_envs=[0, 1.5, "2", None], max_episode_steps=[0, 2.5], autoreset_mode=[3, "later"]),
)
def test_bad_vector_keywords(name, value):
    with pytest.raises(ConfigError, match=f"{name} is "):
        gymnasium.make_vec(ENV_ID, **{"num_envs": 2, **toy_kwargs(), name: value})


@pytest.mark.parametrize(
    ("name", "value"), cases(images=["20", 2.0, 0], continuous=[1], cost_weight=["x"])
)
def test_bad_network_wide_keywords(name, value):
    with pytest.raises(ConfigError, match=f"{name} is "):
        NetworkWideEnv(**{name: value})


@pytest.mark.parametrize("n_envs", [1.5, "2", None, -1])
def test_bad_sb3_arguments(n_envs):
    with pytest.raises(ConfigError, match=r"n_envs|environments"):
        SB3GatingVecEnv(make_task(**toy_kwargs()), n_envs)
    with pytest.raises(ConfigError, match="make_task"):
        SB3GatingVecEnv(ENV_ID, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "value"),
    cases(
        indx=[3],
        index=[1.5, "3", True, [0, 1, 2, 3, 4], -1, 10**30],
        cost_weight=["x", float("nan"), [[1.0], [2.0, 3.0]]],
    ),
)
def test_bad_reset_options(form, name, value):
    options = {name: value}
    env = make(form) if form == "network_wide" else make(form, cost_weight_range=[1.0, 9.0])
    env.reset(seed=0) if form != "sb3" else env.set_options(options)
    with pytest.raises(ConfigError):
        env.reset(**({} if form == "sb3" else {"options": options}))
    with pytest.raises(ConfigError, match="needed is a mapping"):
        make("single").reset(options=[(name, value)])


@pytest.mark.parametrize("form", ["single", "vector", "sb3"])
def test_needs_reset(form):
    env = make(form)
    env.render_mode = "rgb_array"
    calls = {"render": [], "action_masks": [], "step": [np.zeros(2, dtype=np.int64)]}
    if form == "sb3":
        calls |= {"get_state": [], "set_backbone": [env.task.backbone]}
    for method, arguments in calls.items():
        with pytest.raises(gymnasium.error.ResetNeeded):
            getattr(env, method)(*arguments)
