"""Gates: what they compute, what it costs, and what is stored of them."""

import json

import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate
from dfs_rl.gating.registry import GATES
from dfs_rl.gating.rules import cascade
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import CHANNELS

OPTIONS = BitOptions((0, 2, 4, 8))
N_LAYERS, HIDDEN = len(CHANNELS), 5
kinds = pytest.mark.parametrize("kind", [MLPGate, LSTMGate, OneShotGate])
CONDITIONING = BudgetConditioning(computations=(0.5, 0.75, 3.0), preferences=(0.0, 0.75, 1.0))


def make(kind=MLPGate, *, seed=0, **settings):
    """Return a gate that chooses different options for different inputs."""
    torch.manual_seed(seed)
    gate = kind(CHANNELS, OPTIONS, hidden=HIDDEN, **settings)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.mul_(5.0)
    return gate


def make_conditioned():
    return make(budget_conditioning=CONDITIONING, preference=0.25)


def inputs(n, context=3):
    return 9 * torch.randn(n, max(CHANNELS)), torch.rand(n, context)


# Learned gates


@kinds
@pytest.mark.parametrize("choices", [None, (0, 3)])
def test_macs_by_hand(kind, choices):
    n = 2 if choices else 4
    cell = 4 * 2 * HIDDEN if kind is LSTMGate else 0  # four gates, of the input and the memory
    by_hand = [HIDDEN * (size + 3 + cell + n) for size in CHANNELS]
    if kind is OneShotGate:
        by_hand = [HIDDEN * (CHANNELS[0] + 3 + N_LAYERS * n), 0, 0, 0]
    gate = make(kind, choices=choices, feature_macs=7.0)
    assert (gate.layer_macs, gate.macs) == (tuple(by_hand), 7.0 + sum(by_hand))


def test_mlp_gate_reads_its_own_channels():
    gate, (features, context) = make(), inputs(6)
    disturbed = features.clone()
    disturbed[:, CHANNELS[0] :] += 100.0
    assert torch.equal(gate(features, 0, context), gate(disturbed, 0, context))
    first, _, last = gate.networks[0]
    hidden = torch.tanh(first.weight @ torch.cat([features[0, :2], context[0]]) + first.bias)
    torch.testing.assert_close(gate(features, 0, context)[0], last.weight @ hidden + last.bias)


def test_lstm_gate_equals_torch_lstm():
    gate, features = make(LSTMGate), inputs(6)[0]
    context = torch.rand(N_LAYERS, 6, 3)
    rollouts = []
    for _ in range(2):  # the reset clears the memory
        gate.reset(6)
        rollouts.append([gate(features, layer, context[layer]) for layer in range(N_LAYERS)])
    lstm = torch.nn.LSTM(HIDDEN, HIDDEN)
    lstm.load_state_dict({f"{name}_l0": w for name, w in gate.cell.state_dict().items()})
    embedded = [
        embedding(torch.cat([features[:, :size], seen], dim=1))
        for embedding, size, seen in zip(gate.embeddings, CHANNELS, context, strict=True)
    ]
    expected = gate.scores(lstm(torch.stack(embedded))[0])  # [layers, batch, options]
    for logits in rollouts:
        torch.testing.assert_close(torch.stack(logits), expected)


def test_oneshot_gate_decides_before_the_first_layer():
    gate, (features, context) = make(OneShotGate), inputs(8)
    seen = torch.cat([features[:, : CHANNELS[0]], context], dim=1)
    expected = gate.network(seen).view(8, N_LAYERS, len(OPTIONS))
    gate.reset(8)
    for layer in range(N_LAYERS):
        assert torch.equal(gate(features, layer, context), expected[:, layer])
        features, context = torch.randn_like(features), torch.rand_like(context)
    assert len(torch.unique(expected.argmax(dim=2), dim=0)) > 1
    gate.reset(3)
    with pytest.raises(AssertionError, match="decide at layer 0 first"):
        gate(features, 1, context)


@kinds
@pytest.mark.parametrize("choices", [(0,), (3,), (0, 3), (1, 2), (0, 1, 3)])
def test_only_choices_are_chosen(kind, choices):
    others = [option for option in range(len(OPTIONS)) if option not in choices]
    seen = set()
    for seed in range(5):
        gate = make(kind, choices=choices, seed=seed)
        gate.reset(64)
        for layer in range(N_LAYERS):
            features, context = inputs(64)
            logits = gate(features, layer, context)
            assert logits[:, others].eq(-torch.inf).all()
            assert logits[:, list(choices)].isfinite().all()
            seen |= set(gate.decide(features, layer, context).tolist())
            highest = torch.randint(len(OPTIONS), (64, 1))
            allowed = torch.arange(len(OPTIONS)) <= highest  # as the masks of a budget
            within = gate.decide(features, layer, context, allowed)
            assert set(within.tolist()) <= set(choices)
            assert bool((within[:, None] <= highest.clamp(min=choices[0])).all())
    assert seen == set(choices)


