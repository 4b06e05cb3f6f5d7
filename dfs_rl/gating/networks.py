"""The gates that are learned and ship: small networks that tell one logit per action."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.observation import context_size

_PARTS_OF_A_CELL = 4  # input, forget, cell and output of an LSTM


@dataclass(frozen=True, kw_only=True)
class ExitInfo:
    """What a gate knows of the exits of its network.

    Attributes:
        after: After how many gated layers an image may leave.
        layer_feature_macs: What the numbers that it looks at take before each layer, see
            ``WithExits``.
    """

    after: tuple[int, ...]
    layer_feature_macs: tuple[float, ...]


def exit_info(backbone: WalkableBackbone) -> ExitInfo | None:
    """Return what a gate needs to know of a network's exits, ``None`` if it has none."""
    if not backbone.costs.exits:
        return None
    assert isinstance(backbone, WithExits), "a network whose costs know exits has them"
    return ExitInfo(
        after=backbone.costs.exits_after, layer_feature_macs=backbone.layer_feature_macs
    )


class LearnedGate(nn.Module, ABC):
    """A gate that tells logits, of which the largest wins.

    Its networks score the options that it may choose and, where it knows exits, leaving; the logits
    of all others are minus infinity.

    Args:
        feature_sizes: How many of the numbers that the backbone describes each gated layer's input
            with the gate reads.
        options: The menu that it chooses from.
        feature_macs: What these numbers take, see ``WalkableBackbone``.
        hidden: Width of its hidden layers.
        budget: Upper bound on each image's computation in percent that it was trained for; ``None``
            for none.
        budget_conditioning: What it is turned by if it is one gate for all budgets; ``None`` if it
            was trained for one.
        preference: Of the dial, see ``BudgetConditioning``; without effect where there is none.
        choices: Indices of the options that it may choose, ascending; ``None`` for the whole menu.
        exits: By which exits of the network it may leave, and what it looks at on the way; ``None``
            if it walks to the end.
        name: What tables and plots call it.

    Raises:
        ConfigError: If ``hidden`` is not positive, ``feature_macs`` negative, ``choices`` no
            ascending part of the menu, or a gate with ``exits`` has ``choices``.
    """

    def __init__(
        self,
        feature_sizes: Sequence[int],
        options: BitOptions,
        *,
        feature_macs: float = 0.0,
        hidden: int = 16,
        budget: float | None = None,
        budget_conditioning: BudgetConditioning | None = None,
        preference: float = 1.0,
        choices: Sequence[int] | None = None,
        exits: ExitInfo | None = None,
        name: str = "gate",
    ) -> None:
        super().__init__()
        if not 0.0 <= preference <= 1.0:
            raise ConfigError(f"position of the dial is {preference}; it must lie in [0, 1].")
        if hidden < 1:
            raise ConfigError(f"gate width is {hidden}; it must be at least 1.")
        if not feature_macs >= 0:
            raise ConfigError(f"feature_macs is {feature_macs}; it must not be negative.")
        if exits is not None and choices is not None:
            raise ConfigError(
                f"choices are {list(choices)}, but a gate that may leave the network chooses from "
                "the whole menu."
            )
        self.choices = tuple(range(len(options)) if choices is None else choices)
        if not self.choices or list(self.choices) != sorted(
            set(self.choices) & set(range(len(options)))
        ):
            raise ConfigError(
                f"choices are {list(self.choices)}; they must be ascending indices into the menu "
                f"{list(options)}, from 0 to "
                f"{options.full}, and one at least."
            )
        if exits is not None:
            self.choices = (*self.choices, len(options))
        self.exits = exits
        self.feature_sizes = tuple(feature_sizes)
        self.feature_macs = feature_macs
        self.options = options
        self.hidden = hidden
        self.budget = budget
        self.budget_conditioning = budget_conditioning
        self.preference = preference
        self.name = name
        self._build([size + self.context_size for size in self.feature_sizes])

    @property
    def context_size(self) -> int:
        """How many numbers of context it reads."""
        return context_size(budget_conditioning=self.budget_conditioning is not None)

    def preferences(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Return its position for each image of a batch, float32 ``[batch]``, or ``None`` without a dial."""
        if self.budget_conditioning is None:
            return None
        return torch.full((batch_size,), self.preference, device=device)

    @abstractmethod
    def _build(self, sizes: list[int]) -> None:
        """Make the networks; each layer's input has ``sizes[layer]`` numbers, context included."""

    @property
    def n_actions(self) -> int:
        """How many actions it tells logits of: the menu's options and, where it knows exits, leaving."""
        return len(self.options) + (self.exits is not None)

    @property
    @abstractmethod
    def layer_macs(self) -> tuple[int, ...]:
        """Multiply-accumulates of its own network per image when it is asked for each layer."""

    @property
    def own_macs(self) -> int:
        """Multiply-accumulates of its own network per image, over all layers."""
        return sum(self.layer_macs)

    @property
    def macs(self) -> float:
        """Multiply-accumulates per image over all layers, those of the features included."""
        return self.feature_macs + float(self.own_macs)

    @property
    def least_macs(self) -> float:
        """What it takes for an image that leaves as soon as it can, see ``macs_taken``."""
        after = len(self.feature_sizes) if self.exits is None else self.exits.after[0]
        return float(self.macs_taken(torch.tensor([after])))

    def macs_taken(self, n_layers_run: Tensor) -> Tensor:
        """Return what it took for images that left, or did not.

        It is asked for every layer that an image comes through, and for the one that it leaves
        before. What it looks at there is the exit's own head, which leaving pays for.

        Args:
            n_layers_run: How many layers each came through, int64 ``[batch]``.

        Returns:
            Multiply-accumulates at full precision, float64 ``[batch]``.
        """
        if self.exits is None:
            return torch.full(
                n_layers_run.shape, self.macs, dtype=torch.float64, device=n_layers_run.device
            )
        own = torch.tensor([0, *self.layer_macs], dtype=torch.float64).cumsum(0)
        looks = torch.tensor([0.0, *self.exits.layer_feature_macs], dtype=torch.float64).cumsum(0)
        asked = (n_layers_run + 1).clamp(max=len(self.feature_sizes))
        return own.to(n_layers_run.device)[asked] + looks.to(n_layers_run.device)[n_layers_run]

    def reset(self, batch_size: int) -> None:
        """Begin a walk."""

    @abstractmethod
    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the logits of ``choices``, float32 ``[batch, choices]``; arguments as in ``decide``."""

    def forward(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, actions]``; arguments as in ``decide``."""
        scores = self._score(features, layer, context)
        if len(self.choices) == self.n_actions:
            return scores
        logits = scores.new_full((len(scores), self.n_actions), -torch.inf)
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
            allowed: Options to choose among, the cheapest up to some point in each row, and whether
                leaving is allowed, bool ``[batch, actions]``; ``None`` for all. Where none of
                ``choices`` is among them, the cheapest of those is chosen.
        """
        logits = self.forward(features, layer, context)
        if allowed is not None:
            if self.exits is not None and layer not in self.exits.after:
                # Where there is no exit, to leave is to take the cheapest option, as in the environment.
                allowed = torch.cat([allowed[:, :-1], allowed[:, :1]], dim=1)
            cheapest = torch.arange(self.n_actions, device=allowed.device) == self.choices[0]
            none = ~allowed[:, list(self.choices)].any(dim=1, keepdim=True)
            logits = logits.masked_fill(~(allowed | (cheapest & none)), -torch.inf)
        return logits.argmax(dim=1)

    def _inputs(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """What layer ``layer`` looks at, ``[batch, size + 3 or 4]``."""
        return torch.cat([features[:, : self.feature_sizes[layer]], context], dim=1)


class MLPGate(LearnedGate):
    """A small network of its own for each layer; the deployable actor of an agent.

    Layer ``l`` maps its own features and the context through ``Linear -> tanh -> Linear`` to the
    logits. Arguments as for ``LearnedGate``.
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
    def layer_macs(self) -> tuple[int, ...]:
        """See ``LearnedGate``."""
        each = self.context_size + len(self.choices)
        return tuple(self.hidden * (size + each) for size in self.feature_sizes)

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """See ``LearnedGate``."""
        return cast("Tensor", self.networks[layer](self._inputs(features, layer, context)))


class LSTMGate(LearnedGate):
    """One LSTM for all layers, over an embedding of its own for each, as in DFS and SkipNet.

    Embedding, memory and logits are ``hidden`` wide, 10 in DFS (Shen et al., AAAI 2020). It
    remembers what it saw at earlier layers of the same walk, so layers must be asked in order,
    after ``reset``. Arguments as for ``LearnedGate``.
    """

    def _build(self, sizes: list[int]) -> None:
        self.embeddings = nn.ModuleList(nn.Linear(size, self.hidden) for size in sizes)
        self.cell = nn.LSTMCell(self.hidden, self.hidden)
        self.scores = nn.Linear(self.hidden, len(self.choices))
        self._memory: tuple[Tensor, Tensor] | None = None

    @property
    def layer_macs(self) -> tuple[int, ...]:
        """See ``LearnedGate``."""
        # A cell reads the embedding and its memory.
        each = self.context_size + _PARTS_OF_A_CELL * 2 * self.hidden + len(self.choices)
        return tuple(self.hidden * (size + each) for size in self.feature_sizes)

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

    It maps the features and the context before layer 0 through ``Linear -> tanh -> Linear`` to the
    logits of all layers and looks at nothing later, so layer 0 must be asked first, after
    ``reset``. The paper decides by a ResNet of its own on the image; this reads what the backbone's
    stem has made of it. ``feature_macs`` count as for the other gates, later layers' included,
    although it has no use for those. Arguments as for ``LearnedGate``.
    """

    def _build(self, sizes: list[int]) -> None:
        self.network = nn.Sequential(
            nn.Linear(sizes[0], self.hidden),
            nn.Tanh(),
            nn.Linear(self.hidden, len(sizes) * len(self.choices)),
        )
        self._decided: Tensor | None = None

    @property
    def layer_macs(self) -> tuple[int, ...]:
        """See ``LearnedGate``; all of it is before the first layer."""
        outputs = len(self.feature_sizes) * len(self.choices)
        first = self.hidden * (self.feature_sizes[0] + self.context_size + outputs)
        return (first, *[0] * (len(self.feature_sizes) - 1))

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
