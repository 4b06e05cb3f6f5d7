import torch

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet
from dfs_rl.evaluation.static_tables.scoring import static_table_computation
from dfs_rl.evaluation.static_tables.shortened import shortened_tables
from tests.evaluation.conftest import MixBackbone, make_images
from tests.helpers.planted_table import TableBackbone, table_images


class MarkingLayer:
    """Layer that marks in the channel of its index that it was skipped."""

    def __init__(self, index):
        self.index = index

    def __call__(self, hidden, bits):
        hidden = hidden.clone()
        hidden[:, self.index] = float(bits == 0)
        return hidden


class StagedBackbone(TableBackbone):
    """Two stages of two layers: right if both second layers run or neither does.

    Without a first layer all images are wrong, but with less certainty.
    """

    costs = CostTable(options=BitOptions((0, 8, 16, 32)), layer_macs=(64, 64, 64, 80))
    stages = (2, 2)

    def __init__(self):
        self.layers = [MarkingLayer(index) for index in range(4)]

    def stem(self, images):
        return torch.zeros(len(images), 4, 1, 1)

    def head(self, hidden):
        skipped = hidden[:, :, 0, 0]
        odd, gone = (skipped[:, 1] != skipped[:, 3]).float(), skipped[:, ::2].amax(dim=1)
        return torch.stack([torch.zeros(len(hidden)), 9 * odd + 2 * gone - 1], dim=1)


class MarkedBackbone(StagedBackbone):
    """Layers of equal cost; without a first layer only images with a bright pixel are wrong."""

    costs = CostTable(options=BitOptions((0, 8, 16, 32)), layer_macs=(64, 64, 64, 64))

    def stem(self, images):
        return torch.cat([super().stem(images), images[:, :1, :1, :1].float()], dim=1)

    def head(self, hidden):
        seen = hidden[:, :4].clone()
        seen[:, ::2] *= hidden[:, 4:]
        seen[:, 1] -= hidden[:, :4].amin(dim=1)  # without any layer all are wrong
        return super().head(seen)


def test_layers_that_lose_nothing_are_skipped():
    # At 8 bit six images are right, all because of layer 2: the others can be skipped.
    assert shortened_tables(TableBackbone(), table_images()) == [(0, 0, 1)]


def test_stages_lose_their_last_layers_together():
    # Alone, the first layers lose less than the second ones, which can only go together.
    images = ImageSet(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.zeros(8).long())
    assert shortened_tables(StagedBackbone(), images) == [(1, 0, 1, 0)]


def test_of_equal_costs_the_most_accurate_is_kept():
    pixels = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    pixels[0] = 1
    images = ImageSet(pixels, torch.zeros(8).long())
    # Without both first layers, as cheap, seven of eight images are right.
    assert shortened_tables(MarkedBackbone(), images) == [(1, 0, 1, 0)]


def test_exits_and_skips_are_ordered_by_cost_and_accuracy():
    network = MixBackbone((0, 4, 32), exits=(1, 2, 3))
    images = make_images(network, 200, seed=7)

    def correct(table):
        return int((network.logits(images.images, table).argmax(dim=1) == images.labels).sum())

    def cost(table):
        return static_table_computation(network.costs, table)

    whole = (1,) * 4
    tables = shortened_tables(network, images)
    assert tables
    assert len(tables) <= 3
    costs, counts = [cost(t) for t in tables], [correct(t) for t in tables]
    assert costs == sorted(costs)
    assert costs[-1] < cost(whole)
    assert counts == sorted(counts)
    assert counts[0] > correct(whole) * 3 / 4
    best = tables[-1]
    for after in (1, 2, 3):  # no exit is both cheaper and better than the best table
        exit_table = whole[:after] + (3,) * (4 - after)
        assert cost(exit_table) > costs[-1] or correct(exit_table) <= correct(best)


def test_networks_that_always_run_have_none():
    network = MixBackbone((2, 32))
    assert shortened_tables(network, make_images(network, 50, seed=1)) == []
