"""Models that write in place: traced as what they compute, or refused, at any bit options."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones.conversion.faithful import is_close
from dfs_rl.backbones.conversion.tracing import name_of, trace
from dfs_rl.errors import ConfigError
from tests.helpers.models import (
    CLASSES,
    chain,
    conv_norm,
    converted,
    examples,
    lived_in,
    names_of,
    pictures,
)


class Writing(nn.Module):
    """Residual blocks, in all but the last of which a write changes what a convolution returns."""

    def __init__(self, *writes) -> None:
        super().__init__()
        self.writes = writes
        self.stem = conv_norm(3, 8)
        self.mix, self.part = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.block = nn.Sequential(conv_norm(8, 8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, CLASSES)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = functional.relu(self.stem(x), inplace=True)
        for write in self.writes:
            x = x + write(self, self.mix(x), x)
        x = x + self.block(x)
        return self.fc(x.mean((2, 3)))


def convolved_slice(net, y, x):
    y[:, :4] = net.part(x[:, :4])
    return y


def scaled_slice(net, y, x):
    y[:, :2] *= 0.3
    y[..., 0] += 1
    return y


def view(net, y, x):
    y.view(-1, 2, 4, *y.shape[2:])[:, 0].mul_(3)
    y.flatten(1).clamp_(-1, 1)
    return y


def chunks(net, y, x):
    first, second = y.chunk(2, 1)
    first.relu_()
    second += first
    return y


def unbound(net, y, x):
    y.unbind(1)[2].zero_()
    return y


def filled(net, y, x):
    out = torch.empty(x.shape[0], 8, *x.shape[2:])
    out[:, :4] = net.part(y[:, :4])
    out[:, 4:] = y[:, 4:]
    return out


def copied(net, y, x):
    out = torch.zeros_like(y)
    out.copy_(y[:, :1])
    out[:, 1].copy_(torch.tensor(2))
    return out + y


def out_argument(net, y, x):
    torch.mul(y[:, :4], 2, out=y[:, :4])
    return torch.add(x, y, out=torch.empty_like(y))


def indexed(net, y, x):
    y[:, torch.tensor([1, 3])] = x[:, torch.tensor([0, 2])]
    y[y < -1] = 0
    y[:, :4].masked_fill_(x[:, :4] > 0.2, 0.5)
    return y


def base_after_view(net, y, x):
    before = y[:, :4]
    y.relu_()
    return torch.cat([before, y[:, 4:]], 1)


def constants(net, y, x):
    mask = torch.zeros(1, 8, 1, 1)
    y = y + mask
    mask[:, :4] += 1
    return y * mask


def written(write) -> nn.Module:
    return lived_in(lambda: Writing(write)).eval()


WRITES = [
    *(convolved_slice, scaled_slice, view, chunks, unbound, filled, copied, out_argument),
    *(indexed, base_after_view, constants),
]


@pytest.mark.parametrize("writes", [WRITES[:4], WRITES[4:8], WRITES[8:]])
def test_writes_are_traced_as_what_they_compute(writes):
    _, backbone = converted(lambda: Writing(*writes))
    assert "block.0.0" in names_of(backbone)
    backbone.train()
    backbone(pictures(), 8).square().sum().backward()
    weights = [p for name, p in backbone.named_parameters() if name.endswith("weight")]
    assert all(p.grad is not None for p in weights if p.dim() == 4)


@torch.no_grad()
def test_writes_are_kept_in_quantized_networks():
    model = written(convolved_slice)
    backbone = fractionalize(model, examples(), bits=(0, 8, 16), stem_bits=16)
    expected = model(pictures() / 255.0)
    ours = backbone(pictures(), 16)
    assert (ours - expected).norm() < 0.01 * expected.norm()


def dropped(net, y, x):  # in evaluation dropout returns its input, which torch.export forgets
    net.drop(y).mul_(2)
    return y


def first_row(net, y, x):
    y[0] = 0
    return y


def noise(net, y, x):
    y[:, 0].uniform_()
    return y


def strided(net, y, x):
    y[:, 0].as_strided((1, 4), (1, 1)).fill_(1)
    return y


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (dropped, "faithfully"),
        (first_row, "with the other images of its batch"),
        (noise, "depend on more than its images"),
        (strided, "the model itself writes into a view by fill_"),
    ],
)
def test_unfaithful_traces_are_refused(write, words):
    with pytest.raises(ConfigError, match=words):
        fractionalize(written(write), examples())


class Inner(nn.Module):
    """Runs ``before`` on its images, then a network."""

    def __init__(self, before) -> None:
        super().__init__()
        self.before, self.drop, self.net = before, nn.Dropout(), Writing(scaled_slice)

    def forward(self, x):
        return self.net(self.before(self, x))


def doubled(net, x):
    y = x * 1
    net.drop(y).mul_(2)
    return y


def centred(net, x):
    x -= 0.5
    return x


def test_the_first_unfaithful_module_is_named():
    with pytest.raises(ConfigError, match=r"first in what module 'net\.stem\.0' returns"):
        fractionalize(lived_in(lambda: Inner(doubled)), examples(), bits=(0, 4))


def test_images_and_buffers_that_a_model_writes_into_stay():
    def count(net, y, x):
        net.fc.calls += 1
        return scaled_slice(net, y, x)

    model, images = lived_in(lambda: Inner(centred)).eval(), examples()
    model.net.writes = (count,)
    model.net.fc.register_buffer("calls", torch.zeros(()))
    backbone = fractionalize(model, images)
    assert torch.equal(images, examples())
    assert not model.net.fc.calls
    with torch.no_grad():
        expected = model(pictures() / 255.0)
        torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-4, atol=1e-5)


class Sliced(nn.Module):
    """Adds its shortcut into a view that nothing else reads, as GhostNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cheap = conv_norm(8, 8), conv_norm(8, 8)

    def forward(self, x):
        y = self.conv(x)
        y = torch.cat([y, self.cheap(y)], 1)[:, 2:10]
        y += x
        return y


def test_a_sum_written_into_a_view_is_a_residual_block():
    _, backbone = converted(lambda: chain(Sliced(), Sliced()))
    assert names_of(backbone) == ["1", "2"]


class Moved(nn.Module):
    """Multiplies by halves of a parameter, and adds an embedding on the weights' device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(8, 8, 1), nn.Parameter(torch.rand(16))

    def forward(self, x):
        there = torch.ones(x.shape[0], 1, 1, 1).to(self.conv.weight.device, torch.float32)
        first, second = self.scale[:, None, None].split(8)
        return x + self.conv(x * first + second * there)


@pytest.mark.parametrize("make", [lambda: chain(Moved()), lambda: Writing(filled)])
def test_tensors_are_made_on_the_images_device(make):
    _, backbone = converted(make)
    assert backbone.to("meta")(pictures().to("meta"), 8).device.type == "meta"


def test_a_trace_has_no_operator_that_writes():
    nodes = trace(written(chunks), examples()).nodes
    names = [name_of(node) for node in nodes if node.op == "call_function"]
    assert names
    assert not any(name.endswith("_") for name in names)


@pytest.mark.parametrize("scale", [1e-2, 1, 1e4])
def test_another_order_of_additions_is_no_other_answer(scale):
    logits = scale * torch.tensor([[1.0, -0.5], [0.0, 0.25]])
    assert is_close(logits + 5e-5 * scale, logits)
    assert not is_close(logits + 1e-3 * scale, logits)
    assert not is_close(logits.clone().fill_(torch.nan), logits)
