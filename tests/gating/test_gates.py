import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.base import Gate, RandomGate, TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import LSTMGate, MLPGate
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import CHANNELS

MENU = BitOptions((0, 2, 4, 8))


@pytest.fixture(params=[MLPGate, LSTMGate], ids=["mlp", "lstm"])
def gate(request):
    torch.manual_seed(0)
    return request.param(CHANNELS, MENU, hidden=5, budget=1.5, name="ppo")


def test_macs_are_what_a_counter_counts(gate):
    features, context = torch.randn(1, max(CHANNELS)), torch.rand(1, 3)
    with FlopCounterMode(display=False) as counter:
        for layer in range(len(CHANNELS)):
            gate.decide(features, layer, context)
    assert gate.macs == counter.get_total_flops() / 2
    cell = 4 * 5 * (5 + 5) if isinstance(gate, LSTMGate) else 0
    assert gate.macs == sum((c + 3) * 5 + cell + 5 * 4 for c in CHANNELS)


def test_a_layer_sees_its_own_channels_only():
    gate = MLPGate(CHANNELS, MENU, hidden=5)
    features, context = torch.randn(6, max(CHANNELS)), torch.rand(6, 3)
    disturbed = features.clone()
    disturbed[:, CHANNELS[0] :] += 100.0
    assert torch.equal(gate(features, 0, context), gate(disturbed, 0, context))
    by_hand = gate.networks[0][2].weight @ torch.tanh(
        gate.networks[0][0].weight @ torch.cat([features[0, :2], context[0]])
        + gate.networks[0][0].bias
    )
    torch.testing.assert_close(gate(features, 0, context)[0], by_hand + gate.networks[0][2].bias)


def test_a_recurrent_gate_is_torchs_lstm_and_forgets_at_reset():
    gate = LSTMGate(CHANNELS, MENU, hidden=5)
    features, context = torch.randn(6, max(CHANNELS)), torch.rand(len(CHANNELS), 6, 3)
    walks = []
    for _ in range(2):
        gate.reset(6)
        walks.append([gate(features, layer, context[layer]) for layer in range(len(CHANNELS))])
    lstm = torch.nn.LSTM(5, 5)
    lstm.load_state_dict({f"{name}_l0": w for name, w in gate.cell.state_dict().items()})
    embedded = [
        embedding(torch.cat([features[:, :size], seen], dim=1))
        for embedding, size, seen in zip(gate.embeddings, CHANNELS, context, strict=True)
    ]
    expected = gate.scores(lstm(torch.stack(embedded))[0])  # [layers, batch, options]
    for walk in walks:
        torch.testing.assert_close(torch.stack(walk), expected)


def test_a_saved_gate_comes_back_the_same(gate, tmp_path):
    save_gate(gate, tmp_path / "gate")
    again = load_gate(tmp_path / "gate")
    assert (again.name, again.options, again.feature_sizes, again.hidden, again.budget) == (
        "ppo",
        MENU,
        CHANNELS,
        5,
        1.5,
    )
    assert type(again) is type(gate)
    features, context = torch.randn(9, max(CHANNELS)), torch.rand(9, 3)
    for layer in range(len(CHANNELS)):
        assert torch.equal(gate(features, layer, context), again(features, layer, context))


