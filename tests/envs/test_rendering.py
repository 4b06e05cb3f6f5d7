import itertools

import gymnasium
import numpy as np
import pytest

from dfs_rl.envs import ENV_ID
from dfs_rl.envs.rendering import Frame, bits_colour, draw
from tests.helpers.toy_backbone import MACS
from tests.helpers.toy_env import toy_kwargs


def frame(**changes):
    values = {
        "image": np.zeros((8, 8, 1), dtype=np.uint8),
        "bits": [2, 0],
        "n_layers": 4,
        "computation": 1.0,
        "budget": None,
        "label": "cat",
    }
    return Frame(**values | changes)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(8, 8), (32, 20)])
def test_any_image_fits(shape, channels):
    picture = draw(frame(image=np.full((*shape, channels), 200, dtype=np.uint8)))
    assert picture.shape == (360, 640, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("n_layers", [1, 9, 54])
def test_every_chosen_layer_has_its_colour_and_no_other(n_layers):
    widths = [2, 4, 32]
    picture = draw(frame(bits=[8] * n_layers, n_layers=n_layers))
    present = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert bits_colour(8) in present
    assert not {bits_colour(b) for b in widths} & present


def test_colours_tell_bit_widths_apart():
    colours = [np.array(bits_colour(bits)) for bits in (0, 1, 2, 3, 4, 8, 16, 32)]
    closest = min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i])
    assert closest > 20


def test_the_verdict_and_the_budget_show():
    plain = draw(frame())
    right = draw(frame(prediction="cat", probability=0.9))
    wrong = draw(frame(prediction="dog", probability=0.9))
    bound = draw(frame(budget=3.0))
    pictures = [plain, right, wrong, bound]
    assert all(not np.array_equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_an_environment_draws_every_step():
    env = gymnasium.make(ENV_ID, **toy_kwargs(render_mode="rgb_array", budget=5.0))
    env.reset(seed=0)
    pictures = [env.render()]
    for action in range(len(MACS)):
        env.step(np.int64(action))
        pictures.append(env.render())
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(pictures))
    vector = gymnasium.make_vec(ENV_ID, num_envs=2, **toy_kwargs(render_mode="rgb_array"))
    vector.reset(seed=0)
    assert [picture.shape for picture in vector.render()] == [(360, 640, 3)] * 2
