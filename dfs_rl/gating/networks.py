"""Learned gates that can be deployed: small networks with one logit per action."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import GatedBackbone, WithExits
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.costs.mac_counter import count_macs
from dfs_rl.errors import ConfigError
from dfs_rl.gating.base import Gate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.observation import context_size
from dfs_rl.gating.passes import N_END_ACTIONS, SINGLE_PASS, PassSettings
from dfs_rl.gating.registry import GATES
from dfs_rl.utils.config import NonNegativeFloat, NonNegativeInt, configuration


@configuration
class ExitInfo:
    """Exits of a network, as a gate stores them.

    Attributes:
        after: Numbers of gated layers after which an image may leave.
        layer_feature_macs: MACs of the features before each layer, see ``WithExits``.
    """

    after: tuple[NonNegativeInt, ...]
    layer_feature_macs: tuple[NonNegativeFloat, ...]


def exit_info(backbone: GatedBackbone) -> ExitInfo | None:
    """Return the exits of a backbone, ``None`` if it has none."""
    if not backbone.costs.exits:
        return None
    assert isinstance(backbone, WithExits), "a backbone with exits in its costs has exit heads"
    macs = backbone.layer_feature_macs
    return ExitInfo(after=backbone.costs.exits_after, layer_feature_macs=macs)


class LearnedGate(nn.Module, ABC):
    """Base class of gates with logits; the action with the largest logit is chosen.

    A subclass scores the allowed options and, with exits, the exit action; the logits of all other
    actions are minus infinity.

    Args:
        feature_sizes: Number of features that the gate reads before each gated layer.
        options: Bit options of the backbone.
        feature_macs: MACs of these features, see ``GatedBackbone``; 0 or more.
        hidden: Width of the hidden layers, at least 1.
        budget: Per-input budget of the training in percent.
        budget_conditioning: Measured costs of a gate for all budgets; ``None`` for a gate that was
            trained for one budget.
        preference: Preference in [0, 1], without effect without budget conditioning.
        choices: Indices of the allowed options, ascending; ``None`` for all.
        exits: Exits that the gate may take, which excludes ``choices``.
        passes: Passes that the gate may run, of which several exclude ``choices``; ``None`` for a
            single one.
        name: Name in tables and plots.

    Raises:
        ConfigError: If a value is invalid.
    """

    decides_again: ClassVar[bool] = False
    """True for a kind of gate that can run several passes; it has no memory."""

    def __init__(  # noqa: PLR0913
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
        passes: PassSettings | None = None,
        name: str = "gate",
    ) -> None:
        super().__init__()
        if not feature_sizes:
            raise ConfigError("feature_sizes is empty; every gated layer needs one.")
        if not 0.0 <= preference <= 1.0:
            raise ConfigError(f"preference is {preference}; it must be between 0 and 1.")
        if hidden < 1:
            raise ConfigError(f"hidden is {hidden}; it must be at least 1.")
        if not feature_macs >= 0:
            raise ConfigError(f"feature_macs is {feature_macs}; it must not be negative.")
        self.passes = passes or SINGLE_PASS
        several = self.passes.limit > 1
        if several and not self.decides_again:
            raise ConfigError(
                f"passes is {self.passes.limit}, but {name!r} is a {type(self).__name__}, which "
                "decides for a single pass."
            )
        if choices is not None and (exits is not None or several):
            raise ConfigError(
                f"choices are {list(choices)}, but a gate with exits or several passes may choose "
                "every option; leave out choices."
            )
        self.choices = tuple(range(len(options)) if choices is None else choices)
        allowed = sorted(set(self.choices) & set(range(len(options))))
        if not self.choices or list(self.choices) != allowed:
            raise ConfigError(
                f"choices are {list(self.choices)}; they must be one or more ascending indices "
                f"into the bit options {list(options)}, from 0 to {options.full}."
            )
        self.exits = exits
        self.feature_sizes = tuple(feature_sizes)
        self.feature_macs = feature_macs
        self.options = options
        self.hidden = hidden
        self.budget = budget
        self.budget_conditioning = budget_conditioning
        self.preference = preference
        self.name = name
        if exits is not None or several:
            self.choices = tuple(range(self.n_actions))
        self.context_size = context_size(
            budget_conditioning=budget_conditioning is not None, passes=self.passes
        )
        # Features of each decision; at the end of a pass the gate reads the context alone.
        self.input_sizes = (*self.feature_sizes, 0) if several else self.feature_sizes
        self._build([size + self.context_size for size in self.input_sizes])
        self.layer_macs = self._count_macs()
        """Multiply-accumulates of the network per image at each layer, and at the end of a pass."""

    @abstractmethod
    def _build(self, sizes: list[int]) -> None:
        """Create the networks; decision ``i`` has ``sizes[i]`` inputs, context included.

        The decisions are those for the layers and, with several passes, one at the end of a pass.
        """

    def _count_macs(self) -> tuple[int, ...]:
        features = torch.zeros(1, max(self.feature_sizes))
        context = torch.zeros(1, self.context_size)
        self.eval().reset(1)
        macs = tuple(
            count_macs(partial(self._score, features, layer, context))
            for layer in range(len(self.input_sizes))
        )
        self.train().reset(1)
        return macs

    @property
    def n_actions(self) -> int:
        """Number of logits: one per bit option and, with exits, one for the exit action.

        With several passes there are at least those at the end of a pass.
        """
        n = len(self.options) + (self.exits is not None)
        return max(n, N_END_ACTIONS) if self.passes.limit > 1 else n

    @property
    def macs(self) -> float:
        """Multiply-accumulates of a pass per image, those of the features included."""
        return self.feature_macs + float(sum(self.layer_macs))

    @property
    def observed_macs(self) -> float:
        """Multiply-accumulates of the gate that its observations count, see ``observe``."""
        return self.macs

    @property
    def least_macs(self) -> float:
        """Multiply-accumulates of an image that takes the first exit; all of them without exits."""
        after = len(self.feature_sizes) if self.exits is None else self.exits.after[0]
        return float(self.macs_taken(torch.tensor([after])))

    def macs_taken(self, n_layers_run: Tensor) -> Tensor:
        """Return the multiply-accumulates of the gate in a pass of each image, float64 ``[batch]``.

        The gate runs at every layer that an image passes, and at the layer before which it leaves.
        With several passes it also runs at the end of each.
        """
        n_layers = len(self.feature_sizes)
        decisions = (n_layers_run + 1).clamp(max=n_layers)
        macs = _sums(self.layer_macs[:n_layers], decisions) + sum(self.layer_macs[n_layers:])
        return macs + self.feature_macs_taken(n_layers_run)

    def feature_macs_taken(self, n_layers_run: Tensor) -> Tensor:
        """Return the multiply-accumulates of the features for each image, float64 ``[batch]``.

        The features at an exit come from the exit's head, whose cost belongs to the exit action.
        """
        if self.exits is None:
            return torch.full_like(n_layers_run, self.feature_macs, dtype=torch.float64)
        return _sums(self.exits.layer_feature_macs, n_layers_run)

    def reset(self, batch_size: int) -> None:
        """Start a rollout of ``batch_size`` images."""

    @abstractmethod
    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the logits of ``choices``, float32 ``[batch, choices]``."""

    def forward(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, actions]``; arguments as in ``decide``."""
        scores = self._score(features, layer, context)
        if len(self.choices) == self.n_actions:
            return scores
        logits = scores.new_full((scores.shape[0], self.n_actions), -torch.inf)
        return logits.index_copy(1, torch.tensor(self.choices, device=scores.device), scores)

    @torch.no_grad()
    def decide(
        self, features: Tensor, layer: int, context: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the option with the largest logit for every image, see ``Gate``.

        ``allowed`` masks the actions, bool ``[batch, actions]``: in each row the cheapest options
        up to a limit, and the exit action. If it excludes all ``choices``, the cheapest is taken.
        """
        logits = self.forward(features, layer, context)
        if allowed is not None:
            ends = layer == len(self.feature_sizes)
            if self.exits is not None and layer not in self.exits.after and not ends:
                # Without an exit here, the exit action is the cheapest option, as in the env.
                allowed = torch.cat([allowed[:, :-1], allowed[:, :1]], dim=1)
            cheapest = torch.arange(self.n_actions, device=allowed.device) == self.choices[0]
            none = ~allowed[:, list(self.choices)].any(dim=1, keepdim=True)
            logits = logits.masked_fill(~(allowed | (cheapest & none)), -torch.inf)
        return logits.argmax(dim=1)

    def _inputs(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the network input of a layer, ``[batch, size + 3 or 4]``."""
        return torch.cat([features[:, : self.input_sizes[layer]], context], dim=1)


def macs_taken(gate: Gate, n_layers_run: Tensor, costs: CostTable) -> Tensor:
    """Return the multiply-accumulates of a gate in a pass of each image, float64 ``[batch]``.

    With measured costs they are those that take the time of its decisions. A gate without per-layer
    MACs counts in full, whatever ``n_layers_run`` is, int64 ``[batch]``.
    """
    if not isinstance(gate, LearnedGate):
        return torch.full_like(n_layers_run, gate.macs, dtype=torch.float64)
    if costs.profile is not None:
        return costs.decided_macs(gate.macs, n_layers_run)
    return gate.macs_taken(n_layers_run)


def computed_macs(gate: Gate, costs: CostTable) -> float:
    """Return the multiply-accumulates of a gate in a pass by the cost model ``computation``."""
    if not isinstance(gate, LearnedGate):
        return gate.macs
    return gate.macs - float(costs.excess_macs(torch.tensor(gate.feature_macs).double()))


def observed_macs(gate: Gate) -> float:
    """Return the multiply-accumulates of a gate that its observations count."""
    return gate.observed_macs if isinstance(gate, LearnedGate) else gate.macs


GateT = TypeVar("GateT", bound=type[LearnedGate])


def register_gate(name: str) -> Callable[[GateT], GateT]:
    """Register a network as a kind of gate.

    It is then a choice of ``train_gumbel --gate``, of ``compare --gates`` with every method that
    trains it, and can be stored and loaded. The class defines ``_build`` and ``_score``, and
    ``reset`` if it has a memory.

    Raises:
        ConfigError: If the name is taken or malformed.
    """
    return GATES.register(name)


class MLPGate(LearnedGate):
    """Separate ``Linear -> tanh -> Linear`` for each layer; the deployable actor of an agent."""

    decides_again = True

    def _build(self, sizes: list[int]) -> None:
        self.networks = nn.ModuleList(
            _two_layers(size, self.hidden, len(self.choices)) for size in sizes
        )

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        return cast("Tensor", self.networks[layer](self._inputs(features, layer, context)))


class LSTMGate(LearnedGate):
    """LSTM shared by all layers, with a separate embedding for each, as in DFS and SkipNet.

    Embedding, memory and hidden layer have width ``hidden``, 10 in DFS (Shen et al., AAAI 2020).
    The memory covers the earlier layers of the same rollout, so layers must be queried in order,
    after ``reset``.
    """

    def _build(self, sizes: list[int]) -> None:
        self.embeddings = nn.ModuleList(nn.Linear(size, self.hidden) for size in sizes)
        self.cell = nn.LSTMCell(self.hidden, self.hidden)
        self.scores = nn.Linear(self.hidden, len(self.choices))
        self._memory: tuple[Tensor, Tensor] | None = None

    def reset(self, batch_size: int) -> None:  # noqa: ARG002
        """Clear the memory."""
        self._memory = None

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        embedding = self.embeddings[layer](self._inputs(features, layer, context))
        self._memory = self.cell(embedding, self._memory)
        return cast("Tensor", self.scores(self._memory[0]))


class OneShotGate(LearnedGate):
    """Small network that decides for all layers at once, as in BlockDrop (Wu et al., CVPR 2018).

    It maps the features and the context before layer 0 through ``Linear -> tanh -> Linear`` to the
    logits of all layers and ignores later inputs, so layer 0 must be queried first, after
    ``reset``. The paper uses a separate ResNet on the image; this gate reads the output of the
    backbone's stem. ``feature_macs`` count as for the other gates, with the unused features of
    later layers.
    """

    def _build(self, sizes: list[int]) -> None:
        self.network = _two_layers(sizes[0], self.hidden, len(sizes) * len(self.choices))
        self._decided: Tensor | None = None

    def reset(self, batch_size: int) -> None:  # noqa: ARG002
        """Clear the logits of the last rollout."""
        self._decided = None

    def _score(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        if layer == 0:
            scores = self.network(self._inputs(features, 0, context))
            self._decided = scores.unflatten(1, (len(self.feature_sizes), len(self.choices)))
        assert self._decided is not None, "decide at layer 0 first"
        return self._decided[:, layer]  # of [batch, layers, choices]


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def _sums(macs: Sequence[float], n: Tensor) -> Tensor:
    """Return the sum of the first ``n`` of ``macs`` for each ``n``, float64."""
    return torch.tensor([0, *macs], dtype=torch.float64).cumsum(0).to(n.device)[n]
