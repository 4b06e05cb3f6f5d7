from dfs_rl.costs import BitOptions
from dfs_rl.evaluation.static_tables.scoring import static_table_computation
from dfs_rl.evaluation.static_tables.shortened import shortened_tables
from tests.evaluation.conftest import MixBackbone, make_images
from tests.helpers.planted_table import TableBackbone, table_images


def test_layers_that_lose_nothing_are_skipped():
    # At 8 bit six images are right, all because of layer 2: the others can be skipped.
    assert shortened_tables(TableBackbone(), table_images()) == [(0, 0, 1)]


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
    assert counts[0] > correct(whole) / 2
    best = tables[-1]
    for after in (1, 2, 3):  # no exit is both cheaper and better than the best table
        exit_table = whole[:after] + (3,) * (4 - after)
        assert cost(exit_table) > costs[-1] or correct(exit_table) <= correct(best)


def test_networks_that_always_run_have_none():
    network = MixBackbone((2, 32))
    assert network.options == BitOptions((2, 32))
    assert shortened_tables(network, make_images(network, 50, seed=1)) == []