def test_a_saved_gate_with_a_dial_stays_where_it_was_turned_to(tmp_path):
    budget_conditioning = BudgetConditioning(
        computations=(0.5, 0.75, 3.0), preferences=(0.0, 0.75, 1.0)
    )
    gate = MLPGate(
        CHANNELS, MENU, hidden=5, budget_conditioning=budget_conditioning, preference=0.25
    )
    save_gate(gate, tmp_path)
    again = load_gate(tmp_path)
    assert (again.budget_conditioning, again.preference) == (budget_conditioning, 0.25)
    assert again.preferences(3, torch.device("cpu")).tolist() == [0.25] * 3
    record = json.loads((tmp_path / "gate.json").read_text())
    for damage in (
        {"budget_conditioning": 3},
        {"budget_conditioning": {}},
        {"budget_conditioning": {"preferences": []}},
        {"budget_conditioning": {"preferences": [0.0, 1.0]}},
        {"budget_conditioning": {"computations": [0.5, 0.75, 3.0], "preferences": [0.0, 1.0]}},
        {"budget_conditioning": {"computations": [0.5, 0.75], "reach": [0.5, 0.75]}},
        {"budget_conditioning": {"computations": [0.0, 1.0]}},
        {"budget_conditioning": {"computations": ["1", "2"]}},
        {"preference": 1.5},
        {"budget_conditioning": None},  # its weights are for four numbers of context
    ):
        (tmp_path / "gate.json").write_text(json.dumps(record | damage))
        with pytest.raises(CheckpointError, match=r"gate\.(json|safetensors)"):
            load_gate(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "table"},
        {"format": 99},
        {"bits": [8, 2]},
        {"hidden": "5"},
        {"hidden": 6},
        {"feature_sizes": [2, True]},
        {"feature_macs": "3"},
        {"feature_macs": -1.0},
    ],
)
def test_a_changed_description_is_refused(gate, tmp_path, change):
    save_gate(gate, tmp_path)
    record = json.loads((tmp_path / "gate.json").read_text())
    (tmp_path / "gate.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=r"gate\.(json|safetensors)"):
        load_gate(tmp_path)


@pytest.mark.parametrize("name", ["gate.json", "gate.safetensors"])
def test_missing_or_cut_files_are_refused(gate, tmp_path, name):
    save_gate(gate, tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_gate(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_gate(tmp_path)


def test_table_gate_repeats_its_table():
    gate = TableGate([3, 0, 1, 2])
    chosen = [
        gate.decide(torch.zeros(2, 4), layer, torch.zeros(2, 3)).tolist() for layer in range(4)
    ]
    assert chosen == [[3, 3], [0, 0], [1, 1], [2, 2]]
    assert gate.macs == 0


def test_a_stored_table_comes_back_the_same_without_weights(tmp_path):
    gate = TableGate([3, 0, 1, 2], options=MENU, name="static")
    save_gate(gate, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gate.json"]
    again = load_gate(tmp_path)
    assert isinstance(again, TableGate)
    assert (again.table, again.options, again.name, again.budget) == (
        (3, 0, 1, 2),
        MENU,
        "static",
        None,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"table": [3, 0, 1, 4]},
        {"table": [3, 0, -1, 2]},
        {"table": [3, 0, True, 2]},
        {"table": "3012"},
        {"bits": [8, 2]},
        {"bits": []},
        {"kind": "mlp"},
        {"format": 99},
    ],
)
def test_a_changed_table_is_refused(tmp_path, change):
    save_gate(TableGate([3, 0, 1, 2], options=MENU), tmp_path)
    record = json.loads((tmp_path / "gate.json").read_text())
    (tmp_path / "gate.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=r"gate\.json"):
        load_gate(tmp_path)


def test_a_table_without_a_menu_is_not_stored(tmp_path):
    with pytest.raises(ConfigError, match="only one that knows its menu can be stored"):
        save_gate(TableGate([3, 0, 1, 2]), tmp_path)
    with pytest.raises(ConfigError, match=r"table \[4\] holds an option that is not on the menu"):
        TableGate([4], options=MENU)


def test_random_gate_follows_its_marginals_and_repeats_with_its_seed():
    marginals = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    features, context = torch.zeros(4000, 4), torch.zeros(4000, 3)
    draws = RandomGate(marginals, seed=3).decide(features, 0, context)
    again = RandomGate(marginals, seed=3).decide(features, 0, context)
    other = RandomGate(marginals, seed=4).decide(features, 0, context)
    assert torch.equal(draws, again)
    assert not torch.equal(draws, other)
    shares = torch.bincount(draws, minlength=3) / 4000
    torch.testing.assert_close(shares, marginals[0], atol=0.03, rtol=0)  # 4 standard deviations
    assert RandomGate(marginals, seed=3).decide(features, 1, context).eq(0).all()


def test_bad_gates_are_refused():
    with pytest.raises(ConfigError, match="sum to 1"):
        RandomGate(torch.tensor([[0.5, 0.6]]), seed=0)
    with pytest.raises(ConfigError, match="width is 0"):
        MLPGate(CHANNELS, MENU, hidden=0)


def test_all_gates_satisfy_the_protocol(gate):
    assert all(
        isinstance(g, Gate)
        for g in (gate, TableGate([0]), RandomGate(torch.tensor([[1.0]]), seed=0))
    )
