"""Gate with one perceptron for all layers, the form of a policy of Stable-Baselines3."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.networks import LearnedGate

ACTIVATIONS: dict[str, type[nn.Module]] = {
    each.__name__: each for each in (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU)
}
"""Activations between the linear maps, with their default settings, by name."""


class SharedMLPGate(LearnedGate):
    """Perceptron that all layers share; the layer changes the bias of its first linear map.

    A one-hot index among the inputs of a network selects a column of its first weights, which is
    added to the bias. So the gate equals the actor of a ``MultiInputPolicy``, without multiplying
    by zeros. ``agents.policy_conversion`` builds it.

    Args:
        feature_sizes: Number of features before each gated layer, see ``LearnedGate``.
        options: Bit options of the backbone.
        widths: Widths of the hidden layers; empty for a linear map.
        activation: Name in ``ACTIVATIONS``.
        normalizes: True for inputs that are normalised and bounded, as ``VecNormalize`` does.
        settings: Further arguments of ``LearnedGate``.

    Raises:
        ConfigError: If a value is invalid.
    """

    decides_again = True
    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(
        self,
        feature_sizes: Sequence[int],
        options: BitOptions,
        *,
        widths: Sequence[int],
        activation: str = "Tanh",
        normalizes: bool = False,
        **settings: Any,  # noqa: ANN401 - of LearnedGate
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation is {activation!r}; allowed are {', '.join(ACTIVATIONS)}."
            )
        self.widths, self.activation, self.normalizes = tuple(widths), activation, normalizes
        super().__init__(feature_sizes, options, **settings)

    @property
    def observed_macs(self) -> float:
        """0: the environment that trained the policy does not know the cost of the gate."""
        return 0.0

    def _build(self, sizes: list[int]) -> None:
        width = max(self.feature_sizes) + self.context_size
        first, *others = (*self.widths, self.n_actions)
        self.weight = nn.Parameter(torch.zeros(first, width))
        self.layer_bias = nn.Parameter(torch.zeros(len(sizes), first))
        rest: list[nn.Module] = []
        for inputs, outputs in zip(self.widths, others, strict=True):
            rest += [ACTIVATIONS[self.activation](), nn.Linear(inputs, outputs)]
        self.rest = nn.Sequential(*rest)
        if self.normalizes:
            for name, value in (("mean", 0.0), ("std", 1.0), ("limit", torch.inf)):
                self.register_buffer(name, torch.full((width,), value))

    def decide(
        self, features: Tensor, layer: int, context: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the action with the largest logit, see ``LearnedGate``.

        At the end of a pass no action is masked, as in the environment, where all actions that
        start no other pass answer.
        """
        ends = layer == len(self.feature_sizes)
        return super().decide(features, layer, context, None if ends else allowed)

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        size = self.input_sizes[layer]
        inputs = self._inputs(features, layer, context)  # [batch, size + C]
        if self.normalizes:
            mean, std, limit = (
                self._columns(values, size) for values in (self.mean, self.std, self.limit)
            )
            inputs = ((inputs - mean) / std).clamp(-limit, limit)
        weight = self._columns(self.weight, size)
        hidden = functional.linear(inputs, weight, self.layer_bias[layer])
        return cast("Tensor", self.rest(hidden))

    def _columns(self, values: Tensor, size: int) -> Tensor:
        """Return the columns of ``size`` features and the context, ``[..., size + C]``."""
        start = values.shape[-1] - self.context_size
        return torch.cat([values[..., :size], values[..., start:]], dim=-1)
