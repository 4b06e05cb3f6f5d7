import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone, run_alone
from tests.helpers.toy_env import N_IMAGES, WEIGHTS, toy_image_set, toy_kwargs


def play(env, actions):
    transitions = [env.step(np.int64(a)) for a in actions]
    return transitions, sum(t[1] for t in transitions)


def test_passes_both_checkers_without_a_warning():
    env = gymnasium.make(ENV_ID, **toy_kwargs(render_mode="rgb_array"))
    check_env(env.unwrapped)
    check_env_sb3(env)


def test_an_episode_against_the_closed_form():
    images, backbone = toy_image_set(), ToyBackbone()
    env = FractionalSkippingEnv(**toy_kwargs(budget=4.0))
    actions = [1, 0, 3, 2]
    observation, info = env.reset(options={"index": 7})
    assert info == {"index": 7}
    assert observation["layer"] == 0
    transitions, total = play(env, actions)

    logits = (
        backbone.head(run_alone(backbone, images.images[7], actions)[None])[0].detach().double()
    )
    label = int(images.labels[7])
    shares = [m / sum(MACS) * (BITS[a] / 32) ** 2 for m, a in zip(MACS, actions, strict=True)]
    fixed = (160 * (8 / 32) ** 2 + 16) / sum(MACS)
    likelihood = max(float(logits.log_softmax(0)[label]), -3.0) / 3.0
    correct = bool(logits.argmax() == label)
    overshoot = max(0.0, sum(shares) + fixed - 0.04)
    assert [t[1] for t in transitions[:3]] == pytest.approx([-20.0 * s for s in shares[:3]])
    assert total == pytest.approx(
        0.5 * correct + 0.5 * likelihood - 20.0 * sum(shares) - 3.0 * overshoot
    )

    assert [t[2] for t in transitions] == [False, False, False, True]
    assert not any(t[3] for t in transitions)
    assert [t[4] for t in transitions[:3]] == [{}, {}, {}]
    last = transitions[3][4]
    assert last.pop("bits").tolist() == [BITS[a] for a in actions]
    assert last.pop("computation") == pytest.approx(100 * (sum(shares) + fixed))
    assert last == {
        "index": 7,
        "label": label,
        "prediction": int(logits.argmax()),
        "correct": correct,
        "is_success": correct,
    }


@pytest.mark.parametrize("timing", ["step", "terminal"])
def test_an_episode_with_a_price_of_its_own_against_the_closed_form(timing):
    weights = RewardWeights(accuracy=0.0, log_likelihood=0.0, cost=999.0, cost_timing=timing)
    env = FractionalSkippingEnv(**toy_kwargs(reward=weights, cost_weight_range=(2.0, 32.0)))
    observation, info = env.reset(options={"index": 7, "cost_weight": 4.0})
    assert info == {"index": 7, "cost_weight": pytest.approx(4.0)}
    assert observation["context"][3] == pytest.approx(
        0.75
    )  # of the way from 32 to 2; halfway could not tell the ends apart
    actions = [1, 0, 3, 2]
    transitions, total = play(env, actions)
    shares = [m / sum(MACS) * (BITS[a] / 32) ** 2 for m, a in zip(MACS, actions, strict=True)]
    assert total == pytest.approx(-4.0 * sum(shares))
    assert [t[0]["context"][3] for t in transitions] == pytest.approx([0.75] * 4)


def test_the_numbers_of_infos_are_numpys_and_the_answer_counts_as_success():
    env = FractionalSkippingEnv(**toy_kwargs(cost_weight_range=(1.0, 9.0)))
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
        # What Gymnasium's vector environments make an array of truth values from.
        "correct": bool,
        "is_success": bool,
    }
    assert last["is_success"] is (last["label"] == last["prediction"]).item()


def test_prices_are_log_uniform_and_independent_of_the_image():
    env = FractionalSkippingEnv(**toy_kwargs(cost_weight_range=(1.0, 100.0)))
    env.reset(seed=0)
    infos = [env.reset()[1] for _ in range(2000)]
    where = np.log([info["cost_weight"] for info in infos]) / np.log(100.0)
    counts = np.histogram(where, bins=20, range=(0.0, 1.0))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    images = np.array([info["index"] for info in infos])
    assert abs(np.corrcoef(where, images)[0, 1]) < 0.075  # 3.3 standard deviations


def test_prices_leave_the_stream_of_images_alone():
    plain, priced = (
        FractionalSkippingEnv(**toy_kwargs(cost_weight_range=prices))
        for prices in (None, (1.0, 9.0))
    )
    drawn = [[env.reset(seed=s)[1]["index"] for s in (4, None, None)] for env in (plain, priced)]
    assert drawn[0] == drawn[1]


