"""Calibration of users' own models on images."""

import copy

import pytest
import torch

from dfs_rl import calibrate, fractionalize
from dfs_rl.errors import ConfigError, DataError
from tests.helpers.models import NETS, examples, lived_in, pictures


@pytest.fixture(scope="module")
def resnet():
    """A backbone that is not to be changed."""
    return fractionalize(lived_in(NETS["resnet"]), examples(), bits=(0, 2, 32))


@torch.no_grad()
@pytest.mark.parametrize("name", ["preactivation", "mixer"])
def test_calibration_brings_low_bits_near_the_model(name):
    backbone = fractionalize(lived_in(NETS[name]), examples(), bits=(0, 3, 4, 8, 32))
    images = pictures(256)
    full = backbone(images, 32)
    spread = (full - full.mean(0)).square().mean()

    def error(bits: int) -> float:
        return float((backbone(images, bits) - full).square().mean() / spread)

    before = error(4)
    calibrate(backbone, images)
    assert torch.equal(backbone(images, 32), full)
    assert error(8) < 0.01
    assert error(8) < error(4) < error(3)
    assert error(4) < 0.7 * before
    assert not bool(backbone.feature_mean[0].eq(0).all())


@torch.no_grad()
def test_calibrated_norms_match_full_precision(resnet):
    backbone = copy.deepcopy(resnet)
    images = pictures(256)  # as many as a batch, so that every batch has the same statistics
    calibrate(backbone, images)
    convolution = next(iter(backbone.layers[0].ops.values()))
    hidden = backbone.stem(images)
    low, full = (convolution(hidden, bits) for bits in (2, 32))
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(
            moment(low, dim=(0, 2, 3)), moment(full, dim=(0, 2, 3)), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (pictures(1), r"\[1, 3, 16, 16\]; calibration needs at least 2 of \[3, 16, 16\]"),
        (pictures()[..., :8], r"\[16, 3, 16, 8\]; calibration needs at least 2"),
        (pictures().numpy(), "is a ndarray"),
        (pictures().long(), "are torch.int64; allowed are uint8, or float"),
        (examples(), "from -.* to .*; allowed are uint8, or float in .*leave out mean and std"),
        (torch.full((2, 3, 16, 16), torch.nan), "not finite"),
        (torch.full((2, 3, 16, 16), torch.inf), "not finite"),
    ],
)
def test_calibration_needs_images(images, sentence, resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    with pytest.raises(DataError, match=sentence):
        calibrate(resnet, images)
    assert all(torch.equal(before[name], value) for name, value in resnet.state_dict().items())


def test_calibration_needs_a_backbone():
    with pytest.raises(ConfigError, match="is a BasicResNet; make one of a model"):
        calibrate(lived_in(NETS["resnet"]), pictures())


def test_calibration_takes_float_images(resnet):
    ours, theirs = copy.deepcopy(resnet), copy.deepcopy(resnet)
    calibrate(ours, pictures(64))
    calibrate(theirs, pictures(64).float() / 255)
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_may_be_sorted():
    backbone = fractionalize(lived_in(NETS["resnet"]), examples(), bits=(0, 8, 32))
    images = pictures(200)
    calibrate(backbone, torch.cat([torch.zeros_like(images), images]))
    full = backbone(images, 32)
    error = (backbone(images, 8) - full).square().mean() / (full - full.mean(0)).square().mean()
    assert error < 0.01
