"""Straight-through gradients against a network that runs every mixture of options."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from dfs_rl.agents.supervised.estimators import (
    argmax_choice,
    gumbel_choice,
    straight_through_rollout,
)
from dfs_rl.backbones import default_digits
from dfs_rl.data import load_dataset
from dfs_rl.gating.execution import run_head, run_layer, run_stem
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate
from dfs_rl.gating.observation import observe


def drawn(seed):
    return partial(gumbel_choice, temperature=0.7, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def backbone():
    return default_digits().eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def batch():
    return load_dataset("digits").agent.subset(torch.arange(24))


@pytest.fixture(params=[MLPGate, LSTMGate], ids=["ff", "lstm"])
def gate(request, backbone):
    torch.manual_seed(2)
    made: LearnedGate = request.param(backbone.feature_sizes, backbone.options, hidden=5)
    with torch.no_grad():
        for parameter in made.parameters():
            # Images then differ in their choices.
            parameter.mul_(6.0 if parameter.dim() > 1 else 0.0)
    return made


def naive_gradients(backbone, gate, batch, choose):
    """Run every option of every layer with gradients, and mix the outputs by one-hot weights."""
    costs = backbone.costs.option_costs()
    gate.reset(len(batch))
    state = run_stem(backbone, batch.images)
    spent = torch.zeros(len(batch), dtype=torch.float64)
    for layer in range(backbone.costs.n_layers):
        with torch.no_grad():
            seen = observe(backbone, state, budget=None)
        options, soft = choose(gate(seen.features, layer, seen.context))
        hard = functional.one_hot(options, len(backbone.options)).float()
        mixture = hard + (soft - soft.detach())  # [batch, options], exactly 0 or 1
        outputs = [backbone.layers[layer](state.hidden, bits) for bits in backbone.options]
        hidden = sum(mixture[:, o, None, None, None] * output for o, output in enumerate(outputs))
        spent = spent + mixture.double() @ costs[layer]
        with torch.no_grad():
            state = run_layer(backbone, state, options)
        state = state._replace(hidden=hidden)
    loss = functional.cross_entropy(run_head(backbone, state), batch.labels) + spent.mean()
    return loss.detach(), list(torch.autograd.grad(loss, list(gate.parameters())))


@pytest.mark.parametrize("how", ["gumbel", "argmax"])
def test_gradients_equal_the_naive_ones(backbone, gate, batch, how):
    def estimator():
        return drawn(3) if how == "gumbel" else argmax_choice

    rollout = straight_through_rollout(backbone, backbone, gate, batch.images, estimator())
    loss = functional.cross_entropy(rollout.logits, batch.labels) + rollout.spent.mean()
    ours = torch.autograd.grad(loss, list(gate.parameters()))
    expected_loss, theirs = naive_gradients(backbone, gate, batch, estimator())
    torch.testing.assert_close(loss.detach(), expected_loss)
    assert len(torch.unique(rollout.options, dim=0)) > 3
    assert sum(float(g.abs().sum()) for g in theirs) > 0.01
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_inference_form_gives_the_same_gradients(backbone, gate, batch):
    gradients = []
    for frozen in (backbone, backbone.to_inference()):
        rollout = straight_through_rollout(backbone, frozen, gate, batch.images, drawn(3))
        loss = functional.cross_entropy(rollout.logits, batch.labels)
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(gate.parameters()))])
        )
    # A value between two codes may round differently in the inference form.
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.02


def test_values_are_those_of_hard_choices(backbone, gate, batch):
    images = batch.images
    rollout = straight_through_rollout(backbone, backbone.to_inference(), gate, images, drawn(4))
    state = run_stem(backbone, images)
    for layer in range(backbone.costs.n_layers):
        state = run_layer(backbone, state, rollout.options[:, layer])
    torch.testing.assert_close(rollout.logits, run_head(backbone, state))
    torch.testing.assert_close(rollout.spent, state.spent)
    torch.testing.assert_close(rollout.spent, backbone.costs.fractions(rollout.options))


def test_gumbel_samples_follow_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    options, relaxed = gumbel_choice(
        logits.expand(40_000, -1), temperature=1.0, generator=generator
    )
    shares = torch.bincount(options, minlength=4) / 40_000
    # Four standard errors of a share are at most 1 %.
    torch.testing.assert_close(shares, logits.softmax(dim=0), atol=0.01, rtol=0)
    assert torch.equal(relaxed.argmax(dim=1), options)


def test_gumbel_gradient_is_that_of_the_expectation():
    """For a value that is linear in the choice, the exact gradient is p_o (v_o - E[v])."""
    logits = torch.tensor([0.5, -0.3, 0.2], requires_grad=True)
    values = torch.tensor([1.0, -2.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    _, relaxed = gumbel_choice(logits.expand(400_000, -1), temperature=0.1, generator=generator)
    (estimate,) = torch.autograd.grad((relaxed @ values).mean(), logits)
    probabilities = logits.detach().softmax(dim=0)
    exact = probabilities * (values - probabilities @ values)
    torch.testing.assert_close(estimate, exact, atol=0.03, rtol=0)


def test_argmax_has_the_gradient_of_the_softmax():
    logits = torch.tensor([[0.1, 2.0, -1.0], [3.0, 0.0, 1.0]], requires_grad=True)
    options, relaxed = argmax_choice(logits)
    assert options.tolist() == [1, 0]
    torch.testing.assert_close(relaxed, logits.softmax(dim=1))