def test_the_same_seed_repeats_everything():
    runs = []
    for _ in range(2):
        env = FractionalSkippingEnv(**toy_kwargs())
        rng = np.random.default_rng(0)
        log = [env.reset(seed=5)[1]["index"]]
        for _ in range(20):
            transitions, total = play(env, rng.integers(len(BITS), size=len(MACS)))
            log += [total, transitions[1][0]["features"].tobytes(), env.reset()[1]["index"]]
        runs.append(log)
    assert runs[0] == runs[1]


def test_every_image_is_drawn_equally_often():
    env = FractionalSkippingEnv(**toy_kwargs())
    env.reset(seed=0)
    draws = np.bincount([env.reset()[1]["index"] for _ in range(2000)], minlength=N_IMAGES)
    expected = 2000 / N_IMAGES
    assert (
        (draws - expected) ** 2 / expected
    ).sum() < 72.1  # chi-squared, 39 degrees of freedom, p = 0.001
    assert len(draws) == N_IMAGES


def test_asking_for_an_image_leaves_the_stream_alone():
    asked, plain = (FractionalSkippingEnv(**toy_kwargs()) for _ in range(2))
    first = [env.reset(seed=3)[1]["index"] for env in (asked, plain)]
    asked.reset(options={"index": 0})
    second = [env.reset()[1]["index"] for env in (asked, plain)]
    assert first[0] == first[1]
    assert second[0] == second[1]


def test_flattens_with_the_standard_wrapper():
    env = gymnasium.wrappers.FlattenObservation(FractionalSkippingEnv(**toy_kwargs()))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4 + 4 + 3,)
    assert env.observation_space.contains(observation)


def test_masks_follow_the_budget_and_illegal_actions_are_charged():
    backbone = ToyBackbone()
    two_bits = float(backbone.costs.computation(torch.ones(1, 4, dtype=torch.int64)))
    env = FractionalSkippingEnv(**toy_kwargs(budget=two_bits))
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, True, True, False]
    free = FractionalSkippingEnv(**toy_kwargs())
    free.reset(seed=0)
    assert free.action_masks().all()
    _, bound_return = play(env, [3, 3, 3, 3])
    _, free_return = play(free, [3, 3, 3, 3])
    above = (8 / 32) ** 2 - (2 / 32) ** 2
    assert free_return - bound_return == pytest.approx(WEIGHTS.overshoot * above)


def test_observations_stay_inside_the_space_to_the_end():
    env = FractionalSkippingEnv(**toy_kwargs(budget=3.0))
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    for action in [3, 3, 3, 3]:
        observation = env.step(np.int64(action))[0]
        assert env.observation_space.contains(observation)
        assert observation["layer"].dtype == np.int64


def test_misuse_is_refused():
    env = FractionalSkippingEnv(**toy_kwargs())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="from 0 to 3"):
        env.step(np.int64(4))
    with pytest.raises(ConfigError, match=r"image index \[40\]"):
        env.reset(options={"index": N_IMAGES})
    env.reset()
    play(env, [0, 0, 0, 0])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"budget": 0.5}, ConfigError, "budget 0.5 % is not enough"),
        ({"render_mode": "human"}, ConfigError, "render_mode is 'human'"),
        ({"backbone": 3}, ConfigError, "backbone is a int"),
        ({"cost_weight_range": 5.0}, ConfigError, "cost_weight_range is 5.0; allowed is a list"),
        ({"cost_weight_range": (1.0, 2.0, 3.0)}, ConfigError, "allowed is a list of 2"),
        ({"cost_weight_range": (5.0, 1.0)}, ConfigError, "the cost weights run from 5 to 1"),
        ({"dataset": 3}, ConfigError, "dataset is a int"),
        ({"dataset": "digits"}, DataError, r"images are \[1, 8, 8\]"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(changes, error, complaint):
    with pytest.raises(error, match=complaint):
        FractionalSkippingEnv(**toy_kwargs(**changes))


def test_a_price_that_is_not_drawn_from_is_refused():
    with pytest.raises(
        ConfigError, match=r"was made without cost_weight_range and has one price, 20"
    ):
        FractionalSkippingEnv(**toy_kwargs()).reset(options={"cost_weight": 3.0})
    env = FractionalSkippingEnv(**toy_kwargs(cost_weight_range=(1.0, 9.0)))
    with pytest.raises(ConfigError, match="cost weight 99 is not among"):
        env.reset(options={"cost_weight": 99.0})


def test_labels_beyond_the_backbones_classes_are_refused():
    images = toy_image_set()
    labels = images.labels.clone()
    labels[0] = 3
    with pytest.raises(DataError, match="label 3"):
        FractionalSkippingEnv(**toy_kwargs(dataset=type(images)(images.images, labels)))
