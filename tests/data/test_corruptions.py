import colorsys
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from dfs_rl.data import Dataset, ImageSet, load_dataset
from dfs_rl.data.corruptions import LEVELS, STRENGTHS, conditions, corrupt, corrupted
from dfs_rl.errors import ConfigError, DataError

CELLS = list(itertools.product(LEVELS, STRENGTHS))


def random_images(n: int, c: int = 3, h: int = 20, w: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=generator)


def keys(rows: range) -> list[tuple[str, int]]:
    return [("val", row) for row in rows]


def hendrycks(image: np.ndarray, corruption: str, level: float) -> np.ndarray:
    """Corrupt one image ``[h, w, 3]`` in [0, 1] by other libraries."""
    if corruption == "blur":
        return ndimage.gaussian_filter(image, (level, level, 0), mode="nearest", truncate=4)
    if corruption == "contrast":
        mean = image.mean((0, 1))
        return np.clip((image - mean) * level + mean, 0, 1)
    if corruption == "brightness":
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
        rgb = [colorsys.hsv_to_rgb(h, s, min(v + level, 1.0)) for h, s, v in hsv]
        return np.array(rgb).reshape(image.shape)
    height, width, _ = image.shape
    picture = Image.fromarray(np.uint8(np.rint(image * 255)))
    small = picture.resize((int(level * width), int(level * height)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


@pytest.mark.parametrize("corruption", ["blur", "contrast", "brightness", "pixelation"])
def test_corruptions_match_other_libraries(corruption):
    images = random_images(3)
    images[0, :, 0] = 0  # black has no hue
    for strength in STRENGTHS:
        result = corrupt(images, corruption, strength, keys(range(3)))
        for image, output in zip(images, result, strict=True):
            pixels = image.permute(1, 2, 0).numpy() / 255
            expected = 255 * hendrycks(pixels, corruption, LEVELS[corruption][strength - 1])
            difference = output.permute(1, 2, 0).numpy() - expected
            # Pillow rounds after rows and after columns.
            assert np.abs(difference).max() <= (1.0 if corruption == "pixelation" else 0.51)


def test_noise_has_its_standard_deviation():
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    for strength, level in zip(STRENGTHS, LEVELS["noise"], strict=True):
        noise = corrupt(grey, "noise", strength, keys(range(40))).double() / 255 - 128 / 255
        assert noise.std().item() == pytest.approx(level, rel=0.02)
        assert abs(noise.mean().item()) < 4 * level / noise.numel() ** 0.5
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize(("corruption", "strength"), CELLS)
def test_result_does_not_depend_on_the_batch(corruption, strength):
    images = random_images(5)
    together = corrupt(images, corruption, strength, keys(range(5)))
    for i in (4, 0):
        alone = corrupt(images[i : i + 1], corruption, strength, keys(range(i, i + 1)))
        assert torch.equal(alone[0], together[i])
    assert together.dtype == torch.uint8
    assert not torch.equal(together, images)


def test_conditions_are_even_and_have_prefixes():
    mixed = Counter(conditions(60, "mixed", "val"))
    assert mixed == dict.fromkeys(CELLS, 2) | {None: 10}
    assert Counter(conditions(10, "blur", "val")) == {("blur", s): 2 for s in STRENGTHS}
    assert conditions(17, "mixed", "val") == conditions(60, "mixed", "val")[:17]
    assert conditions(60, "mixed", "test") != conditions(60, "mixed", "val")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_stream_leaves_train_and_clean_images(digits):
    stream = load_dataset("digits", corruptions="mixed")
    assert (stream.name, stream.corruptions) == ("digits-mixed", "mixed")
    assert torch.equal(stream.train.images, digits.train.images)
    for name in ("agent", "val", "test"):
        before, after = digits.split(name), stream.split(name)
        assert torch.equal(after.labels, before.labels)
        for row, condition in enumerate(conditions(len(before), "mixed", name)):
            expected = before.images[row : row + 1]
            if condition is not None:
                expected = corrupt(expected, *condition, [(name, row)])
            assert torch.equal(after.images[row : row + 1], expected)


def test_stream_knows_its_clean_data_set(digits):
    stream = corrupted(digits, "noise")
    assert stream.clean is digits
    assert digits.clean is digits
    fingerprints = {digits.fingerprint, stream.fingerprint, corrupted(digits, "blur").fingerprint}
    assert len(fingerprints) == 3
    assert stream.fingerprint == load_dataset("digits", corruptions="noise").fingerprint
    copies = sum(s.images.nbytes + s.labels.nbytes for s in (stream.agent, stream.val, stream.test))
    assert stream.memory_bytes == digits.memory_bytes + copies


def test_bad_streams_are_refused(digits):
    with pytest.raises(ConfigError, match=r"corruptions is 'fog'; allowed are none, mixed, noise"):
        load_dataset("digits", corruptions="fog")  # type: ignore[arg-type]
    stream = corrupted(digits, "noise")
    assert corrupted(stream, "noise") is stream
    with pytest.raises(DataError, match="has the corruptions noise, not none"):
        corrupted(stream, "none")
    alpha = ImageSet(random_images(2, c=4), torch.tensor([0, 1]))
    splits = dict.fromkeys(("train", "agent", "val", "test"), alpha)
    with pytest.raises(DataError, match="have 4 channels; allowed are grey and RGB"):
        corrupted(replace(digits, **splits), "blur")
