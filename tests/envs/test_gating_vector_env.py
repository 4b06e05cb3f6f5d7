"""The batched environment equals Gymnasium's vector of single ones, step for step."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from dfs_rl.backbones import default_digits
from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.errors import ConfigError
from tests.helpers.toy_backbone import BITS
from tests.helpers.toy_env import assert_same, assert_steps_equal, random_actions, toy_kwargs

N = 5
with_exits = pytest.mark.parametrize("after", [(), (1, 3)], ids=["no exits", "exits"])
with_autoreset = pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])


def pair(mode, *, limit=None, **changes):
    """Return our vector environment and Gymnasium's over single ones, on the same problem."""

    def single():
        env = FractionalSkippingEnv(**kwargs)
        return env if limit is None else TimeLimit(env, limit)

    kwargs = toy_kwargs(**changes)
    ours = FractionalSkippingVectorEnv(N, autoreset_mode=mode, max_episode_steps=limit, **kwargs)
    return ours, SyncVectorEnv([single] * N, autoreset_mode=mode)


@with_exits
@with_autoreset
@pytest.mark.parametrize("cost_weight_range", [None, (1.0, 50.0)])
@pytest.mark.parametrize("budget", [None, 3.0])
def test_equals_sync_vector_env(mode, budget, cost_weight_range, after):
    ours, theirs = pair(mode, budget=budget, cost_weight_range=cost_weight_range, after=after)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    ended = set(assert_steps_equal(ours, theirs, random_actions(ours, 25, N, seed=2)))
    assert (len(ended) > 2) == bool(after)  # with exits they do not end together
    resets = [{}, {"seed": [4, 9, 1, 4, 2]}, {"options": {"index": 3}}]
    for reset in [*resets, {"options": {"cost_weight": 7.0}}] if cost_weight_range else resets:
        assert_same(ours.reset(**reset), theirs.reset(**reset))


@with_exits
def test_equals_sync_vector_env_without_autoreset(after):
    ours, theirs = pair(AutoresetMode.DISABLED, after=after)
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    resets = 0
    for actions in random_actions(ours, 25, N, seed=1):
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        if result[2].any():
            resets += 1
            with pytest.raises(gymnasium.error.ResetNeeded):
                ours.step(actions)
            masks = [{"reset_mask": result[2].copy()} for _ in range(2)]
            assert_same(ours.reset(options=masks[0]), theirs.reset(options=masks[1]))
    assert resets >= (9 if after else 6)


@with_exits
@with_autoreset
@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_truncates_like_time_limit(mode, limit, after):
    ours, theirs = pair(mode, limit=limit, after=after)
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    truncated = 0
    for actions in random_actions(ours, 20, N, seed=2):
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        truncated += result[3].sum()
    assert (truncated > 0) == (limit <= 4)


def test_digits_equal_sync_vector_env():
    mode = AutoresetMode.SAME_STEP
    kwargs = {"backbone": default_digits().to_inference(), "split": "val"}
    ours = FractionalSkippingVectorEnv(6, autoreset_mode=mode, **kwargs)
    theirs = SyncVectorEnv([lambda: FractionalSkippingEnv(**kwargs)] * 6, autoreset_mode=mode)
    assert_same(ours.reset(seed=4), theirs.reset(seed=4))
    for actions in random_actions(ours, 14, 6):
        # Floating point sums of 32 bit, the last option, depend on the batch.
        assert_same(ours.step(actions % 5), theirs.step(actions % 5))


def test_digits_need_bits():
    accuracy = {}
    for option in (1, 5):
        env = FractionalSkippingVectorEnv(256, split="val")
        env.reset(seed=0)
        for _ in range(len(default_digits().layers)):
            *_, infos = env.step(np.full(256, option))
        accuracy[option] = infos["correct"].mean()
    assert accuracy[5] > 0.9
    assert accuracy[1] < accuracy[5]


def test_some_environments_reset_in_mid_episode():
    ours, theirs = pair(AutoresetMode.DISABLED, cost_weight_range=(1.0, 50.0))
    assert_same(ours.reset(seed=3), theirs.reset(seed=3))
    actions, mask = np.arange(N) % len(BITS), np.arange(N) % 2 == 0
    for reset in ({"seed": 5, "index": 7, "mask": mask}, {"mask": ~mask}):
        assert_same(ours.step(actions), theirs.step(actions))
        options = {key: reset[key] for key in reset.keys() & {"index"}}
        results = [
            env.reset(
                seed=reset.get("seed"), options={**options, "reset_mask": reset["mask"].copy()}
            )
            for env in (ours, theirs)
        ]
        assert_same(*results)
        masks = np.stack(theirs.call("action_masks"))
        np.testing.assert_array_equal(ours.action_masks(), masks)
    assert_same(ours.step(actions), theirs.step(actions))


def test_each_environment_can_get_its_image():
    ours, _ = pair(AutoresetMode.NEXT_STEP)
    _, infos = ours.reset(options={"index": np.array([4, 0, 4, 39, 2])})
    assert infos["index"].tolist() == [4, 0, 4, 39, 2]
    with pytest.raises(ConfigError, match="image index"):
        ours.reset(options={"index": [0, 1, 2, 3, 40]})


@with_exits
def test_later_steps_keep_returned_arrays(after):
    ours, _ = pair(AutoresetMode.SAME_STEP, after=after)
    first = ours.reset(seed=0)
    kept = tuple({key: value.copy() for key, value in part.items()} for part in first)
    for actions in random_actions(ours, 8, N):
        ours.step(actions)
    assert_same(first, kept)


@with_exits
def test_make_vec_records_statistics(after):
    env = gymnasium.make_vec(
        ENV_ID, num_envs=3, **toy_kwargs(after=after, autoreset_mode="SameStep")
    )
    assert isinstance(env.unwrapped, FractionalSkippingVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for actions in ([1, 1, 1], [4, 2, 4]) if after else [[0, 0, 0]] * 4:
        *_, infos = env.step(np.array(actions))
    assert infos["episode"]["l"].tolist() == ([2, 0, 2] if after else [4, 4, 4])
    if after:
        assert infos["final_info"]["n_layers_run"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec_runs_single_environments(mode):
    env = gymnasium.make_vec(ENV_ID, num_envs=2, vectorization_mode=mode, **toy_kwargs())
    observation, infos = env.reset(seed=0)
    expected, expected_infos = FractionalSkippingVectorEnv(2, **toy_kwargs()).reset(seed=0)
    np.testing.assert_array_equal(observation["features"], expected["features"])
    np.testing.assert_array_equal(infos["index"], expected_infos["index"])
    env.close()


@pytest.mark.parametrize(
    "mask", [np.zeros(N, dtype=np.bool_), np.ones(3, dtype=np.bool_), np.ones(N), [True] * N]
)
def test_bad_reset_mask(mask):
    ours, _ = pair(AutoresetMode.DISABLED)
    ours.reset(seed=0)
    with pytest.raises(ConfigError, match="reset_mask"):
        ours.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("seed", ["x", 1.5, [1], [1.5, 2], [1, "x"]])
def test_bad_seed(seed):
    env = FractionalSkippingVectorEnv(2, **toy_kwargs())
    with pytest.raises((ConfigError, gymnasium.error.Error)):
        env.reset(seed=seed)


def test_seeds_of_numpy():
    env = FractionalSkippingVectorEnv(2, **toy_kwargs())
    expected = env.reset(seed=[7, 8])[1]["index"].tolist()
    for seed in (np.int64(7), np.array([7, 8]), [np.int64(7), 8]):
        assert env.reset(seed=seed)[1]["index"].tolist() == expected
