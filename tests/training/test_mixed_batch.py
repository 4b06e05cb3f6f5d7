"""Batches at several mixes against one pass for each."""

import pytest
import torch
from torch.nn import functional

from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.training.mixed_batch import in_parts, run_parts

MIXES = [(4, 32, 4, 4, 4, 32), (4, 0, 4, 0, 4, 0), (0, 32, 4, 0, 0, 32)]
SIZES = [3, 4, 2]


@pytest.fixture
def net() -> ResNet:
    torch.manual_seed(0)
    config = ResNetConfig(depth=14, width=4, image_size=(8, 8), bits=(0, 4, 32))
    return ResNet(config, ChannelStatistics(mean=(0.5,) * 3, std=(0.3,) * 3))


def test_every_part_runs_at_its_mix(net):
    net.eval()
    images = torch.rand(9, 3, 8, 8)
    *_, last = run_parts(net, net.stem(images), MIXES, SIZES)
    expected = [net(part, mix) for part, mix in zip(images.split(SIZES), MIXES, strict=True)]
    torch.testing.assert_close(net.head(last), torch.cat(expected))


def test_norms_see_all_parts_at_their_bits(net):
    net.train()
    hidden = torch.rand(9, 4, 8, 8)
    conv = net.layers[0].conv1
    for _ in run_parts(net, hidden, MIXES, SIZES):
        pass
    quantized = conv.quantizers(hidden[:7], conv.weight, 4)  # the third part skips this layer
    means = functional.conv2d(*quantized, padding=1).mean(dim=(0, 2, 3))
    torch.testing.assert_close(conv.norm.running_mean[0], 0.1 * means)
    assert (conv.norm.running_mean[1] == 0).all()  # no part runs at 32 bit


@pytest.mark.parametrize("cut", [4, 5, 7])
def test_shares_of_a_batch_have_its_parts(cut):
    images = ImageSet(torch.zeros(11, 1, 4, 4, dtype=torch.uint8), torch.arange(11))

    def parts(images, first):
        sorted_images, sizes = in_parts(images, 4, first=first)
        return [part.tolist() for part in sorted_images.labels.split(sizes)]

    whole = parts(images, 0)
    assert whole == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]
    shares = (
        parts(images.subset(torch.arange(cut)), 0),
        parts(images.subset(torch.arange(cut, 11)), cut),
    )
    assert [a + b for a, b in zip(*shares, strict=True)] == whole
