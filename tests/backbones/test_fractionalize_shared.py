"""Modules that run several times and parameters of several names stay one weight."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones import BackboneInfo, load_backbone, save_backbone
from dfs_rl.backbones.conversion.convert import load_weights
from dfs_rl.errors import CheckpointError
from dfs_rl.training.optimizers import make_optimizer
from dfs_rl.utils.checkpoint import load_tensors, save_tensors
from tests.helpers.models import CLASSES, Encoder, SmallViT, conv_norm, examples, lived_in, pictures

INFO = BackboneInfo(dataset="none", fingerprint="0", class_names=("a",) * CLASSES)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


def chain(*blocks: nn.Module) -> nn.Sequential:
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *ends)


def recurrent() -> nn.Module:
    return chain(*[Block()] * 3)


def tied() -> nn.Module:
    first, second, third = Block(), Block(), Block()
    second.conv[0].weight = third.conv[0].weight = first.conv[0].weight
    return chain(first, second, third)


def shared_encoder() -> nn.Module:
    model = SmallViT()
    model.encoder = nn.Sequential(*[Encoder(16)] * 3)
    return model


# The model, and a weight that it uses three times.
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "recurrent": (recurrent, "1.conv.0.weight"),
    "tied": (tied, "1.conv.0.weight"),
    "encoder": (shared_encoder, "encoder.0.mlp.0.weight"),
    "its norm": (shared_encoder, "encoder.0.norm2.bias"),
}
models = pytest.mark.parametrize(("make", "weight"), MODELS.values(), ids=MODELS)


def uses(backbone: nn.Module, weight: Tensor) -> list[nn.Parameter]:
    """Return the parameters that have a weight's values, once for every name."""
    named = backbone.named_parameters(remove_duplicate=False)
    return [p for _, p in named if p.shape == weight.shape and torch.equal(p, weight)]


@models
def test_a_weight_that_is_used_several_times_has_the_models_gradient(make, weight):
    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    labels = torch.arange(16) % CLASSES
    functional.cross_entropy(model(pictures() / 255.0), labels).backward()
    functional.cross_entropy(backbone(pictures(), 32), labels).backward()
    expected = model.get_parameter(weight)
    first, *others = uses(backbone, expected)
    assert len(others) == 2
    assert all(other is first for other in others)
    torch.testing.assert_close(first.grad, expected.grad, rtol=1e-3, atol=1e-6)


@models
def test_a_shared_weight_stays_one_through_training_and_copies(make, weight):
    model = lived_in(make)
    backbone = fractionalize(model, examples()).train()
    optimizer = make_optimizer(
        "sgd", backbone.named_parameters(), lr=0.1, weight_decay=1e-2, momentum=0.9
    )
    shared = uses(backbone, model.get_parameter(weight))[0]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(p is shared for p in trained) == 1
    for bits in (32, 4):
        optimizer.zero_grad()
        functional.cross_entropy(backbone(pictures(), bits), torch.arange(16) % CLASSES).backward()
        optimizer.step()
    backbone = copy.deepcopy(backbone).to(torch.float64).float().eval()
    first, *others = uses(backbone, shared)
    assert len(others) == 2
    assert all(other is first for other in others)
    with torch.no_grad():
        frozen = backbone.to_inference()
        hidden = frozen.stem(pictures())
        for layer in frozen.layers:
            hidden = layer(hidden, 32)
        torch.testing.assert_close(frozen.head(hidden), backbone(pictures(), 32))


def test_every_use_is_a_layer_with_scales_and_batch_norms_of_its_own():
    backbone = fractionalize(recurrent().eval(), examples())
    assert [layer.name for layer in backbone.report.gated] == ["1.conv.0", "2.conv.0", "3.conv.0"]
    assert backbone.costs.layer_macs == (256 * 8 * 8 * 9,) * 3
    first, second = (next(iter(layer.ops.values())) for layer in backbone.layers[:2])
    assert first.weight is second.weight
    assert first.quantizers.weight_log_scale is not second.quantizers.weight_log_scale
    assert first.norm.running_mean is not second.norm.running_mean


@pytest.mark.usefixtures("no_allowed_constructors")
def test_a_stored_backbone_shares_what_it_shared(tmp_path):
    where = f"{__name__}:recurrent"
    backbone = fractionalize(recurrent(), examples(), constructor=where)
    save_backbone(backbone, INFO, tmp_path)
    again = load_backbone(tmp_path)
    assert len(list(again.parameters())) == len(list(backbone.parameters()))
    assert torch.equal(again(pictures(), 4), backbone(pictures(), 4))
    shared = next(iter(again.layers[0].ops.values())).weight
    assert next(iter(again.layers[2].ops.values())).weight is shared
    path = tmp_path / "backbone.safetensors"
    tensors = load_tensors(path)
    name = next(n for n in tensors if n.startswith("blocks.1.ops") and n.endswith(".weight"))
    save_tensors(path, tensors | {name: tensors[name] + 1})
    with pytest.raises(CheckpointError, match=name):
        load_backbone(tmp_path)


class Filtered(Block):
    """A filter that is not trained, and names that are one where points become underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9))
        self.a, self.a_b = nn.Module(), nn.Module()
        self.a.b_c, self.a_b.c = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.blur, padding=1, groups=8)
        return super().forward(x) * self.a.b_c - self.a_b.c


@torch.no_grad()
def test_fixed_filters_stay_fixed_and_no_two_parameters_become_one():
    model = nn.Sequential(Filtered(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *model).eval()
    backbone = fractionalize(model, examples(), bits=(0, 4))
    blurs = [p for p in backbone.parameters() if p.shape == (8, 1, 3, 3)]
    assert blurs
    assert not any(blur.requires_grad for blur in blurs)
    held = {float(p) for p in backbone.parameters() if p.dim() == 0}
    assert held == {2.0, 3.0}


def names_kept(model: nn.Module, path: Path) -> None:
    safetensors.torch.save_model(model, str(path))


def names_all(model: nn.Module, path: Path) -> None:
    safetensors.torch.save_file({n: t.clone() for n, t in model.state_dict().items()}, path)


def names_last(model: nn.Module, path: Path) -> None:
    state = {n: t.clone() for n, t in model.state_dict().items() if n[0] not in "12"}
    torch.save(state, path)


@pytest.mark.parametrize(
    ("write", "file"),
    [(names_kept, "w.safetensors"), (names_all, "w.safetensors"), (names_last, "w.pt")],
)
def test_weights_of_shared_tensors_are_read_whichever_names_a_file_has(write, file, tmp_path):
    source, model = lived_in(recurrent), recurrent()
    write(source, tmp_path / file)
    load_weights(model, tmp_path / file)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in source.state_dict().items())
    assert model[1] is model[3]


def test_incomplete_and_contradicting_weights_of_shared_tensors_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    kept = {n: t.clone() for n, t in recurrent().state_dict().items() if n[0] not in "12"}
    del kept["3.conv.0.weight"]
    save_tensors(path, kept)
    with pytest.raises(CheckpointError, match=r"lacks 1\.conv\.0\.weight"):
        load_weights(recurrent(), path)
    safetensors.torch.save_model(recurrent(), str(path))
    with pytest.raises(CheckpointError, match="lacks"):
        load_weights(chain(Block(), Block(), Block()), path)
    save_tensors(path, chain(Block(), Block(), Block()).state_dict())
    with pytest.raises(CheckpointError, match=r"1\.conv\.0\.weight and 2\.conv\.0\.weight differ"):
        load_weights(recurrent(), path)
