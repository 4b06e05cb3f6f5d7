import pytest

from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.hyperparameters import DQNConfig, PPOConfig, QRDQNConfig
from dfs_rl.agents.memory import gate_needs, replay_needs, rollout_needs


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_a_gate_needs_its_weights_and_their_copies(planted_backbone, kind):
    shape = {"kind": kind, "features": "all", "hidden": 64}
    gate = untrained_gate(planted_backbone, budget_conditioning=None, **shape)
    weights = 4 * sum(parameter.numel() for parameter in gate.parameters())
    (needs,) = gate_needs(
        planted_backbone, budget_conditioning=False, decisions=0, **shape
    ).values()
    assert 8 * weights < needs < 16 * weights


def test_needs_grow_with_what_asks_for_them(planted_backbone):
    shape = {"kind": "ff", "features": "all", "budget_conditioning": True, "decisions": 10}
    needs = gate_needs(planted_backbone, hidden=10**9, **shape)
    assert needs["hidden is 1000000000"] > 1e11
    needs = rollout_needs(
        planted_backbone, num_envs=10**9, val_images=10, val_repeats=10**9, budget_conditioning=True
    )
    assert needs["num_envs is 1000000000"] > 1e10
    assert needs["val_repeats is 1000000000"] > 1e11
    once = rollout_needs(
        planted_backbone, num_envs=1, val_images=10, val_repeats=10**9, budget_conditioning=False
    )
    assert once["val_repeats is 1000000000"] < 1e5  # without a dial every image is walked once
    assert replay_needs(PPOConfig(), planted_backbone, budget_conditioning=True) == {}
    needs = replay_needs(DQNConfig(buffer_size=5000), planted_backbone, budget_conditioning=True)
    assert needs["buffer_size is 5000"] > 1e5
    needs = replay_needs(QRDQNConfig(n_quantiles=10**6), planted_backbone, budget_conditioning=True)
    assert needs["n_quantiles is 1000000"] > 1e14
