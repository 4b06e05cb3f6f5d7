"""Models that write in place: traced as what they compute, or refused, at any bit options."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones.conversion.faithful import is_close
from dfs_rl.backbones.conversion.tracing import trace
from dfs_rl.errors import ConfigError
from tests.helpers.models import CLASSES, conv_norm, examples, lived_in, pictures

WIDTH = 8


class Writing(nn.Module):
    """Two residual blocks, in which ``write`` changes what a convolution returns."""

    def __init__(self, write) -> None:
        super().__init__()
        self.write = write
        self.stem = conv_norm(3, WIDTH)
        self.mix, self.part = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.block = nn.Sequential(conv_norm(WIDTH, WIDTH), nn.ReLU(inplace=True))
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = functional.relu(self.stem(x), inplace=True)
        x = x + self.write(self, self.mix(x), x)
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
    out = torch.empty(x.shape[0], WIDTH, *x.shape[2:])
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
    mask = torch.zeros(1, WIDTH, 1, 1)
    y = y + mask
    mask[:, :4] += 1
    return y * mask


WRITES = [
    *(convolved_slice, scaled_slice, view, chunks, unbound, filled, copied, out_argument),
    *(indexed, base_after_view, constants),
]


def written(write):
    return lived_in(lambda: Writing(write)).eval()


@pytest.mark.parametrize("write", WRITES)
def test_writes_are_traced_as_what_they_compute(write):
    model = written(write)
    backbone = fractionalize(model, examples())
    assert {part.name for part in backbone.report.gated} >= {"block.0.0"}
    with torch.no_grad():
        expected = model(pictures().float() / 255)
        torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-5, atol=1e-5)
    backbone.train()
    backbone(pictures(), 8).square().sum().backward()
    weights = [p for name, p in backbone.named_parameters() if name.endswith("weight")]
    assert all(p.grad is not None for p in weights if p.dim() == 4)


@pytest.mark.parametrize("settings", [{"bits": (0, 8, 16)}, {"stem_bits": 16}])
@torch.no_grad()
def test_writes_are_kept_where_the_bits_or_the_stem_is_quantized(settings):
    model = written(convolved_slice)
    backbone = fractionalize(model, examples(), **settings)
    expected = model(pictures().float() / 255)
    ours = backbone(pictures(), max(backbone.options))
    assert (ours - expected).norm() < 0.01 * expected.norm()


def dropped(net, y, x):
    net.drop(y).mul_(
        2
    )  # in evaluation dropout returns what it is given, which torch.export forgets
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


@pytest.mark.parametrize("settings", [{"bits": (0, 4)}, {"stem_bits": 8}, {}])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (dropped, "faithfully"),
        (first_row, "with the images beside it"),
        (noise, "depend on more than its images"),
        (strided, "the model itself writes into a view by fill_"),
    ],
)
def test_what_is_not_traced_as_it_is_is_refused_whatever_is_quantized(write, words, settings):
    with pytest.raises(ConfigError, match=words):
        fractionalize(written(write), examples(), **settings)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.net = nn.Dropout(), Writing(scaled_slice)

    def forward(self, x):
        y = x * 1
        self.drop(y).mul_(2)
        return self.net(y)


def test_the_first_module_that_is_traced_as_another_is_named():
    with pytest.raises(ConfigError, match=r"first in what module 'net\.stem\.0' returns"):
        fractionalize(lived_in(Inner), examples(), bits=(0, 4))


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Writing(scaled_slice)

    def forward(self, x):
        x -= 0.5
        return self.net(x)


@torch.no_grad()
def test_a_model_that_writes_into_its_images_leaves_the_examples_as_they_are():
    model, images = lived_in(Centred).eval(), examples()
    backbone = fractionalize(model, images)
    assert torch.equal(images, examples())
    expected = model(pictures().float() / 255)
    torch.testing.assert_close(backbone(pictures(), 32), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_buffer_that_only_counts_is_no_answer():
    def count(net, y, x):
        net.fc.calls += 1
        return scaled_slice(net, y, x)

    model = lived_in(lambda: Writing(count))
    model.fc.register_buffer("calls", torch.zeros(()))
    fractionalize(model, examples())


class Sliced(nn.Module):
    """Adds its shortcut into a view that nothing else reads, as GhostNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cheap = conv_norm(WIDTH, WIDTH), conv_norm(WIDTH, WIDTH)

    def forward(self, x):
        y = self.conv(x)
        y = torch.cat([y, self.cheap(y)], 1)[:, 2 : WIDTH + 2]
        y += x
        return y


@torch.no_grad()
def test_a_sum_written_into_a_view_that_nothing_else_reads_is_a_residual_block():
    def make():
        ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)
        return nn.Sequential(nn.Conv2d(3, WIDTH, 1), Sliced(), Sliced(), *ends)

    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    assert [layer.name for layer in backbone.report.gated] == ["1", "2"]
    expected = model(pictures().float() / 255)
    torch.testing.assert_close(backbone(pictures()), expected, rtol=1e-5, atol=1e-5)


class Moved(nn.Module):
    """Multiplies by halves of a parameter, and adds an embedding on the weights' device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(WIDTH, WIDTH, 1), nn.Parameter(torch.rand(2 * WIDTH))

    def forward(self, x):
        there = torch.ones(x.shape[0], 1, 1, 1).to(self.conv.weight.device, torch.float32)
        first, second = self.scale[:, None, None].split(WIDTH)
        return x + self.conv(x * first + second * there)


def test_tensors_that_a_model_moves_go_where_its_images_are():
    def make():
        ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)
        return nn.Sequential(nn.Conv2d(3, WIDTH, 1), Moved(), *ends)

    model = lived_in(make).eval()
    backbone = fractionalize(model, examples())
    expected = model(pictures().float() / 255)
    torch.testing.assert_close(backbone(pictures()), expected, rtol=1e-5, atol=1e-5)
    assert backbone.to("meta")(pictures().to("meta"), 8).device.type == "meta"


def test_a_buffer_filled_in_parts_is_made_where_its_images_are():
    backbone = fractionalize(written(filled), examples()).to("meta")
    assert backbone(pictures().to("meta"), 8).device.type == "meta"


def test_a_trace_has_no_operator_that_writes():
    graph = trace(written(chunks), examples()).graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert names
    assert not any(name.partition(".")[2].partition(".")[0].endswith("_") for name in names)


@pytest.mark.parametrize("scale", [1e-2, 1, 1e4])
def test_another_order_of_additions_is_no_other_answer(scale):
    logits = scale * torch.tensor([[1.0, -0.5], [0.0, 0.25]])
    assert is_close(logits + 5e-5 * scale, logits)
    assert not is_close(logits + 1e-3 * scale, logits)
    assert not is_close(logits.clone().fill_(torch.nan), logits)