@kinds
def test_gradients_of_other_options_are_zero(kind):
    gate = make(kind, choices=(0, 3))
    gate.reset(6)
    features, context = inputs(6)
    probabilities = gate(features, 0, context).softmax(dim=1)
    assert probabilities[:, [1, 2]].eq(0).all()
    (probabilities[:, 0].log() + probabilities @ torch.arange(4.0)).sum().backward()
    gradients = [p.grad for p in gate.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


# Other gates


def test_table_gate_repeats_its_table():
    gate, (features, context) = TableGate([3, 0, 1, 2]), inputs(2)
    chosen = [gate.decide(features, layer, context).tolist() for layer in range(4)]
    assert chosen == [[3, 3], [0, 0], [1, 1], [2, 2]]
    assert gate.macs == 0


def test_all_gates_satisfy_the_protocol():
    assert all(isinstance(gate, Gate) for gate in (make(), TableGate([0]), make_cascade()))


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: make(preference=1.5), "preference is 1.5"),
        (lambda: MLPGate(CHANNELS, OPTIONS, hidden=0), "hidden is 0"),
        (lambda: make(feature_macs=-1.0), "feature_macs is -1"),
        (lambda: TableGate([4], options=OPTIONS), r"table is \[4\].* 0 to 3"),
        *(
            (lambda c=choices: make(choices=c), r"choices are \[.*from 0 to 3")
            for choices in [(), (0, 4), (2, 1), (1, 1), (-1, 0)]
        ),
    ],
)
def test_bad_arguments(construct, message):
    with pytest.raises(ConfigError, match=message):
        construct()


# Storage


@kinds
@pytest.mark.parametrize("choices", [None, (0, 3)])
def test_stored_gate_is_the_same(kind, choices, tmp_path):
    gate = make(kind, budget=1.5, name="ppo", choices=choices)
    save_gate(gate, tmp_path / "gate")
    again = load_gate(tmp_path / "gate")
    assert type(again) is kind
    for name in ("name", "options", "feature_sizes", "hidden", "budget", "choices", "macs"):
        assert getattr(again, name) == getattr(gate, name)
    features, context = inputs(9)
    for layer in range(N_LAYERS):
        assert torch.equal(gate(features, layer, context), again(features, layer, context))


def test_stored_gate_keeps_its_preference(tmp_path):
    save_gate(make_conditioned(), tmp_path)
    again = load_gate(tmp_path)
    assert (again.budget_conditioning, again.preference) == (CONDITIONING, 0.25)


def make_table(**settings):
    return TableGate([3, 0, 1, 2], options=OPTIONS, **settings)


def make_cascade(**settings):
    return cascade((1, 0, 2, 1), (3, 3, 3, 2), threshold=0.7, options=OPTIONS, **settings)


@pytest.mark.parametrize(
    "gate",
    [
        make_table(name="static"),
        TableGate([1, 4, 0, 0], options=OPTIONS, exits=(1,)),
        make_cascade(),
    ],
)
def test_stored_static_gate_is_the_same(gate, tmp_path):
    save_gate(gate, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gate.json"]
    again = load_gate(tmp_path)
    assert type(again) is type(gate)
    for name, value in vars(gate).items():
        assert torch.all(torch.as_tensor(getattr(again, name) == value)), name


def test_table_without_options_is_not_stored(tmp_path):
    with pytest.raises(ConfigError, match="bit options"):
        save_gate(TableGate([3, 0, 1, 2]), tmp_path)


CHANGES = {
    make: {
        "kind": ["table"],
        "format": [99],
        "bits": [[8, 2]],
        "hidden": ["5", 6],
        "feature_sizes": [[2, True], []],
        "feature_macs": ["3", -1.0],
        "choices": [[], [0, 4], [3, 0], [0, 0], ["0"], [-1], 3, [1, 2, 3]],
    },
    make_conditioned: {
        "preference": [1.5, None],
        "budget_conditioning": [
            3,
            {"preferences": [0.0, 1.0]},
            {"computations": [0.5, 0.75, 3.0], "preferences": [0.0, 1.0]},
            {"computations": [0.5, 0.75], "reach": [0.5, 0.75]},
            {"computations": [0.0, 1.0]},
            {"computations": ["1", "2"]},
            None,  # the weights are for four context values
        ],
    },
    make_table: {
        "table": [[3, 0, 1, 4], [3, 0, -1, 2], [3, 0, True, 2], "3012"],
        "bits": [[8, 2], []],
        "kind": ["mlp"],
        "format": [99],
    },
    make_cascade: {
        "threshold": [-0.1, "0.7"],
        "first": [[1, 0, 2]],
        "second": [[3, 3, 3, 4], [3, 3, True, 2]],
        "bits": [[8, 2]],
        "kind": ["table"],
    },
}


@pytest.mark.parametrize(
    ("construct", "name", "value"),
    [(c, n, v) for c, named in CHANGES.items() for n, values in named.items() for v in values],
)
def test_changed_description(construct, name, value, tmp_path):
    save_gate(construct(), tmp_path)
    record = json.loads((tmp_path / "gate.json").read_text())
    (tmp_path / "gate.json").write_text(json.dumps(record | {name: value}))
    with pytest.raises(CheckpointError, match=r"gate\.(json|safetensors)"):
        load_gate(tmp_path)


def test_registered_gate_with_arguments_of_its_own(tmp_path, monkeypatch):
    class OwnGate(MLPGate):
        def __init__(self, sizes, bits, *, feature_macs, hidden, budget, name):
            super().__init__(sizes, bits, feature_macs=feature_macs, hidden=hidden, name=name)

    monkeypatch.setitem(GATES.data, "own", OwnGate)
    gate = OwnGate((2, 3), BitOptions((0, 8)), feature_macs=1.0, hidden=4, budget=None, name="own")
    save_gate(gate, tmp_path)
    found = load_gate(tmp_path)
    assert torch.equal(found.networks[1][0].weight, gate.networks[1][0].weight)


@pytest.mark.parametrize("name", ["gate.json", "gate.safetensors"])
def test_truncated_or_missing_file(tmp_path, name):
    save_gate(make(), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_gate(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_gate(tmp_path)
