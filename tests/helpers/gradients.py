"""Check of a gradient estimator against an exact gradient."""

import torch


def gradient_of(loss, gate):
    """Return the gradient by all weights of a gate, zeros where there is none."""
    parameters = list(gate.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in pairs])


def assert_unbiased(estimates, exact, *, tolerance):
    """Check the mean within five standard errors for each weight, and closeness as a whole."""
    found = torch.stack(estimates)
    error = found.std(dim=0) / len(found) ** 0.5
    assert float(exact.norm()) > 0.05
    assert bool(((found.mean(dim=0) - exact).abs() <= 5 * error + 1e-6).all())
    assert float((found.mean(dim=0) - exact).norm() / exact.norm()) < tolerance
