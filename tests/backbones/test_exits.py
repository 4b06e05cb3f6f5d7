"""Exits of a real backbone: their costs and training; the network stays the same."""

import json

import pytest
import torch

from dfs_rl.backbones import (
    PRETRAINED_DIGITS,
    BackboneInfo,
    ResNet,
    default_digits,
    load_backbone,
    save_backbone,
)
from dfs_rl.backbones.storage import weights_digest
from dfs_rl.data import load_dataset
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.training.calibration import fit_exits
from tests.helpers.networks import network

INFO = BackboneInfo(dataset="digits", fingerprint="0", class_names=tuple("0123456789"))


def small():
    return network(ResNet, image_size=(8, 6), stem_bits=4, bits=(0, 4, 32))


@pytest.fixture(scope="module")
def fitted():
    """The shipped backbone with fitted exits after layers 1 and 4; not to be changed."""
    backbone, images = default_digits(), load_dataset("digits").train.images
    fit_exits(backbone, (1, 4), images.split(200), torch.Generator().manual_seed(0))
    return backbone


def test_a_head_costs_what_its_product_does():
    backbone = small()
    backbone.set_exits((1, 2))
    # Before layers 1 and 2: 4 channels of 8 x 6, 8 of 4 x 3, in at most 4 x 4 parts, 3 classes.
    assert [(e.after, e.macs, e.bits) for e in backbone.costs.exits] == [
        (1, 4 * 16 * 3, 4),
        (2, 8 * 12 * 3, 4),
    ]
    assert backbone.costs.fixed[-1].layer == len(backbone.layers)
    looks = [backbone.probe_sizes[0] * 3 / 64, 4 * 16 * 3 / 64, 8 * 12 * 3 / 64]
    assert backbone.layer_feature_macs == tuple(looks)
    assert backbone.feature_macs == sum(looks)


def test_removed_exits_leave_the_backbone_unchanged():
    backbone, plain = small(), small()
    backbone.set_exits((0, 2))
    backbone.set_exits(())
    assert backbone.costs == plain.costs
    assert backbone.feature_macs == plain.feature_macs
    assert backbone.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_heads_learn_the_networks_answers(fitted):
    plain, val = default_digits(), load_dataset("digits").val
    assert torch.equal(fitted(val.images, 4), plain(val.images, 4))
    frozen = fitted.to_inference()
    hidden, agreement = frozen.stem(val.images), {}
    said = plain(val.images, 32).argmax(dim=1)
    for layer, block in enumerate(frozen.layers):
        if layer in (1, 4):
            answers = frozen.answer(hidden, layer).argmax(dim=1)
            agreement[layer] = float((answers == said).double().mean())
        hidden = block(hidden, 4)
    assert min(agreement.values()) > 0.9  # by chance 0.1


@torch.no_grad()
def test_the_frozen_form_answers_alike(fitted):
    frozen, images = fitted.to_inference(), load_dataset("digits").val.images[:50]
    hidden = fitted.stem(images)
    for layer, block in enumerate(fitted.layers):
        if layer in (1, 4):
            theirs = frozen.answer(hidden, layer)
            torch.testing.assert_close(fitted.answer(hidden, layer), theirs, rtol=1e-4, atol=1e-4)
        ours, theirs = fitted.feature(hidden, layer), frozen.feature(hidden, layer)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        hidden = block(hidden, 32)


@torch.no_grad()
def test_before_an_exit_a_gate_sees_its_confidence(fitted):
    plain, images = default_digits(), load_dataset("digits").train.images
    frozen = fitted.to_inference()
    hidden = frozen.stem(images)
    assert torch.equal(fitted.feature(hidden, 0), plain.feature(hidden, 0))
    hidden = frozen.layers[0](hidden, 8)
    seen, without = fitted.feature(hidden, 1), plain.feature(hidden, 1)
    assert torch.equal(seen[:, 3:], without[:, 3:])
    # In the probe's units: the ranks are those of the exit's own confidence, the spread is usual.
    best = fitted.answer(hidden, 1).softmax(dim=1).amax(dim=1)
    assert torch.equal(seen[:, 0].argsort(stable=True), best.argsort(stable=True))
    usual = (seen[:, :3] - fitted.feature_mean[1, :3]) / fitted.feature_std[1, :3]
    assert usual.mean(dim=0).abs().max() < 1.0
    assert 0.4 < float(usual.std(dim=0).min()) <= float(usual.std(dim=0).max()) < 2.0


def test_stored_exits_come_back_apart_from_weights(fitted, tmp_path):
    images = load_dataset("digits").val.images[:20]
    save_backbone(fitted, INFO, tmp_path / "with")
    save_backbone(default_digits(), INFO, tmp_path / "without")
    again = load_backbone(tmp_path / "with")
    assert again.costs == fitted.costs
    assert again.layer_feature_macs == fitted.layer_feature_macs
    with torch.no_grad():
        hidden = fitted.stem(images)
        assert torch.equal(again.answer(hidden, 1), fitted.answer(hidden, 1))
        assert torch.equal(again.feature(hidden, 1), fitted.feature(hidden, 1))
    assert weights_digest(tmp_path / "with") == weights_digest(tmp_path / "without")
    digests = {weights_digest(tmp_path / name, exits=True) for name in ("with", "without")}
    assert len(digests) == 2
    assert not (tmp_path / "without" / "exits.safetensors").exists()
    assert load_backbone(PRETRAINED_DIGITS).costs.exits == ()


@pytest.mark.parametrize("exits", [[1], [9], [1, 4, 5], "14", [True]])
def test_a_description_that_does_not_fit_is_refused(fitted, tmp_path, exits):
    save_backbone(fitted, INFO, tmp_path)
    path = tmp_path / "backbone.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"exits": exits}))
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path)


@pytest.mark.parametrize("after", [(6,), (-1,), (3, 1)])
def test_exits_that_do_not_exist_are_refused(after):
    with pytest.raises(ConfigError, match="allowed are ascending numbers from 0 to 5"):
        default_digits().set_exits(after)
