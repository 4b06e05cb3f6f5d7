"""What the policy sees: a small network of its own for every gated layer, as a Stable-Baselines3 features extractor."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TensorDict
from torch import Tensor, nn


class LayerwiseExtractor(BaseFeaturesExtractor):
    """One two-layer perceptron per gated layer: features and context in, one score per option out.

    A single network shared by all layers collapses to one pattern, because channel 3 of one layer has nothing to do with channel 3
    of the next. The environment has already normalised the features of each layer; those that a layer does not have are zero.

    Args:
        observation_space: The environment's ``Dict`` of ``features`` ``[F]``, ``layer`` and ``context`` ``[C]``.
        feature_sizes: How many of its features, from the first on, each gated layer looks at; all of them at most F.
        hidden: Width of the hidden layer.
        outputs: Scores per layer, the policy's ``features_dim``.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        *,
        feature_sizes: Sequence[int],
        hidden: int,
        outputs: int,
    ) -> None:
        super().__init__(observation_space, features_dim=outputs)
        self.feature_sizes = tuple(feature_sizes)
        self.features_width = max(self.feature_sizes)  # S
        context = _width(observation_space, "context")  # C
        layers = len(self.feature_sizes)
        # Every layer has weights for all S features, so that one batched product serves a minibatch of mixed layers.
        self.inner = nn.Parameter(torch.empty(layers, self.features_width + context, hidden))
        self.inner_bias = nn.Parameter(torch.zeros(layers, hidden))
        # Zero: every layer begins indifferent between its options, and its own features decide which way it leaves that point.
        self.outer = nn.Parameter(torch.zeros(layers, hidden, outputs))
        self.outer_bias = nn.Parameter(torch.zeros(layers, outputs))
        with torch.no_grad():
            for weight, size in zip(self.inner, self.feature_sizes, strict=True):
                weight.uniform_(-1.0, 1.0).mul_((size + context) ** -0.5)

    def forward(self, observations: TensorDict) -> Tensor:
        """Score the options of a batch whose samples may stand at different layers.

        Args:
            observations: ``features`` ``[batch, F]``, ``context`` ``[batch, C]`` and ``layer``, one-hot ``[batch, (1,) layers]`` as
                Stable-Baselines3 encodes a ``Discrete``.

        Returns:
            float32 ``[batch, outputs]``.
        """
        inputs = torch.cat(
            [observations["features"][:, : self.features_width], observations["context"]], dim=1
        )  # [batch, S + C]
        layer = observations["layer"].flatten(1).argmax(dim=1)  # [batch]
        first = int(layer[0])
        if bool((layer == first).all()):  # a rollout: all samples are at the same layer
            hidden = torch.tanh(torch.addmm(self.inner_bias[first], inputs, self.inner[first]))
            return torch.addmm(self.outer_bias[first], hidden, self.outer[first])
        slots, capacity = _slots(layer, len(self.inner))
        stacked = inputs.new_zeros(len(self.inner) * capacity, inputs.shape[1]).index_copy(
            0, slots, inputs
        )
        stacked = stacked.view(len(self.inner), capacity, -1)  # [layers, capacity, S + C]
        hidden = torch.tanh(
            torch.baddbmm(self.inner_bias[:, None], stacked, self.inner)
        )  # [layers, capacity, hidden]
        scores = torch.baddbmm(
            self.outer_bias[:, None], hidden, self.outer
        )  # [layers, capacity, outputs]
        return scores.flatten(0, 1).index_select(0, slots)


def _slots(layer: Tensor, layers: int) -> tuple[Tensor, int]:
    """Give each sample a row in a ``[layers * capacity]`` table that is ordered by layer.

    Measured on one core at 2,304 samples of 9 layers, forward and backward: 1.2 ms, against 1.9 ms for a loop over layers, 5.3 ms for
    computing every layer for every sample and 12 ms for gathering a weight matrix per sample.

    Args:
        layer: Layer of each sample, int64 ``[batch]``.
        layers: Number of layers.

    Returns:
        Row of each sample, int64 ``[batch]``, and the rows per layer.
    """
    order = torch.argsort(layer, stable=True)
    counts = torch.bincount(layer, minlength=layers)
    capacity = int(counts.max())
    first = counts.cumsum(0) - counts  # position in `order` of each layer's first sample
    in_order = layer[order]
    rank = torch.arange(len(layer), device=layer.device) - first[in_order]
    slots = torch.empty_like(layer)
    slots[order] = in_order * capacity + rank
    return slots, capacity


def _width(space: spaces.Dict, key: str) -> int:
    """Length of an observation that must be a vector."""
    (width,) = space[key].shape or ()
    return width
