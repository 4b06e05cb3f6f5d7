"""Names of backbones: what they stand for, what they refuse, and names of third parties."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dfs_rl.backbones import (
    AdaptiveResNetConfig,
    BackboneInfo,
    ResNet,
    ResNetConfig,
    load_backbone,
    register_backbone,
    registry,
    save_backbone,
)
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.backbones.registry import network_of
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extending.md"
RGB = ChannelStatistics(mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))


@pytest.mark.parametrize(
    ("name", "recipe", "values"),
    [
        ("resnet20", "supernet", {"depth": 20}),
        ("cifar_resnet50", "supernet", {"depth": 50}),
        ("resnet20", "adn", {"blocks": (3, 3, 3), "block": "basic", "stem": "cifar", "width": 16}),
        ("cifar_resnet50", "adn", {"blocks": (8, 8, 8), "block": "basic"}),
        ("resnet26", "adn", {"blocks": (2, 2, 2, 2), "block": "bottleneck"}),
        ("resnet50", "adn", {"blocks": (3, 4, 6, 3), "stem": "imagenet", "width": 64}),
        ("resnet101", "adn", {"blocks": (3, 4, 23, 3)}),
        ("resnet152", "adn", {"blocks": (3, 8, 36, 3), "block": "bottleneck"}),
        ("vit5", "supernet", {"depth": 5, "width": 192}),
        ("vit6", "adn", {"blocks": (3, 3)}),
        ("swin_small", "adn", {"blocks": (2, 2, 18, 2), "width": 96}),
    ],
)
def test_name_stands_for_published_network(name, recipe, values):
    config = network_of(name, recipe).config(image_size=(64, 64))
    assert {key: getattr(config, key) for key in values} == values


def test_settings_replace_defaults_not_fixed_values():
    resnet50 = network_of("resnet50", "adn")
    assert resnet50.settings == ("granularity", "stem")
    config = resnet50.config(stem="cifar", width=None, block="basic", image_size=(64, 64))
    assert (config.stem, config.width, config.block) == ("cifar", 64, "bottleneck")


@pytest.mark.parametrize(
    ("name", "recipe", "told"),
    [
        ("resnet50", "supernet", "add --recipe adn, or take cifar_resnet50"),
        ("resnet9", "supernet", "cifar_resnet8, cifar_resnet14, cifar_resnet20, ..., cifar_"),
        ("resnet21", "supernet", " resnet8, resnet14, resnet20, ..., resnet1202 (6 n + 2), vit1"),
        ("bottleneck50", "adn", "mobilenetv2, resnet14, resnet20, resnet26, ..., resnet1202, sw"),
        ("mobilenetv2", "supernet", "which the recipe adn trains; add --recipe adn."),
        ("resnet8", "adn", "cifar_resnet14, cifar_resnet20, cifar_resnet26, ..., cifar_resnet1202"),
        ("resnet021", "adn", "allowed are"),
        ("vit49", "supernet", "vit1, vit2, vit3, ..., vit48, or module:function"),
        ("vit2", "elastic", "resnet26, ..., cifar_resnet1202 (6 n + 2), resnet14, resnet20, "),
        ("vit0", "adn", "vit3, vit6, vit9, ..., vit48 (3 n)."),
    ],
)
def test_unknown_name_lists_what_is_allowed(name, recipe, told):
    with pytest.raises(ConfigError) as refused:
        network_of(name, recipe)
    assert f"backbone is '{name}'" in str(refused.value)
    assert told in str(refused.value)


@pytest.fixture
def names(monkeypatch):
    """A copy of the registry, so that what a test registers is gone after it."""
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES.copy())
    copied = {recipe: names.copy() for recipe, names in registry._NAMES.items()}
    monkeypatch.setattr(registry, "_NAMES", copied)
    monkeypatch.setattr("dfs_rl.backbones.storage.FAMILIES", registry.FAMILIES)


@pytest.mark.usefixtures("names")
def test_registered_backbone_is_made_stored_and_loaded(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class OursConfig(ResNetConfig):
        twice: bool = False

    @register_backbone("ours", OursConfig, depth=8, twice=True)
    class Ours(ResNet):
        family = "ours"

    net = network_of("ours").make(RGB, width=2, image_size=(8, 8), bits=(0, 32))
    assert isinstance(net, Ours)
    assert network_of("ours").settings == ("first_block",)
    save_backbone(net, BackboneInfo(dataset="d", fingerprint="0", class_names=("a",)), tmp_path)
    again = load_backbone(tmp_path)
    assert type(again) is Ours
    assert again.config == net.config


@pytest.mark.usefixtures("names")
def test_page_on_new_backbones_works():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = (block for block in blocks if "@dfs_rl.register_backbone" in block)
    exec(compile(text, str(PAGE), "exec"), {"__name__": "page"})
    net = network_of("toy_plain").make(RGB, width=3, image_size=(8, 8), bits=(0, 4, 32)).eval()
    assert len(net.layers) == 2
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    expected = net(images, 32)
    frozen = net.to_inference()
    logits = frozen.head(run_layers(frozen, frozen.stem(images), (32,) * 2))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("name", ["resnet20", "Our-net", ""])
def test_taken_and_malformed_names_are_refused(name):
    with pytest.raises(ConfigError, match=f"name is {name!r}"):
        register_backbone(name, ResNetConfig)


@pytest.mark.usefixtures("names")
def test_family_of_another_class_is_refused():
    class Other(ResNet):
        pass

    with pytest.raises(ConfigError, match="family is 'resnet'"):
        register_backbone("other", AdaptiveResNetConfig)(Other)
