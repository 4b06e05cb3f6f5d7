"""Policies and features extractors with one small network per gated layer."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentMultiInputActorCriticPolicy
from sb3_contrib.qrdqn.policies import MultiInputPolicy as QRDQNMultiInputPolicy
from sb3_contrib.qrdqn.policies import QuantileNetwork
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule, TensorDict
from stable_baselines3.dqn.policies import MultiInputPolicy as DQNMultiInputPolicy
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn


class PerLayerEmbedding(BaseFeaturesExtractor):
    """Linear map per gated layer of features and context, the input of an LSTM for all layers.

    A network shared by all layers collapses to one pattern, because channel 3 of one layer is
    unrelated to channel 3 of the next. Features that a layer lacks are zero.

    Observations have ``features`` ``[F]``, ``layer`` and ``context`` ``[C]``. A layer reads as many
    leading features as ``feature_sizes`` says, at most F.
    """

    def __init__(
        self, observation_space: spaces.Dict, *, feature_sizes: Sequence[int], outputs: int
    ) -> None:
        super().__init__(observation_space, features_dim=outputs)
        self.feature_sizes = tuple(feature_sizes)
        self.features_width = max(self.feature_sizes)  # S
        (context,) = observation_space["context"].shape or ()  # C
        layers = len(self.feature_sizes)
        # Every layer has weights for all S features, so one batched product serves mixed layers.
        self.inner = nn.Parameter(torch.empty(layers, self.features_width + context, outputs))
        self.inner_bias = nn.Parameter(torch.zeros(layers, outputs))
        with torch.no_grad():
            for weight, size in zip(self.inner, self.feature_sizes, strict=True):
                weight.uniform_(-1.0, 1.0).mul_((size + context) ** -0.5)

    def layer_weights(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's weights ``[width, size + C]`` and bias ``[width]``."""
        weights, size = self.inner[layer], self.feature_sizes[layer]
        present = torch.cat([weights[:size], weights[self.features_width :]])
        return present.T, self.inner_bias[layer]

    def one_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Map inputs ``[batch, S + C]`` at layer ``layer`` to ``[batch, outputs]``."""
        return torch.addmm(self.inner_bias[layer], inputs, self.inner[layer])

    def all_layers(self, inputs: Tensor) -> Tensor:
        """Map each layer's inputs ``[layers, n, S + C]`` to ``[layers, n, outputs]``."""
        return torch.baddbmm(self.inner_bias[:, None], inputs, self.inner)

    def forward(self, observations: TensorDict) -> Tensor:
        """Map a batch of observations, possibly from different layers, to ``[batch, outputs]``.

        ``layer`` is one-hot, ``[batch, (1,) layers]``, as Stable-Baselines3 encodes a ``Discrete``.
        """
        inputs = torch.cat(
            [observations["features"][:, : self.features_width], observations["context"]], dim=1
        )  # [batch, S + C]
        layer = observations["layer"].flatten(1).argmax(dim=1)  # [batch]
        first, n_layers = int(layer[0]), len(self.inner)
        if bool((layer == first).all()):  # a rollout: all samples are at the same layer
            return self.one_layer(inputs, first)
        slots, capacity = _slots(layer, n_layers)
        table = inputs.new_zeros(n_layers * capacity, inputs.shape[1]).index_copy(0, slots, inputs)
        stacked = table.view(n_layers, capacity, -1)  # [layers, capacity, S + C]
        return self.all_layers(stacked).flatten(0, 1).index_select(0, slots)


class PerLayerExtractor(PerLayerEmbedding):
    """Two-layer perceptron per gated layer, from features and context to scores of the options."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        *,
        feature_sizes: Sequence[int],
        hidden: int,
        outputs: int,
    ) -> None:
        super().__init__(observation_space, feature_sizes=feature_sizes, outputs=hidden)
        self._features_dim = outputs
        layers = len(self.feature_sizes)
        # Zero weights give equal scores to all options of a layer.
        self.outer = nn.Parameter(torch.zeros(layers, hidden, outputs))
        self.outer_bias = nn.Parameter(torch.zeros(layers, outputs))

    def one_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Map inputs ``[batch, S + C]`` at layer ``layer`` to scores ``[batch, outputs]``."""
        hidden = torch.tanh(super().one_layer(inputs, layer))
        return torch.addmm(self.outer_bias[layer], hidden, self.outer[layer])

    def all_layers(self, inputs: Tensor) -> Tensor:
        """Map each layer's inputs to scores ``[layers, n, outputs]``."""
        hidden = torch.tanh(super().all_layers(inputs))
        return torch.baddbmm(self.outer_bias[:, None], hidden, self.outer)


class _PerLayerScores:
    """Mixin for actor-critic policies whose extractor outputs the logits.

    The head is initialized first, so that the critic's initial weights are those of a policy with a
    head. What replaces it has no parameters, because TRPO differentiates by all of them.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        policy: Any = self
        policy.action_net = nn.Identity()
        policy.optimizer = policy.optimizer_class(
            policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
        )


class GatePolicy(_PerLayerScores, MultiInputActorCriticPolicy):
    """Policy of PPO, A2C and TRPO with a ``PerLayerExtractor``."""


class MaskableGatePolicy(_PerLayerScores, MaskableMultiInputActorCriticPolicy):
    """Policy of MaskablePPO with a ``PerLayerExtractor``."""


class RecurrentGatePolicy(RecurrentMultiInputActorCriticPolicy):
    """Policy of RecurrentPPO with a ``PerLayerEmbedding``; all layers share the head, as in DFS."""

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        assert isinstance(self.action_net, nn.Linear)
        nn.init.zeros_(self.action_net.weight)  # as in the other gates


class GateDQNPolicy(DQNMultiInputPolicy):
    """Policy of DQN with a ``PerLayerExtractor`` whose scores are the action values."""

    def make_q_net(self) -> QNetwork:
        """Return a Q-network without a head."""
        network = super().make_q_net()
        network.q_net = nn.Sequential()
        return network


class GateQRDQNPolicy(QRDQNMultiInputPolicy):
    """Policy of QR-DQN with a ``PerLayerExtractor`` whose scores are the quantiles."""

    def make_quantile_net(self) -> QuantileNetwork:
        """Return a quantile network without a head."""
        network = super().make_quantile_net()
        network.quantile_net = nn.Sequential()
        return network


def _slots(layer: Tensor, layers: int) -> tuple[Tensor, int]:
    """Assign each sample a row in a table with ``capacity`` rows per layer; return both.

    One batched product over the table is faster than a loop over layers, all layers for every
    sample, or one gathered weight matrix per sample.
    """
    order = torch.argsort(layer, stable=True)
    counts = torch.bincount(layer, minlength=layers)
    capacity = int(counts.max())
    first = counts.cumsum(0) - counts  # place in `order` of each layer's first sample
    in_order = layer[order]
    rank = torch.arange(len(layer), device=layer.device) - first[in_order]
    slots = torch.empty_like(layer)
    slots[order] = in_order * capacity + rank
    return slots, capacity
