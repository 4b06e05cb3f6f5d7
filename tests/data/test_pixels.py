"""Images checked and made to fit, against Pillow and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from dfs_rl.data import load_dataset
from dfs_rl.data.decode import fit_picture
from dfs_rl.data.pixels import check_pixels, fit_images
from dfs_rl.errors import ConfigError, DataError

SIZES = [(9, 6), (6, 9), (17, 40), (40, 17), (7, 7), (200, 8), (5, 64)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    bands = Image.new(mode, (1, 1)).getbands()
    pixels = np.random.default_rng(width * height).integers(
        0, 256, (len(bands), height, width), dtype=np.uint8
    )
    return Image.merge(mode, [Image.fromarray(band) for band in pixels])


def resized_then_cropped(picture: Image.Image, size: int) -> np.ndarray:
    """What Pillow makes of the whole picture, cut to its centre; channels first."""
    shorter = min(picture.size)
    width, height = (side * size // shorter for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    bands = [
        band.resize((width, height), Image.Resampling.BILINEAR).crop(
            (left, top, left + size, top + size)
        )
        for band in picture.split()
    ]
    return np.stack([np.asarray(band) for band in bands])


def channels_first(picture: Image.Image) -> np.ndarray:
    return np.moveaxis(np.atleast_3d(np.asarray(picture)), 2, 0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [4, 8, 31])
def test_pictures_are_resized_and_cropped(mode, size):
    for sides in SIZES:
        picture = noise(*sides, mode=mode)
        fitted = channels_first(fit_picture(picture, size))
        assert fitted.shape == (len(mode), size, size)
        difference = fitted.astype(int) - resized_then_cropped(picture, size)
        assert abs(difference).max() <= 1  # where the crop begins is rounded once more


def test_a_picture_that_fits_is_left_alone():
    picture = noise(8, 8)
    assert fit_picture(picture, 8) is picture
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert fit_images(images, 8) is images


@pytest.mark.parametrize("size", [4, 8, 31])
def test_tensors_are_resized_as_pictures_are(size):
    for sides in SIZES:
        picture = noise(*sides)
        images = torch.from_numpy(channels_first(picture).copy())[None]
        fitted = fit_images(images, size)
        expected = torch.from_numpy(channels_first(fit_picture(picture, size)).copy())[None]
        assert float((255 * fitted - expected).abs().max()) <= 1.5  # two roundings of Pillow's
        assert float(fitted.min()) >= -1e-6
        assert float(fitted.max()) <= 1 + 1e-6
        torch.testing.assert_close(fit_images(images / 255, size), fitted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("image_size", [3, 0, -8, 8.0, "8", True])
def test_invalid_sizes_are_refused(image_size):
    with pytest.raises(ConfigError, match=f"image_size is {image_size!r}"):
        load_dataset("digits", image_size=image_size)


def test_digits_can_be_resized_and_mirrored():
    plain, large = load_dataset("digits"), load_dataset("digits", image_size=12, flip=True)
    assert (plain.image_size, plain.flip, plain.image_shape) == (None, False, (1, 8, 8))
    assert (large.image_size, large.flip, large.image_shape) == (12, True, (1, 12, 12))
    picture = Image.fromarray(plain.test.images[3, 0].numpy())
    expected = np.asarray(picture.resize((12, 12), Image.Resampling.BILINEAR))
    assert np.array_equal(large.test.images[3, 0].numpy(), expected)
    assert plain.fingerprint != large.fingerprint
    assert plain.fingerprint != load_dataset("digits", image_size=11).fingerprint
    assert plain.fingerprint == load_dataset("digits", image_size=8).fingerprint


@pytest.mark.parametrize(
    ("images", "bounded"),
    [
        (torch.tensor([0, 255], dtype=torch.uint8), True),
        (torch.tensor([0.0, 1.0]), True),
        (torch.tensor([-0.0009, 1.0009]), True),
        (torch.zeros(0), True),
        (torch.tensor([-2.1, 300.0]), False),
    ],
)
def test_valid_pixels_pass(images, bounded):
    check_pixels(images, bounded=bounded)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (torch.tensor([0.0, 255.0]), "from 0 to 255; .*divide by 255 or pass uint8"),
        (torch.tensor([0.0, 1.01]), r"from 0 to 1\.01; .*clamp"),
        (torch.tensor([-2.1, 0.5]), r"from -2\.1 to 0\.5; .*leave out mean and std"),
        (torch.tensor([-0.01, 0.5], dtype=torch.float64), r"from -0\.01 to 0\.5"),
        (torch.tensor([0.5, torch.nan]), "not finite"),
        (torch.tensor([0.5, torch.inf]), "not finite"),
        (torch.tensor([-torch.inf, 0.5], dtype=torch.bfloat16), "not finite"),
        (torch.tensor([0, 1], dtype=torch.int16), r"torch\.int16; allowed are uint8"),
        (torch.tensor([True, False]), r"torch\.bool"),
        (torch.zeros(2).to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
        (torch.zeros(2, 2).to_sparse(), r"torch\.sparse_coo"),
        (torch.zeros(2, 2, dtype=torch.uint8).to_sparse(), r"torch\.sparse_coo"),
        (torch.tensor([0.5 + 0j]), r"torch\.complex64"),
        (np.zeros((2, 2), dtype=np.uint8), r"ndarray; .*torch\.Tensor"),
        (None, "NoneType"),
    ],
)
def test_invalid_pixels_are_refused(images, named):
    with pytest.raises(DataError, match=named):
        check_pixels(images)
    if named == "not finite":
        with pytest.raises(DataError, match=named):
            check_pixels(images, bounded=False)
