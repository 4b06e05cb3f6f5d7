import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dfs_rl.backbones.probe import confidence, fit_probe, pool_grid
from dfs_rl.quantization.modules import FractionalLinear


def test_confidence_of_two_known_distributions():
    even = torch.zeros(4)
    odds = torch.tensor([0.7, 0.2, 0.1, 1e-30]).log()
    expected = [
        [0.25, 0.0, math.log(4)],
        [0.7, 0.5, -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))],
    ]
    torch.testing.assert_close(confidence(torch.stack([even, odds])), torch.tensor(expected))


def test_a_certain_probe_is_finite():
    sure = confidence(torch.tensor([[200.0, 0.0, -200.0]]))
    torch.testing.assert_close(sure, torch.tensor([[1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("bits", [8, 32])
def test_a_fitted_probe_predicts_like_scikit_learn(bits):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (600,), generator=generator)
    centres = 2.0 + 3.0 * torch.rand(4, 6, generator=generator)
    features = (centres[labels] + torch.randn(600, 6, generator=generator)).clamp(min=0.0)
    features[:, 2] = 1.5  # a channel that never moves
    probe = FractionalLinear(6, 4, bits=bits)
    fit_probe(probe, features, labels)

    deviation = features.std(dim=0, correction=0)
    deviation[2] = 1.0
    standardised = ((features - features.mean(dim=0)) / deviation).numpy()
    # Our loss is the mean plus 1e-2 |w|^2; scikit-learn's is the sum plus |w|^2 / (2 C).
    baseline = LogisticRegression(C=1 / (2 * 1e-2 * 600), max_iter=1000, tol=1e-8)
    expected = torch.from_numpy(
        baseline.fit(standardised, labels.numpy()).predict_proba(standardised)
    )
    found = probe(features).softmax(dim=1).to(expected.dtype)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.05 if bits == 8 else 5e-3)


def test_fitting_works_where_gradients_are_off():
    probe = FractionalLinear(3, 2, bits=8).requires_grad_(requires_grad=False)
    features = torch.rand(50, 3)
    with torch.no_grad():
        fit_probe(probe, features, (features[:, 0] > 0.5).long())
    assert ((probe(features).argmax(dim=1) == (features[:, 0] > 0.5)).float().mean()) > 0.9


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (2, 2), (7, 10), (3, 9), (1, 1)])
def test_parts_of_the_grid_are_means(height, width):
    hidden = torch.rand(3, 5, height, width, generator=torch.Generator().manual_seed(0))
    parts = pool_grid(hidden, grid=4)
    rows, columns = min(4, height), min(4, width)
    assert parts.shape == (3, 5, rows * columns)
    for row in range(rows):
        for column in range(columns):  # the parts' borders are those of torch's adaptive pooling
            top, bottom = row * height // rows, -(-(row + 1) * height // rows)
            left, right = column * width // columns, -(-(column + 1) * width // columns)
            expected = hidden[:, :, top:bottom, left:right].mean(dim=(2, 3))
            torch.testing.assert_close(parts[:, :, row * columns + column], expected)
    if height % rows == 0 and width % columns == 0:
        torch.testing.assert_close(parts.mean(dim=2), hidden.mean(dim=(2, 3)))


def test_a_constant_input_does_not_spoil_the_others():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (900,), generator=generator)
    features = torch.rand(900, 4, generator=generator) + torch.eye(4)[labels]
    features[:, 3] = 0.5 + 1e-4 * (labels == 0) * torch.rand(900, generator=generator)
    probe = FractionalLinear(4, 3, bits=8)
    fit_probe(probe, features, labels)
    exact = torch.nn.functional.linear(features, probe.weight, probe.bias).argmax(dim=1)
    assert (exact == labels).float().mean() > 0.9
    assert (probe(features).argmax(dim=1) == exact).float().mean() > 0.98
