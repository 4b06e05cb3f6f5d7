from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.data import augment
from dfs_rl.errors import ConfigError


def random_images(n: int, c: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (n, c, h, w), dtype=torch.uint8, generator=generator)


def every_crop(image: torch.Tensor, pad: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """All possible results, pixel by pixel: contents to (row offset, column offset, mirrored)."""
    _, height, width = image.shape
    crops = {}
    for mirrored in (False, True) if flip else (False,):
        for top in range(-pad, pad + 1):
            for left in range(-pad, pad + 1):
                crop = torch.zeros_like(image)
                for y in range(height):
                    for x in range(width):
                        source_y, source_x = y + top, (width - 1 - x if mirrored else x) + left
                        if 0 <= source_y < height and 0 <= source_x < width:
                            crop[:, y, x] = image[:, source_y, source_x]
                crops[crop.numpy().tobytes()] = (top, left, mirrored)
    return crops


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 4),
    h=st.integers(4, 6),
    w=st.integers(4, 6),
    pad=st.integers(0, 2),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_results_are_crops_of_their_own_image(n, c, h, w, pad, flip, seed):
    images = random_images(n, c, h, w, seed)
    before = images.clone()
    result = augment(images, torch.Generator().manual_seed(seed), pad=pad, flip=flip)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)
    assert n == 0 or result.data_ptr() != images.data_ptr()
    for image, output in zip(images, result, strict=True):
        assert output.numpy().tobytes() in every_crop(image, pad, flip)


@pytest.mark.parametrize(("flip", "bound"), [(False, 26.1), (True, 42.3)])
def test_offsets_and_mirroring_are_uniform(flip, bound):
    n, pad = 3600, 1
    image = random_images(1, 1, 4, 4)
    crops = every_crop(image[0], pad, flip)
    generator = torch.Generator().manual_seed(5)
    result = augment(image.expand(n, -1, -1, -1), generator, pad=pad, flip=flip)
    seen = Counter(crops[output.numpy().tobytes()] for output in result)
    expected = n / len(crops)
    chi_square = sum((seen[kind] - expected) ** 2 / expected for kind in crops.values())
    assert len(crops) == (18 if flip else 9)
    assert chi_square < bound  # the 99.9 % point with 8 or 17 degrees of freedom


def test_same_seed_same_result_and_other_seed_another():
    images = random_images(64, 3, 8, 8)
    first, again, other = (
        augment(images, torch.Generator().manual_seed(seed), pad=2, flip=True) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    images = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(images, torch.Generator().manual_seed(1), pad=2, flip=True), first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("pad", [-1, 5, 1000])
def test_padding_beyond_the_image_is_refused(pad):
    with pytest.raises(ConfigError, match=rf"pad is {pad}.* 4 x 6 pixels; allowed are 0 to 4"):
        augment(random_images(1, 1, 4, 6), torch.Generator(), pad=pad, flip=False)


@pytest.mark.parametrize(("h", "w", "pad"), [(16, 16, 2), (24, 8, 1), (8, 24, 1), (4, 4, 0)])
def test_default_padding_is_an_eighth_of_a_side(h, w, pad):
    images = random_images(3, 2, h, w)
    ours, given = (torch.Generator().manual_seed(1) for _ in range(2))
    expected = augment(images, given, pad=pad, flip=True)
    assert torch.equal(augment(images, ours, flip=True), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("generator_device", ["cpu", "cuda"])
def test_on_a_gpu_as_on_the_cpu(generator_device):
    images = random_images(64, 3, 8, 8)
    generator = torch.Generator(generator_device).manual_seed(3)
    result = augment(images.cuda(), generator, pad=2, flip=True)
    assert result.device.type == "cuda"
    if generator_device == "cpu":
        expected = augment(images, torch.Generator().manual_seed(3), pad=2, flip=True)
        assert torch.equal(result.cpu(), expected)
