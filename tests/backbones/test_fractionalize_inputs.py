"""Models and example images that ``fractionalize`` takes and refuses."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfs_rl import fractionalize
from dfs_rl.backbones.conversion import convert
from dfs_rl.backbones.conversion.tracing import trace
from dfs_rl.errors import ConfigError, DataError
from tests.helpers.models import (
    CLASSES,
    BasicResNet,
    Dense,
    Extended,
    Flat,
    Odd,
    SmallViT,
    converted,
    examples,
    lived_in,
    names_of,
    pictures,
)


@pytest.fixture(scope="module")
def resnet_trace():
    return trace(BasicResNet(), examples())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": ["nowhere"]}, "'nowhere', in which no convolution"),
        ({"layers": ["stem"]}, "'stem', which cannot be skipped: no shortcut"),
        ({"layers": ["blocks", "blocks.1"]}, "overlap"),
        ({"layers": []}, "layers is empty"),
        ({"bits": (0,)}, "no layer ever runs"),
        ({"bits": (0, 9, 32)}, "contain 9"),
        ({"stem_bits": 0}, "stem_bits is 0"),
        ({"granularity": "net"}, "granularity is 'net'"),
        ({"mean": 0.1}, "mean is 0.1; give 3 numbers, one for each channel"),
        ({"mean": "0.1"}, "mean is 0.1; give 3 numbers"),
        ({"mean": torch.zeros(1, 3, 1, 1)}, "mean is tensor"),
        ({"std": [1.0, 1.0]}, r"std is \[1.0, 1.0\]; give 3 numbers"),
        ({"layers": "blocks.0"}, "layers is 'blocks.0'; allowed is a list"),
        ({"layers": [2]}, r"layers\[0\] is 2; allowed is text"),
        ({"bits": 8}, "bits is 8; allowed is a list"),
        ({"bits": (0, 8.0)}, r"bits\[1\] is 8.0; allowed is a whole number"),
        ({"stem_bits": "8"}, "stem_bits is '8'; allowed"),
        ({"constructor": 3}, "3 names no constructor"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence, resnet_trace, monkeypatch):
    monkeypatch.setattr(convert, "trace", lambda *_: resnet_trace)
    with pytest.raises(ConfigError, match=sentence) as refused:
        fractionalize(BasicResNet(), examples(), **settings)
    assert "\n" not in str(refused.value)


def deciding() -> nn.Module:
    net = Extended(lambda net, x: BasicResNet.forward(net, net.odd(x)), odd=Odd())
    net.stem.register_forward_pre_hook(lambda *_: None)
    return net


def remembering() -> nn.Module:
    model = BasicResNet()
    model.remembered = model.fc.weight * 2
    return model


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(BasicResNet())


def switching(net, x):
    with torch.no_grad():
        return BasicResNet.forward(net, x)


class TokensFirst(SmallViT):
    def forward(self, x):
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        for block in self.encoder:
            x = x + block.mlp(x)
        return self.head(x.mean(0))


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (pictures(), "example_input is torch.uint8"),
        (examples().numpy(), "example_input is a ndarray"),
        (examples()[0], r"example_input is torch.float32 \[3, 16, 16\]"),
        (examples()[:0], r"\[0, 3, 16, 16\], has no images"),
        (examples() / 0, "has numbers that are not finite"),
    ],
)
def test_impossible_examples_are_refused(example, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fractionalize(BasicResNet(), example)


@pytest.mark.parametrize(
    ("make", "shape", "module"),
    [
        (BasicResNet, (4, 1, 16, 16), "stem.0"),
        (Flat, (4, 3, 8, 8), "fc"),
        (SmallViT, (1, 3, 32, 32), "SmallViT"),
        (lambda: BasicResNet().half(), (4, 3, 16, 16), "stem.0"),
        (lambda: BasicResNet().double(), (4, 3, 16, 16), "stem.0"),
    ],
)
def test_unfit_images_are_refused_in_torchs_words(make, shape, module):
    model, images = make(), torch.zeros(shape)
    with pytest.raises(RuntimeError) as torchs:
        model.eval()(images)
    with pytest.raises(ConfigError) as refused:
        fractionalize(model, images)
    told = str(refused.value)
    assert f"does not accept the example images, float32 {list(shape)}: module {module!r}" in told
    assert str(torchs.value).splitlines()[0].rstrip(".") in told
    assert "traced" not in told
    assert "\n" not in told


def ending(end, classes: int = CLASSES) -> nn.Module:
    """Return a ResNet of ``classes`` whose answer ``end`` changes."""
    net = Extended(lambda net, x: end(BasicResNet.forward(net, x)))
    net.fc = nn.Linear(16, classes)
    return net


@pytest.mark.parametrize(
    ("classes", "end", "words"),
    [
        (1, lambda z: z, "has 1 output, .* two classes or more; give a binary .* two outputs"),
        (5, lambda z: z[:, :0], "has 0 outputs"),
        (1, lambda z: z.squeeze(1), r"returns torch.float32 \[16\]; wrap it"),
        (5, lambda z: (z, z), r"returns torch.float32 \[16, 5\], torch.float32 \[16, 5\]; wrap"),
        (5, lambda z: {"logits": z, "more": z[:, 0]}, r"\[16, 5\], torch.float32 \[16\]; wrap it"),
        (5, lambda z: z[:, :, None, None].expand(-1, -1, 4, 4), r"\[16, 5, 4, 4\]; wrap it"),
        (5, lambda z: z.argmax(1, keepdim=True), r"returns torch.int64 \[16, 1\]; wrap it"),
        (5, lambda z: torch.complex(z, z), r"returns torch.complex64 \[16, 5\]; wrap it"),
        (5, lambda z: None, "returns no tensor; wrap it"),
    ],
)
def test_what_is_no_logits_of_two_classes_is_refused(classes, end, words):
    with pytest.raises(ConfigError, match=words):
        fractionalize(ending(end, classes), examples(), (0, 4))


@pytest.mark.parametrize("end", [lambda z: (z,), lambda z: {"logits": z}, lambda z: (z, None)])
def test_logits_in_a_container_are_logits(end):
    assert trace(ending(end, 2), examples()).logits.meta["val"].shape[1] == 2


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "returns probabilities, but gates"),
        (nn.Sigmoid(), "returns probabilities, but gates learn"),
        (lambda z: z / 0, "returns numbers that are not finite for the"),
    ],
)
def test_answers_that_are_no_logits_are_refused(end, words):
    with pytest.raises(ConfigError, match=f"Extended {words}"):
        fractionalize(ending(end), examples(), bits=(0, 4))


@pytest.mark.parametrize("end", [nn.LogSoftmax(dim=1), nn.Softplus()])
def test_log_probabilities_are_logits(end):
    model = lived_in(BasicResNet).eval()
    backbone = fractionalize(nn.Sequential(model, end), examples())
    with torch.no_grad():
        theirs, ours = model(pictures().float() / 255), backbone(pictures())
    torch.testing.assert_close(ours, end(theirs), rtol=1e-5, atol=1e-5)
    if isinstance(end, nn.LogSoftmax):
        # At any temperature they stand for the probabilities that the logits stand for.
        for temperature in (0.5, 1.0, 3.0):
            torch.testing.assert_close(
                (ours / temperature).softmax(1), (theirs / temperature).softmax(1)
            )


def squeezing(net, x):
    return net.fc(net.blocks(net.stem(x).relu()).mean((2, 3)).squeeze())


def sixteen(net, x):
    assert len(x) == 16
    return BasicResNet.forward(net, x)


def centring(net, x):
    return BasicResNet.forward(net, x - x.mean(0))


def drawing(net, x):
    return BasicResNet.forward(net, x + torch.randn_like(x))


def converting(dtype):
    """Return a ResNet that computes in a dtype of its own."""
    net = Extended(lambda net, x: BasicResNet.forward(net, x.to(dtype)).float())
    return net.to(dtype)


def inside(net, x):  # one product among others
    x = net.blocks(net.stem(x).relu())
    return net.fc((x.mean((2, 3)).double() @ net.rotation).float())


def counting(size):
    def run(net, x):
        return BasicResNet.forward(net, x) * torch.ones(size(x.shape[0]), 1)[:1]

    return Extended(run)


def alone(run):
    """Return the maker of a ResNet that says something else of an image alone."""
    return lambda: lived_in(lambda: Extended(run))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (deciding, "'odd' cannot be traced"),
        (Dense, "no residual block that can be gated"),
        (lambda: BasicResNet, "model is a type; give the network itself"),
        (lambda: functional.relu, "model is a function; give the network itself"),
        (lambda: nn.Conv2d(3, 4, 1), r"returns torch.float32 \[16, 4, 16, 16\]; wrap it"),
        (remembering, "RuntimeError: Only Tensors created explicitly"),
        (scripted, "is a RecursiveScriptModule, which"),
        (lambda: Extended(switching), "^the model itself switches gradients.*forward.$"),
        (TokensFirst, "mlp': its activations do not have one row for each"),
        (
            alone(squeezing),
            r"returns \[5\] for one image, where \[1, 5\] is needed; does it squeeze",
        ),
        (
            alone(sixteen),
            r"not accept a single image, .* AssertionError.*; give a model for any number",
        ),
        (
            alone(centring),
            "with the other images of its batch, .* does Extended normalise over a batch",
        ),
        (alone(drawing), "does Extended depend on more than its images"),
        (lambda: converting(torch.bfloat16), "module 'stem.0' computes in torch.bfloat16; give a"),
        (lambda: converting(torch.float64), "module 'stem.0' computes in torch.float64; give a"),
        (
            lambda: Extended(inside, rotation=nn.Parameter(torch.eye(16).double())),
            "computes in torch.float64; give a",
        ),
        (lambda: counting(lambda n: n + 1), "computes the size .* only multiples of it"),
        (lambda: counting(lambda n: n // 2 + 1), "computes the size .* only multiples of it"),
    ],
)
def test_models_that_cannot_be_taken_apart_are_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fractionalize(make(), examples())


def test_sizes_may_be_multiples_of_the_number_of_images():
    converted(lambda: counting(lambda n: 3 * n))


def summing(net, x):  # the size of the map becomes a constant of the graph
    x = net.blocks(net.stem(x).relu())
    return net.fc(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


def test_images_of_another_size_are_refused():
    _, backbone = converted(lambda: Extended(summing))
    for form in (backbone, backbone.to_inference()):
        with pytest.raises(DataError, match=r"images are \[2, 3, 32, 32\], .* for \[3, 16, 16\]"):
            form.stem(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("bits", [0, 8, 32, (4, 0, 4)])
def test_bits_that_are_no_option_are_refused(bits):
    backbone = fractionalize(BasicResNet(), examples(), bits=(2, 4))
    with pytest.raises(ConfigError, match=r"is no bit option; allowed are \[2, 4\]"):
        backbone(pictures(), bits)


def test_a_wrapper_is_looked_through():
    _, backbone = converted(lambda: nn.DataParallel(BasicResNet()))
    assert names_of(backbone) == [f"module.blocks.{i}" for i in range(3)]
