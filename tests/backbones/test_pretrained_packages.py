"""Networks of torchvision and transformers, where they are installed, in the sizes people use."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from dfs_rl import fractionalize
from dfs_rl.gating.execution import run_head, run_layer, run_stem

# A network that torch.export reads takes as long as all other tests of its kind together.
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
    ),
]


LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def torchvision_models():
    try:
        return pytest.importorskip("torchvision.models")
    except RuntimeError:  # a wheel for another build of torch lacks operators
        for name in ("nms", "qnms"):
            LIBRARY.define(name + BOXES)
        return pytest.importorskip("torchvision.models", exc_type=Exception)


def shake(model: nn.Module) -> nn.Module:
    """Let no weight be zero: some heads start so, and would be equal to anything."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def check(model: nn.Module, side: int, n_layers: int, **settings: object) -> None:
    images = torch.rand(2, 3, side, side)
    backbone = fractionalize(model, images, bits=(0, 4, 32), **settings)
    assert len(backbone.layers) == n_layers
    result = model(images)
    expected = getattr(result, "logits", result)
    torch.testing.assert_close(backbone(images, 32), expected, rtol=1e-4, atol=1e-4)
    frozen = backbone.to_inference()
    for options in ([2, 2], [0, 2], [1, 0]):
        state = run_stem(frozen, images)
        for _ in range(n_layers):
            state = run_layer(frozen, state, torch.tensor(options), reuse=True)
        logits = run_head(frozen, state)
        assert bool(logits.isfinite().all())
        for row, option in enumerate(options):
            if option == 2:
                torch.testing.assert_close(logits[row], expected[row], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "n_layers", "settings"),
    [
        ("resnet18", 8, {}),
        ("resnet50", 16, {}),
        ("mobilenet_v2", 10, {}),
        ("vit_b_16", 12, {}),
        ("swin_t", 24, {"granularity": "branch"}),
    ],
)
def test_torchvision(name, n_layers, settings):
    model = getattr(torchvision_models(), name)(num_classes=7)
    check(shake(model), 224, n_layers, **settings)


@pytest.fixture
def transformers():
    if find_spec("torchvision") is not None:  # transformers imports it
        torchvision_models()
    return pytest.importorskip("transformers")


def test_transformers_vit(transformers):
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    model = shake(transformers.ViTForImageClassification(config))
    check(model, 32, 3)
    check(model, 32, 6, granularity="branch")


@pytest.mark.parametrize(("kind", "depths"), [("basic", [2, 2]), ("bottleneck", [1, 3])])
def test_transformers_resnet(transformers, kind, depths):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=depths, layer_type=kind, num_labels=7
    )
    check(shake(transformers.ResNetForImageClassification(config)), 64, sum(depths))
