from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.costs import BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.records import GateRecords, concatenate
from dfs_rl.gating.passes import EarlierPasses
from tests.helpers.latencies import made_up_profile

COSTS = CostTable(
    options=BitOptions((0, 8, 32)),
    layer_macs=(300, 700),
    fixed=(FixedCost(name="stem", macs=100, bits=8),),
)


def records(rows, labels=None, **fields):
    n = len(rows)
    values = {
        "name": "made up",
        "predictions": torch.zeros(n, dtype=torch.int64),
        "labels": torch.tensor(labels or [0] * n),
        "options": torch.tensor(rows),
        "log_likelihood": torch.zeros(n, dtype=torch.float64),
        "confidence": torch.ones(n, dtype=torch.float64),
    }
    return GateRecords(**{**values, **fields})


def test_accuracy_by_hand():
    made = records([[0, 1], [0, 1], [2, 1]], labels=[0, 1, 0])
    assert len(made) == 3
    assert made.correct.tolist() == [True, False, True]
    assert made.accuracy == pytest.approx(200 / 3)


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=30))
def test_patterns_and_histogram_match_loops(rows):
    made = records(rows)
    assert made.patterns == len({tuple(row) for row in rows})
    expected = [
        [sum(row[layer] == option for row in rows) / len(rows) for option in range(4)]
        for layer in range(3)
    ]
    assert made.histogram(4).numpy() == pytest.approx(torch.tensor(expected).numpy())


def test_histograms_of_passes_by_hand():
    made = records([[2, 2], [1, 1]], earlier=first_passes([True, False]))
    options = made.earlier.options[0, 0].tolist()  # of the only image that runs twice
    first, second = made.pass_histograms(3).tolist()
    for layer, option in enumerate(options):
        assert first[layer] == [0.5 * (i == option) + 0.5 * (i == 1) for i in range(3)]
        assert second[layer] == [0.0, 0.0, 0.5]
    (alone,) = records([[2, 2], [1, 1]]).pass_histograms(3).tolist()
    assert alone == records([[2, 2], [1, 1]]).histogram(3).tolist()


def test_computation_and_bitops_by_hand():
    made = records([[1, 2], [0, 0]], gate_macs=10.0)
    # 300 MACs at 8 bit are 300 / 16, the stem 100 / 16, the gate 10; of 1,000.
    expected = [300 / 16 + 700, 0.0]
    gated = made.computation(COSTS, "dfs")
    whole = made.computation(COSTS)
    assert gated.tolist() == pytest.approx([value / 10 for value in expected])
    assert whole.tolist() == pytest.approx([(value + 100 / 16 + 10) / 10 for value in expected])
    bitops = [300 * 64 + 700 * 1024 + 100 * 64 + 10 * 1024, 100 * 64 + 10 * 1024]
    assert made.bitops(COSTS).tolist() == pytest.approx(bitops)


def first_passes(ran):
    """Return first passes at option 1, of which some are followed by another."""
    after = torch.tensor(ran)[:, None]
    options = torch.ones(len(ran), 1, 2).long()
    return EarlierPasses(options=options, ran=after, mirrored=torch.zeros_like(after))


def test_two_passes_pay_for_both():
    first = first_passes([True, False])
    made = records([[2, 2], [1, 1]], earlier=first)
    one_pass = 6.25 + 0.625  # gated layers and stem
    assert made.computation(COSTS).tolist() == pytest.approx([100 + 0.625 + one_pass, one_pass])
    assert made.computation(COSTS, "dfs").tolist() == pytest.approx([106.25, 6.25])
    ratio = made.bitops(COSTS) / made.computation(COSTS)
    assert ratio.tolist() == pytest.approx([1000 * 1024 / 100] * 2)


MS = {0: (0.5, 2.0, 5.0), 1: (0.25, 4.0, 7.0)}  # stem 0.5, head 0.25, exit 0.125 and gate 0.125 ms
PARTS = CostTable(
    options=BitOptions((0, 8, 32)),
    layer_macs=(300, 700),
    fixed=(
        FixedCost(name="stem", macs=100, bits=8),
        FixedCost(name="head", macs=1, bits=8, layer=2),
    ),
    exits=tuple(ExitCost(after=after, macs=10, bits=8) for after in (0, 1)),
)
MEASURED = PARTS.with_cost_model(
    "latency", made_up_profile(PARTS, layer=lambda layer, bits: MS[layer][(0, 8, 32).index(bits)])
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.5 + 2.0 + 7.0 + 0.25, 0.5 + 2.0 + 0.125]),  # the second image takes an exit
        ({"gate_macs": 4000.0}, [9.75 + 0.5, 2.625 + 0.5]),  # 1,000 MACs of a gate take 0.125 ms
        (
            {  # the exit is before the last layer, so both images make all decisions
                "gate_macs": 1000.0,
                "computed_pass_macs": 1000.0,
                "gate_macs_taken": torch.tensor([1000.0, 400.0]),
                "excess_macs": torch.tensor([0.0, 0.0]),
            },
            [9.75 + 0.125, 2.625 + 0.125],
        ),
        # MACs of exits say nothing: one after another is passed, from the first or the second on.
        ({"gate_macs": 9.0, "first_exit": 0}, [9.75 + 2 * 0.125, 2.625 + 0.125]),
        ({"gate_macs": 9.0, "first_exit": 1}, [9.75 + 0.125, 2.625]),
        ({"gate_macs": 9.0, "first_exit": 2}, [9.75, 2.625]),
    ],
)
def test_milliseconds_by_hand(fields, expected):
    made = records([[1, 2], [1, 3]], **fields)
    assert made.milliseconds(MEASURED).tolist() == pytest.approx(expected)


def test_milliseconds_of_two_passes():
    first = first_passes([True, False])
    made = records([[2, 2], [1, 1]], earlier=first)
    assert made.milliseconds(MEASURED).tolist() == pytest.approx([12.75 + 6.75, 6.75])


def test_batches_concatenate_in_order():
    parts = [
        records(
            [[option, 1]],
            gate_macs=4.0,
            gate_macs_taken=torch.tensor([float(option)]),
            earlier=first_passes([True]),
        )
        for option in (0, 2)
    ]
    joined = concatenate(parts)
    assert joined.options.tolist() == [[0, 1], [2, 1]]
    assert joined.gate_macs == 4.0
    assert joined.gate_macs_taken.tolist() == [0.0, 2.0]
    assert len(joined.earlier.options) == len(joined.earlier.ran) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predictions": torch.zeros(2, dtype=torch.int64)}, "predictions"),
        ({"confidence": torch.zeros(3, 1)}, "confidence"),
        ({"options": torch.zeros(3, dtype=torch.int64)}, "options"),
        ({"earlier": replace(first_passes([True] * 3), ran=torch.zeros(2, 1))}, "earlier.ran"),
    ],
)
def test_inconsistent_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        records([[0, 0]] * 3, **fields)


def test_records_without_images_are_refused():
    with pytest.raises(ConfigError, match="no image"):
        records(torch.zeros(0, 2, dtype=torch.int64).tolist(), labels=[])
