"""The extractor of all layers against one plain network per layer."""

import pytest
import torch
from stable_baselines3.common.preprocessing import preprocess_obs

from dfs_rl.agents.policies import PerLayerEmbedding, PerLayerExtractor
from tests.helpers.spaces import observation_space

CHANNELS = (3, 5, 4)
SPACE = observation_space(5)


def make_extractor():
    torch.manual_seed(0)
    extractor = PerLayerExtractor(SPACE, feature_sizes=CHANNELS, hidden=4, outputs=6)
    assert extractor.features_dim == 6
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.normal_()
    return extractor


def make_embedding():
    torch.manual_seed(0)
    embedding = PerLayerEmbedding(SPACE, feature_sizes=CHANNELS, outputs=4)
    with torch.no_grad():
        embedding.inner_bias.normal_()
    return embedding


def observe(layers):
    """Return observations as SB3 passes them; missing channels are zero."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(layers), 5, generator=generator)
    for row, layer in enumerate(layers):
        features[row, CHANNELS[layer] :] = 0.0
    raw = {
        "features": features,
        "layer": torch.tensor(layers)[:, None],  # the buffer stores a Discrete as one column
        "context": torch.rand(len(layers), 3, generator=generator),
    }
    encoded = preprocess_obs(raw, SPACE)
    assert isinstance(encoded, dict)
    return encoded


def by_hand(extractor, seen, row, layer):
    inputs = torch.cat([seen["features"][row], seen["context"][row]])
    hidden = inputs @ extractor.inner[layer] + extractor.inner_bias[layer]
    if isinstance(extractor, PerLayerExtractor):
        return torch.tanh(hidden) @ extractor.outer[layer] + extractor.outer_bias[layer]
    return hidden


@pytest.mark.parametrize("make", [make_extractor, make_embedding])
@pytest.mark.parametrize("layers", [[0, 2, 1, 1, 0, 2, 2], [1, 1, 1], [2, 0], [0]])
def test_each_sample_uses_its_layers_network(make, layers):
    extractor, seen = make(), observe(layers)
    expected = [by_hand(extractor, seen, row, layer) for row, layer in enumerate(layers)]
    torch.testing.assert_close(extractor(seen), torch.stack(expected))


def test_gradients_equal_those_of_plain_networks():
    extractor = make_extractor()
    layers = [2, 0, 2, 0]
    seen = observe(layers)
    extractor(seen).square().sum().backward()
    batched = [parameter.grad.clone() for parameter in extractor.parameters()]
    touched = batched[0].abs().sum(dim=(1, 2)) > 0
    assert touched.tolist() == [True, False, True]
    extractor.zero_grad()
    for row, layer in enumerate(layers):
        by_hand(extractor, seen, row, layer).square().sum().backward()
    for ours, reference in zip(batched, extractor.parameters(), strict=True):
        torch.testing.assert_close(ours, reference.grad)


def test_untrained_extractor_has_equal_scores():
    torch.manual_seed(0)
    extractor = PerLayerExtractor(SPACE, feature_sizes=CHANNELS, hidden=4, outputs=6)
    scores = extractor(observe([0, 1, 2]))
    assert torch.equal(scores, torch.zeros(3, 6))
    scores[:, 2].sum().backward()
    assert extractor.outer.grad is not None
    assert bool((extractor.outer.grad[:, :, 2].abs().sum(dim=1) > 0).all())
