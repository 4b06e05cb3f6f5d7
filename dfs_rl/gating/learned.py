"""The gates that are learned and ship: small networks that tell one logit per option."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.cost import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.dial import Dial
from dfs_rl.gating.observation import context_size

_PARTS_OF_A_CELL = 4  # input, forget, cell and output of an LSTM


class LearnedGate(nn.Module, ABC):
    """A gate that tells logits, of which the largest wins.

    Its networks score the options that it may choose; the logits of all others are minus infinity.

    Args:
        feature_sizes: How many of the numbers that the backbone describes each gated layer's input with the gate reads.
        options: The menu that it chooses from.
        feature_macs: What these numbers take, see ``WalkableBackbone``.
        hidden: Width of its hidden layers.
        budget: Upper bound on each image's computation in percent that it was trained for; ``None`` for none.
        dial: What it is turned by if it is one gate for all budgets; ``None`` if it was trained for one.
        position: Of the dial, see ``Dial``; without effect where there is none.
        choices: Indices of the options that it may choose, ascending; ``None`` for the whole menu.
        name: What tables and plots call it.

    Raises:
        ConfigError: If ``hidden`` is not positive, ``feature_macs`` negative, or ``choices`` no ascending part of the menu.
    """

    def __init__(
        self,
        feature_sizes: Sequence[int],
        options: BitOptions,
        *,
        feature_macs: float = 0.0,
        hidden: int = 16,
        budget: float | None = None,
        dial: Dial | None = None,
        position: float = 1.0,
        choices: Sequence[int] | None = None,
        name: str = "gate",
    ) -> None:
        super().__init__()
        if not 0.0 <= position <= 1.0:
            raise ConfigError(f"position of the dial is {position}; it must lie in [0, 1].")
        if hidden < 1:
            raise ConfigError(f"gate width is {hidden}; it must be at least 1.")
        if not feature_macs >= 0:
            raise ConfigError(f"feature_macs is {feature_macs}; it must not be negative.")
        self.choices = tuple(range(len(options)) if choices is None else choices)
        if not self.choices or list(self.choices) != sorted(
            set(self.choices) & set(range(len(options)))
        ):
            raise ConfigError(
                f"choices are {list(self.choices)}; they must be ascending indices into the menu {list(options)}, from 0 to "
                f"{options.full}, and one at least."
            )
        self.feature_sizes = tuple(feature_sizes)
        self.feature_macs = feature_macs
        self.options = options
        self.hidden = hidden
        self.budget = budget
        self.dial = dial
        self.position = position
        self.name = name
        self._build([size + self.context_size for size in self.feature_sizes])

    @property
    def context_size(self) -> int:
        """How many numbers of context it reads."""
        return context_size(dial=self.dial is not None)

    def positions(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Return its position for each image of a batch, float32 ``[batch]``, or ``None`` without a dial."""
        if self.dial is None:
            return None
        return torch.full((batch_size,), self.position, device=device)

    @abstractmethod
    def _build(self, sizes: list[int]) -> None:
        """Make the networks; each layer's input has ``sizes[layer]`` numbers, context included."""

    @property
    @abstractmethod
    def own_macs(self) -> int:
        """Multiply-accumulates of its own network per image, over all layers."""

    @property
    def macs(self) -> float:
        """Multiply-accumulates per image over all layers, those of the features included."""
        return self.feature_macs + float(self.own_macs)

    def reset(self, batch_size: int) -> None:
        """Begin a walk."""

    @abstractmethod
    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the logits of ``choices``, float32 ``[batch, choices]``; arguments as in ``decide``."""

    def forward(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, options]``; arguments as in ``decide``."""
        scores = self._score(features, layer, context)
        if len(self.choices) == len(self.options):
            return scores
        logits = scores.new_full((len(scores), len(self.options)), -torch.inf)
        return logits.index_copy(1, torch.tensor(self.choices, device=scores.device), scores)

    @torch.no_grad()
    def decide(
        self, features: Tensor, layer: int, context: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the option with the largest logit for every image, see ``Gate``.

        Args:
            features: As for ``Gate``.
            layer: As for ``Gate``.
            context: As for ``Gate``.
            allowed: Options to choose among, the cheapest up to some point in each row, bool ``[batch, options]``; ``None`` for
                all. Where none of ``choices`` is among them, the cheapest of those is chosen.
        """
        logits = self.forward(features, layer, context)
        if allowed is not None:
            cheapest = torch.arange(len(self.options), device=allowed.device) == self.choices[0]
            logits = logits.masked_fill(~(allowed | cheapest), -torch.inf)
        return logits.argmax(dim=1)

    def _inputs(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """What layer ``layer`` looks at, ``[batch, size + 3 or 4]``."""
        return torch.cat([features[:, : self.feature_sizes[layer]], context], dim=1)


class LayerwiseGate(LearnedGate):
    """A small network of its own for each layer; the deployable actor of an agent.

    Layer ``l`` maps its own features and the context through ``Linear -> tanh -> Linear`` to the logits. Arguments as for
    ``LearnedGate``.
    """

    def _build(self, sizes: list[int]) -> None:
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size, self.hidden),
                nn.Tanh(),
                nn.Linear(self.hidden, len(self.choices)),
            )
            for size in sizes
        )

    @property
    def own_macs(self) -> int:
        """See ``LearnedGate``."""
        each = self.context_size + len(self.choices)
        return sum(self.hidden * (size + each) for size in self.feature_sizes)

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """See ``LearnedGate``."""
        return cast("Tensor", self.networks[layer](self._inputs(features, layer, context)))


class RecurrentGate(LearnedGate):
    """One LSTM for all layers, over an embedding of its own for each, as in DFS and SkipNet.

    Embedding, memory and logits are ``hidden`` wide, 10 in DFS (Shen et al., AAAI 2020). It remembers what it saw at earlier
    layers of the same walk, so layers must be asked in order, after ``reset``. Arguments as for ``LearnedGate``.
    """

    def _build(self, sizes: list[int]) -> None:
        self.embeddings = nn.ModuleList(nn.Linear(size, self.hidden) for size in sizes)
        self.cell = nn.LSTMCell(self.hidden, self.hidden)
        self.scores = nn.Linear(self.hidden, len(self.choices))
        self._memory: tuple[Tensor, Tensor] | None = None

    @property
    def own_macs(self) -> int:
        """See ``LearnedGate``."""
        # A cell reads the embedding and its memory.
        each = self.context_size + _PARTS_OF_A_CELL * 2 * self.hidden + len(self.choices)
        return sum(self.hidden * (size + each) for size in self.feature_sizes)

    def reset(self, batch_size: int) -> None:
        """Forget the last walk."""
        del batch_size
        self._memory = None

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """See ``LearnedGate``; the memory moves on."""
        embedding = self.embeddings[layer](self._inputs(features, layer, context))
        self._memory = self.cell(embedding, self._memory)
        return cast("Tensor", self.scores(self._memory[0]))


class OneShotGate(LearnedGate):
    """One small network that decides for all layers before the first of them, after BlockDrop (Wu et al., CVPR 2018).

    It maps the features and the context before layer 0 through ``Linear -> tanh -> Linear`` to the logits of all layers and looks
    at nothing later, so layer 0 must be asked first, after ``reset``. The paper decides by a ResNet of its own on the image; this
    reads what the backbone's stem has made of it. ``feature_macs`` count as for the other gates, later layers' included, although
    it has no use for those. Arguments as for ``LearnedGate``.
    """

    def _build(self, sizes: list[int]) -> None:
        self.network = nn.Sequential(
            nn.Linear(sizes[0], self.hidden),
            nn.Tanh(),
            nn.Linear(self.hidden, len(sizes) * len(self.choices)),
        )
        self._decided: Tensor | None = None

    @property
    def own_macs(self) -> int:
        """See ``LearnedGate``."""
        outputs = len(self.feature_sizes) * len(self.choices)
        return self.hidden * (self.feature_sizes[0] + self.context_size + outputs)

    def reset(self, batch_size: int) -> None:
        """Forget the last walk."""
        del batch_size
        self._decided = None

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """See ``LearnedGate``; what later layers are asked with changes nothing."""
        if layer == 0:
            scores = self.network(self._inputs(features, 0, context))
            self._decided = scores.unflatten(1, (len(self.feature_sizes), len(self.choices)))
        assert self._decided is not None, "the first layer is asked first"
        return self._decided[:, layer]  # of [batch, layers, choices]
