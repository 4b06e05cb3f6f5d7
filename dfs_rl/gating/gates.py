"""Gates: anything that chooses an option per layer and image, and the learned one that ships."""

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from dfs_rl.cost import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.observation import CONTEXT_SIZE
from dfs_rl.seeding import torch_generator


@runtime_checkable
class Gate(Protocol):
    """What evaluation, comparison and deployment know of a gate."""

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        ...

    @property
    def macs(self) -> float:
        """Multiply-accumulates that its decisions take per image, over all layers, at full precision.

        What the backbone computes for its sake alone is part of them.
        """
        ...

    def reset(self, batch_size: int) -> None:
        """Begin a walk of ``batch_size`` images."""
        ...

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Choose an option for every image.

        Args:
            features: Normalised, float32 ``[batch, width]``, see ``Observation``.
            layer: The layer to choose for.
            context: What was spent, budget, previous option: float32 ``[batch, 3]``.

        Returns:
            Option indices, int64 ``[batch]``.
        """
        ...


class TableGate:
    """The same options for every image: a static mixed-precision network.

    Args:
        table: Option index for each layer.
        name: What tables and plots call it.
    """

    macs = 0.0

    def __init__(self, table: Sequence[int], *, name: str = "table") -> None:
        self.table = tuple(int(option) for option in table)
        self.name = name

    def reset(self, batch_size: int) -> None:
        """Keep nothing from walk to walk."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:  # noqa: ARG002 - it looks at the layer alone
        """Return the layer's option for every image."""
        return torch.full(
            (len(features),), self.table[layer], dtype=torch.int64, device=features.device
        )


class RandomGate:
    """Options drawn at random, independently for every layer and image.

    The draws are one stream from the construction on; a second gate with the same seed repeats them.

    Args:
        marginals: Probability of each option at each layer, ``[layers, options]``; rows sum to 1.
        seed: Seed of the stream.
        name: What tables and plots call it.

    Raises:
        ConfigError: If a row of ``marginals`` is no distribution.
    """

    macs = 0.0

    def __init__(self, marginals: Tensor, *, seed: int, name: str = "random") -> None:
        self.marginals = marginals.detach().to("cpu", torch.float64)
        sums = self.marginals.sum(dim=-1)
        if (
            self.marginals.dim() != 2  # noqa: PLR2004 - [layers, options]
            or bool((self.marginals < 0).any())
            or not torch.allclose(sums, torch.ones_like(sums))
        ):
            raise ConfigError(
                "marginals must be [layers, options], not negative, and each row must sum to 1."
            )
        self.name = name
        self._generator = torch_generator(seed, "random gate")

    def reset(self, batch_size: int) -> None:
        """Keep nothing from walk to walk but the place in the stream."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:  # noqa: ARG002 - it looks at the layer alone
        """Draw an option for every image."""
        draws = torch.multinomial(
            self.marginals[layer], len(features), replacement=True, generator=self._generator
        )
        return draws.to(features.device)


class LayerwiseGate(nn.Module):
    """A learned gate with its own small network for each layer; the deployable actor of an agent.

    Layer ``l`` maps its own features and the context through ``Linear -> tanh -> Linear`` to one logit per option, and the
    largest wins.

    Args:
        feature_sizes: Numbers that the backbone describes each gated layer's input with.
        options: The menu that it chooses from.
        feature_macs: What these numbers take, see ``WalkableBackbone``.
        hidden: Width of the hidden layer.
        budget: Upper bound on computation in percent that it was trained for; ``None`` for none.
        name: What tables and plots call it.

    Raises:
        ConfigError: If ``hidden`` is not positive or ``feature_macs`` negative.
    """

    def __init__(
        self,
        feature_sizes: Sequence[int],
        options: BitOptions,
        *,
        feature_macs: float = 0.0,
        hidden: int = 16,
        budget: float | None = None,
        name: str = "layerwise",
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ConfigError(f"gate width is {hidden}; it must be at least 1.")
        if not feature_macs >= 0:
            raise ConfigError(f"feature_macs is {feature_macs}; it must not be negative.")
        self.feature_sizes = tuple(feature_sizes)
        self.feature_macs = feature_macs
        self.options = options
        self.hidden = hidden
        self.budget = budget
        self.name = name
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size + CONTEXT_SIZE, hidden),
                nn.Tanh(),
                nn.Linear(hidden, len(options)),
            )
            for size in self.feature_sizes
        )

    @property
    def macs(self) -> float:
        """Multiply-accumulates per image over all layers, those of the features included."""
        return self.feature_macs + float(
            sum(
                m.in_features * m.out_features
                for m in self.networks.modules()
                if isinstance(m, nn.Linear)
            )
        )

    def reset(self, batch_size: int) -> None:
        """Keep nothing from walk to walk."""

    def forward(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, options]``; arguments as in ``decide``."""
        size = self.feature_sizes[layer]
        return cast("Tensor", self.networks[layer](torch.cat([features[:, :size], context], dim=1)))

    @torch.no_grad()
    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the option with the largest logit for every image."""
        return self.forward(features, layer, context).argmax(dim=1)
