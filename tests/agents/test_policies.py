"""The layer-wise extractor against one plain perceptron per layer."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor

from dfs_rl.agents.policies import PerLayerEmbedding, PerLayerExtractor

CHANNELS = (3, 5, 4)
SPACE = spaces.Dict(
    {
        "features": spaces.Box(-10.0, 10.0, (5,), np.float32),
        "layer": spaces.Discrete(3),
        "context": spaces.Box(0.0, 1.0, (3,), np.float32),
    }
)


def make_extractor(seed: int = 0) -> PerLayerExtractor:
    torch.manual_seed(seed)
    extractor = PerLayerExtractor(SPACE, feature_sizes=CHANNELS, hidden=4, outputs=6)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.normal_()
    return extractor


def observe(layers: list[int], seed: int = 1) -> dict[str, Tensor]:
    """Observations as SB3 hands them over, channels that a layer lacks being zero."""
    generator = torch.Generator().manual_seed(seed)
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


def by_hand(extractor: PerLayerExtractor, features: Tensor, context: Tensor, layer: int) -> Tensor:
    inputs = torch.cat([features, context])
    hidden = torch.tanh(inputs @ extractor.inner[layer] + extractor.inner_bias[layer])
    return hidden @ extractor.outer[layer] + extractor.outer_bias[layer]


@pytest.mark.parametrize("layers", [[0, 2, 1, 1, 0, 2, 2], [1, 1, 1], [2, 0], [0]])
def test_every_sample_goes_through_the_network_of_its_own_layer(layers: list[int]) -> None:
    extractor = make_extractor()
    observations = observe(layers)
    scores = extractor(observations)
    expected = torch.stack(
        [
            by_hand(extractor, features, context, layer)
            for features, context, layer in zip(
                observations["features"], observations["context"], layers, strict=True
            )
        ]
    )
    assert scores.shape == (len(layers), 6)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("layers", [[0, 2, 1, 1, 0, 2, 2], [1, 1, 1]])
def test_every_sample_is_embedded_by_the_map_of_its_own_layer(layers: list[int]) -> None:
    torch.manual_seed(0)
    embedding = PerLayerEmbedding(SPACE, feature_sizes=CHANNELS, outputs=4)
    with torch.no_grad():
        embedding.inner_bias.normal_()
    observations = observe(layers)
    expected = torch.stack(
        [
            torch.cat([features, context]) @ embedding.inner[layer] + embedding.inner_bias[layer]
            for features, context, layer in zip(
                observations["features"], observations["context"], layers, strict=True
            )
        ]
    )
    torch.testing.assert_close(embedding(observations), expected)


def test_gradients_reach_only_the_layers_in_the_batch() -> None:
    extractor = make_extractor()
    extractor(observe([0, 2, 2, 0])).square().sum().backward()
    assert extractor.inner.grad is not None
    touched = extractor.inner.grad.abs().sum(dim=(1, 2)) > 0
    assert touched.tolist() == [True, False, True]


def test_gradients_equal_those_of_the_plain_perceptrons() -> None:
    extractor = make_extractor()
    layers = [1, 0, 1, 2, 0]
    observations = observe(layers)
    extractor(observations).square().sum().backward()
    batched = [
        parameter.grad.clone() for parameter in extractor.parameters() if parameter.grad is not None
    ]
    extractor.zero_grad()
    for row, layer in enumerate(layers):
        by_hand(
            extractor, observations["features"][row], observations["context"][row], layer
        ).square().sum().backward()
    for ours, reference in zip(batched, extractor.parameters(), strict=True):
        assert reference.grad is not None
        torch.testing.assert_close(ours, reference.grad)


def test_a_new_extractor_is_indifferent_but_can_learn() -> None:
    torch.manual_seed(0)
    extractor = PerLayerExtractor(SPACE, feature_sizes=CHANNELS, hidden=4, outputs=6)
    scores = extractor(observe([0, 1, 2]))
    assert torch.equal(scores, torch.zeros(3, 6))
    scores[:, 2].sum().backward()
    assert extractor.outer.grad is not None
    assert bool((extractor.outer.grad[:, :, 2].abs().sum(dim=1) > 0).all())
