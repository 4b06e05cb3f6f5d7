"""Modules that run several times and parameters of several names stay one weight."""

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones import BackboneInfo, load_backbone, save_backbone
from dfs_rl.backbones.conversion.convert import load_weights
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.errors import CheckpointError
from dfs_rl.training.supernet import make_optimizer
from dfs_rl.utils.checkpoint import load_tensors, save_tensors
from tests.helpers.models import (
    CLASSES,
    Encoder,
    chain,
    conv_norm,
    converted,
    examples,
    lived_in,
    names_of,
    pictures,
    with_encoder,
)

INFO = BackboneInfo(dataset="none", fingerprint="0", class_names=("a",) * CLASSES)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


def recurrent() -> nn.Module:
    return chain(*[Block()] * 3)


def tied() -> nn.Module:
    model = chain(Block(), Block(), Block())
    model[2].conv[0].weight = model[3].conv[0].weight = model[1].conv[0].weight
    return model


def shared_encoder() -> nn.Module:
    return with_encoder(*[Encoder(16)] * 3)


def uses(backbone: nn.Module, weight: Tensor) -> nn.Parameter:
    """Return the parameter that has a weight's values, after checking that it has three names."""
    named = backbone.named_parameters(remove_duplicate=False)
    same = [p for _, p in named if p.shape == weight.shape and torch.equal(p, weight)]
    assert len(same) == 3
    assert all(other is same[0] for other in same)
    return same[0]


# The model, and weights that it uses three times.
@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (recurrent, ["1.conv.0.weight"]),
        (tied, ["1.conv.0.weight"]),
        (shared_encoder, ["encoder.0.mlp.0.weight", "encoder.0.norm2.bias"]),
    ],
)
def test_a_shared_weight_stays_one_through_training(make, weights):
    model, backbone = converted(make)
    labels = torch.arange(16) % CLASSES
    functional.cross_entropy(model(pictures() / 255.0), labels).backward()
    functional.cross_entropy(backbone(pictures(), 32), labels).backward()
    shared = []
    for weight in map(model.get_parameter, weights):
        shared.append(uses(backbone, weight))
        torch.testing.assert_close(shared[-1].grad, weight.grad, rtol=1e-3, atol=1e-6)

    optimizer = make_optimizer(
        "sgd", backbone.train().named_parameters(), lr=0.1, weight_decay=1e-2, momentum=0.9
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(sum(p is one for p in trained) == 1 for one in shared)
    for bits in (32, 4):
        optimizer.zero_grad()
        functional.cross_entropy(backbone(pictures(), bits), labels).backward()
        optimizer.step()
    backbone = copy.deepcopy(backbone).to(torch.float64).float().eval()
    for weight in shared:
        uses(backbone, weight)
    with torch.no_grad():
        frozen = backbone.to_inference()
        hidden = run_layers(frozen, frozen.stem(pictures()), (32,) * len(frozen.layers))
        torch.testing.assert_close(frozen.head(hidden), backbone(pictures(), 32))


def test_every_use_has_its_own_scales_and_batch_norms():
    backbone = fractionalize(recurrent().eval(), examples())
    assert names_of(backbone) == ["1.conv.0", "2.conv.0", "3.conv.0"]
    assert backbone.costs.layer_macs == (256 * 8 * 8 * 9,) * 3
    first, second = (next(iter(layer.ops.values())) for layer in backbone.layers[:2])
    assert first.weight is second.weight
    assert first.quantizers.weight_log_scale is not second.quantizers.weight_log_scale
    assert first.norm.running_mean is not second.norm.running_mean


@pytest.mark.usefixtures("no_allowed_constructors")
def test_a_stored_backbone_shares_what_it_shared(tmp_path):
    backbone = fractionalize(recurrent(), examples(), constructor=f"{__name__}:recurrent")
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


class Exact(Block):
    """A constant in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("third", torch.full((8, 1, 1), 1 / 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * self.third).float())


def exact() -> nn.Module:
    return chain(Exact())


@pytest.mark.usefixtures("no_allowed_constructors")
def test_a_stored_backbone_keeps_double_precision(tmp_path):
    backbone = fractionalize(exact(), examples(), constructor=f"{__name__}:exact")
    save_backbone(backbone, INFO, tmp_path)
    again = load_backbone(tmp_path)
    assert {n: t.dtype for n, t in again.state_dict().items()} == {
        n: t.dtype for n, t in backbone.state_dict().items()
    }
    assert torch.equal(again(pictures()), backbone(pictures()))


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


def test_fixed_filters_stay_fixed_names_distinct():
    backbone = fractionalize(chain(Filtered()).eval(), examples(), bits=(0, 4))
    blurs = [p for p in backbone.parameters() if p.shape == (8, 1, 3, 3)]
    assert [blur.requires_grad for blur in blurs] == [False]
    assert {float(p.detach()) for p in backbone.parameters() if p.dim() == 0} == {2.0, 3.0}


def names_kept(model: nn.Module, path: Path) -> None:
    safetensors.torch.save_model(model, str(path))


def names_all(model: nn.Module, path: Path) -> None:
    safetensors.torch.save_file({n: t.clone() for n, t in model.state_dict().items()}, path)


def names_last(model: nn.Module, path: Path) -> None:
    torch.save({n: t for n, t in model.state_dict().items() if n[0] not in "12"}, path)


@pytest.mark.parametrize(
    ("write", "file"),
    [(names_kept, "w.safetensors"), (names_all, "w.safetensors"), (names_last, "w.pt")],
)
def test_weights_of_shared_tensors_load_by_any_name(write, file, tmp_path):
    source, model = lived_in(recurrent), recurrent()
    write(source, tmp_path / file)
    load_weights(model, tmp_path / file)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in source.state_dict().items())
    assert model[1] is model[3]


def test_contradicting_shared_weights_are_refused(tmp_path):
    path, three = tmp_path / "w.safetensors", chain(Block(), Block(), Block())
    kept = {n: t.clone() for n, t in recurrent().state_dict().items() if n[0] not in "12"}
    del kept["3.conv.0.weight"]
    save_tensors(path, kept)
    with pytest.raises(CheckpointError, match=r'Missing key.*"1\.conv\.0\.weight"'):
        load_weights(recurrent(), path)
    names_kept(recurrent(), path)
    with pytest.raises(CheckpointError, match="Missing key"):
        load_weights(three, path)
    save_tensors(path, three.state_dict())
    with pytest.raises(CheckpointError, match=r"1\.conv\.0\.weight and 2\.conv\.0\.weight with"):
        load_weights(recurrent(), path)
