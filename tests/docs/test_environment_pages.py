"""The pages of the environments are datasheets of the environments that ``make`` returns."""

import inspect
from ast import literal_eval

import gymnasium
import numpy as np
import pytest

import dfs_rl
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.envs.task import make_task
from tests.helpers.pages import blocks, names, read, table

assert dfs_rl.__name__, "the import registers the environments"
IMAGE = read("environments/fractional-skipping.md")
NETWORK = read("environments/network-wide.md")
PASSES = {"limit": 3, "mirrored": True}


def last_info(env):
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, _, info = env.step(0)
    return info


def keys(rows, *when):
    return {name for row in rows if row["when"] in when for name in names(row["key"])}


def defaults(function, names):
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in names}


def test_observation():
    rows = table(IMAGE, "key", "dtype")
    space = gymnasium.make("dfs_rl/FractionalSkipping-v0").observation_space
    shown = {names(row["key"])[0]: (literal_eval(row["shape by default"]), row) for row in rows}
    assert set(shown) == set(space)
    for key, (shape, row) in shown.items():
        assert (shape, row["dtype"]) == (space[key].shape, str(space[key].dtype))
    assert "Box(-10, 10" in shown["features"][1]["space"]
    assert (space["features"].low.min(), space["features"].high.max()) == (-10, 10)
    assert (space["context"].low.min(), space["context"].high.max()) == (0, 1)


def test_context():
    rows = table(IMAGE, "entry of `context`")
    always = [row for row in rows if "with" not in row["entry of `context`"]]
    for settings, size in [
        ({}, len(always)),
        ({"cost_weight_range": [0.1, 30]}, len(rows)),
        ({"passes": PASSES}, len(always) + PASSES["limit"] + 7),
    ]:
        space = gymnasium.make("dfs_rl/FractionalSkipping-v0", **settings).observation_space
        assert space["context"].shape == (size,)
        assert space["layer"].n == 6 + ("passes" in settings)


def test_actions():
    env = gymnasium.make("dfs_rl/FractionalSkipping-v0").unwrapped
    rows = [row for row in table(IMAGE, "action", "5") if row["action"] == "bits"]
    bits = [int(rows[0][str(action)].split()[0]) for action in range(env.action_space.n)]
    assert tuple(bits) == env.task.backbone.options.values


@pytest.mark.parametrize(
    ("settings", "further"),
    [({}, ()), ({"passes": PASSES}, ("last step, with passes",))],
    ids=["one pass", "passes"],
)
def test_info(settings, further):
    rows = table(IMAGE, "when", "key")
    env = gymnasium.make("dfs_rl/FractionalSkipping-v0", **settings)
    _, info = env.reset(seed=0)
    assert set(info) == keys(rows, "reset")
    assert set(last_info(env)) == keys(rows, "last step", *further)


def test_cost_weight_of_an_episode():
    env = gymnasium.make("dfs_rl/FractionalSkipping-v0", cost_weight_range=[0.1, 30])
    _, info = env.reset(seed=0)
    rows = table(IMAGE, "when", "key")
    assert set(info) == keys(rows, "reset", "reset, with `cost_weight_range`")


def test_keywords():
    shown = {
        names(row["keyword"])[0]: literal_eval(names(row["default"])[0])
        for row in table(IMAGE, "keyword", "default")
    }
    own = {name: shown.pop(name) for name in ("flat", "render_mode")}
    assert set(shown) == set(inspect.signature(make_task).parameters)
    assert shown == defaults(make_task, shown)
    assert own == defaults(FractionalSkippingEnv, own)


def test_another_pass_costs_the_fixed_parts():
    env = gymnasium.make("dfs_rl/FractionalSkipping-v0", passes=2, reward={"cost": 4.0})
    env.reset(seed=0)
    for _ in range(6):
        env.step(1)
    _, reward, *_ = env.step(1)  # at the end of the pass: again
    assert reward == pytest.approx(-4.0 * env.unwrapped.task.backbone.costs.fixed_cost())


def test_network_wide_table():
    env = gymnasium.make("dfs_rl/NetworkWide-v0", images=10)
    assert len(table(NETWORK, "index", "unit")) == env.observation_space.shape[0]
    assert set(last_info(env)) == {names(row["key"])[0] for row in table(NETWORK, "key")}


def test_network_wide_keywords():
    shown = {
        names(row["keyword"])[0]: literal_eval(names(row["default"])[0])
        for row in table(NETWORK, "keyword", "default")
    }
    own = inspect.signature(NetworkWideEnv).parameters
    assert set(shown) == {name for name, one in own.items() if one.kind is one.KEYWORD_ONLY}
    assert shown == defaults(NetworkWideEnv, shown)


def test_network_wide_reward_with_a_budget():
    env = gymnasium.make("dfs_rl/NetworkWide-v0", images=200, budget=1.0)
    env.reset()
    for _ in range(6):
        _, reward, *_, info = env.step(1)
    costs = env.unwrapped.task.backbone.costs
    full = env.unwrapped.scorer.accuracy((costs.options.full,) * costs.n_layers)
    assert reward == pytest.approx((info["accuracy"] - full) / 10)


@pytest.mark.parametrize("text", [IMAGE, NETWORK], ids=["image", "network"])
def test_example_runs(text):
    (example,) = blocks(text, "python")
    space: dict[str, object] = {}
    exec(compile(example, "page", "exec"), space)
    assert np.isfinite(space["reward"])
