import gymnasium
import numpy as np
import pytest

from dfs_rl.envs import ENV_ID
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.envs.rendering import bits_colour, draw_episode
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import make_task
from tests.helpers.toy_backbone import BITS, MACS
from tests.helpers.toy_env import toy_kwargs

CONTENT = {
    "image": np.zeros((8, 8, 1), dtype=np.uint8),
    "bits": [2, 0],
    "n_layers": 4,
    "computation": 1.0,
    "budget": None,
    "label": "cat",
}


def assert_different(pictures):
    assert all(not np.array_equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(8, 8), (32, 20)])
def test_any_image_fits(shape, channels):
    image = np.full((*shape, channels), 200, dtype=np.uint8)
    picture = draw_episode(**CONTENT | {"image": image})
    assert picture.shape == (360, 640, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("n_layers", [1, 9, 54])
def test_bars_have_the_colour_of_their_bits(n_layers):
    picture = draw_episode(**CONTENT | {"bits": [8] * n_layers, "n_layers": n_layers})
    present = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert bits_colour(8) in present
    assert not {bits_colour(bits) for bits in (2, 4, 32)} & present


def test_colours_of_bit_widths_differ():
    colours = [np.array(bits_colour(bits)) for bits in (0, 1, 2, 3, 4, 8, 16, 32)]
    closest = min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i])
    assert closest > 20


def test_answer_and_budget_show():
    changes = [{}, {"answer": ("cat", 0.9)}, {"answer": ("dog", 0.9)}, {"budget": 3.0}]
    pictures = [draw_episode(**CONTENT | change) for change in changes]
    assert_different(pictures)
    _, right, wrong, _ = pictures
    green, red = (26, 132, 84), (200, 55, 45)
    for picture, present, absent in ((right, green, red), (wrong, red, green)):
        colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert present in colours
        assert absent not in colours


def test_every_step_changes_the_picture():
    env = gymnasium.make(ENV_ID, **toy_kwargs(render_mode="rgb_array", budget=5.0))
    env.reset(seed=0)
    pictures = [env.render()]
    for action in range(len(MACS)):
        env.step(np.int64(action))
        pictures.append(env.render())
    assert_different(pictures)


def test_batches_render_each_environment():
    kwargs = {"autoreset_mode": "Disabled", "render_mode": "rgb_array", **toy_kwargs(after=(1,))}
    env = FractionalSkippingVectorEnv(2, **kwargs)
    env.reset(seed=0)
    env.step(np.array([1, 1]))
    env.step(np.array([len(BITS), 2]))  # one takes the exit
    assert [picture.shape for picture in env.render()] == [(360, 640, 3)] * 2
    assert_different(env.render())
    tiled = SB3GatingVecEnv(make_task(**toy_kwargs()), 2, seed=0, render_mode="rgb_array")
    tiled.reset()
    assert tiled.render().shape == (2 * 360, 640, 3)


def test_truncated_episode_shows_no_answer():
    kwargs = {"autoreset_mode": "Disabled", "render_mode": "rgb_array", **toy_kwargs()}
    plain, truncated = (
        FractionalSkippingVectorEnv(1, max_episode_steps=limit, **kwargs) for limit in (None, 2)
    )
    for env in (plain, truncated):
        env.reset(seed=0)
        for action in (1, 3):
            env.step(np.array([action]))
    np.testing.assert_array_equal(plain.render()[0], truncated.render()[0])


@pytest.mark.filterwarnings("ignore")  # of moviepy
def test_episodes_can_be_recorded(tmp_path):
    pytest.importorskip("moviepy", reason="needs dfs-rl[video]")
    import imageio_ffmpeg  # a dependency of moviepy

    env = gymnasium.make(ENV_ID, **toy_kwargs(render_mode="rgb_array"))
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda _: True)
    env.reset(seed=0)
    for _ in MACS:
        env.step(np.int64(0))
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    n_frames, _ = imageio_ffmpeg.count_frames_and_secs(video)
    assert n_frames == 1 + len(MACS)  # the first is of the reset
