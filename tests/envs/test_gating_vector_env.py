import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.errors import ConfigError
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone
from tests.helpers.toy_env import toy_kwargs

N = 5


def pair(mode, **changes):
    """Our vector environment and Gymnasium's over single environments, on the same problem."""
    kwargs = toy_kwargs(**changes)
    ours = FractionalSkippingVectorEnv(N, autoreset_mode=mode, **kwargs)
    theirs = SyncVectorEnv([lambda: FractionalSkippingEnv(**kwargs)] * N, autoreset_mode=mode)
    return ours, theirs


def assert_same(ours, theirs):
    """Compare nested results of reset or step, types included."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        assert_same(tuple(ours), tuple(theirs))
    elif ours is None:
        assert theirs is None
    else:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("prices", [None, (1.0, 50.0)])
@pytest.mark.parametrize("budget", [None, 3.0])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equals_single_environments_step_for_step(mode, budget, prices):
    ours, theirs = pair(mode, budget=budget, cost_weight_range=prices)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    rng = np.random.default_rng(2)
    for _ in range(4 * (len(MACS) + 1)):
        actions = rng.integers(len(BITS), size=N)
        assert_same(ours.step(actions), theirs.step(actions))
    np.testing.assert_array_equal(ours.action_masks(), np.stack(theirs.call("action_masks")))
    assert_same(ours.reset(), theirs.reset())
    assert_same(ours.reset(seed=[4, 9, 1, 4, 2]), theirs.reset(seed=[4, 9, 1, 4, 2]))
    assert_same(ours.reset(options={"index": 3}), theirs.reset(options={"index": 3}))
    if prices:
        wanted = {"cost_weight": 7.0}
        assert_same(ours.reset(options=wanted), theirs.reset(options=wanted))


def test_equals_single_environments_without_autoreset():
    ours, theirs = pair(AutoresetMode.DISABLED)
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    for actions in np.random.default_rng(0).integers(len(BITS), size=(len(MACS), N)):
        ended = ours.step(actions)
        assert_same(ended, theirs.step(actions))
    assert ended[2].all()
    with pytest.raises(gymnasium.error.ResetNeeded):
        ours.step(np.zeros(N, dtype=np.int64))
    mask = np.ones(N, dtype=np.bool_)
    assert_same(
        ours.reset(options={"reset_mask": mask}), theirs.reset(options={"reset_mask": mask})
    )
    assert_same(ours.step(np.ones(N, dtype=np.int64)), theirs.step(np.ones(N, dtype=np.int64)))


@pytest.mark.parametrize(
    "mask", [np.zeros(N, dtype=np.bool_), np.ones(3, dtype=np.bool_), np.ones(N), [True] * N]
)
def test_a_mask_must_select_environments(mask):
    ours, _ = pair(AutoresetMode.DISABLED)
    ours.reset(seed=0)
    with pytest.raises(ConfigError, match="reset_mask"):
        ours.reset(options={"reset_mask": mask})


def test_environments_can_be_reset_in_part_wherever_they_are():
    ours, theirs = pair(AutoresetMode.DISABLED, cost_weight_range=(1.0, 50.0))
    assert_same(ours.reset(seed=3), theirs.reset(seed=3))
    actions = np.arange(N) % len(BITS)
    assert_same(ours.step(actions), theirs.step(actions))
    mask = np.arange(N) % 2 == 0
    assert_same(
        ours.reset(seed=5, options={"reset_mask": mask.copy(), "index": 7}),
        theirs.reset(seed=5, options={"reset_mask": mask.copy(), "index": 7}),
    )
    np.testing.assert_array_equal(ours.action_masks(), np.stack(theirs.call("action_masks")))
    assert_same(ours.step(actions), theirs.step(actions))
    assert_same(
        ours.reset(options={"reset_mask": ~mask}), theirs.reset(options={"reset_mask": ~mask})
    )
    assert_same(ours.step(actions), theirs.step(actions))


def test_each_environment_can_be_given_its_image():
    ours, _ = pair(AutoresetMode.NEXT_STEP)
    _, infos = ours.reset(options={"index": np.array([4, 0, 4, 39, 2])})
    assert infos["index"].tolist() == [4, 0, 4, 39, 2]
    with pytest.raises(ConfigError, match="image index"):
        ours.reset(options={"index": [0, 1, 2, 3, 40]})


def test_returned_arrays_are_not_overwritten_later():
    ours, _ = pair(AutoresetMode.SAME_STEP)
    first, _ = ours.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    for _ in range(6):
        ours.step(np.arange(N) % len(BITS))
    assert_same(first, kept)


def test_make_vec_takes_the_batched_form():
    env = gymnasium.make_vec(ENV_ID, num_envs=3, **toy_kwargs(autoreset_mode="SameStep"))
    assert isinstance(env.unwrapped, FractionalSkippingVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=0)
    for _ in MACS:
        *_, infos = wrapped.step(np.zeros(3, dtype=np.int64))
    assert infos["final_info"]["correct"].shape == (3,)
    assert infos["episode"]["l"].tolist() == [4, 4, 4]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec_runs_single_environments_on_demand(mode):
    env = gymnasium.make_vec(ENV_ID, num_envs=2, vectorization_mode=mode, **toy_kwargs())
    observation, infos = env.reset(seed=0)
    expected, expected_infos = FractionalSkippingVectorEnv(2, **toy_kwargs()).reset(seed=0)
    np.testing.assert_array_equal(observation["features"], expected["features"])
    np.testing.assert_array_equal(infos["index"], expected_infos["index"])
    env.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"autoreset_mode": "later"}, "allowed are"),
        ({"num_envs": 0}, "num_envs is 0"),
    ],
)
def test_bad_settings_are_refused(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        FractionalSkippingVectorEnv(**{"num_envs": 2, **toy_kwargs(), **arguments})


def test_seeds_must_be_as_many_as_environments():
    with pytest.raises(ConfigError, match=r"seed is \[1, 2\]"):
        FractionalSkippingVectorEnv(3, **toy_kwargs()).reset(seed=[1, 2])


def test_steps_before_the_first_reset_are_refused():
    env = FractionalSkippingVectorEnv(2, **toy_kwargs(backbone=ToyBackbone()))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2, dtype=np.int64))
