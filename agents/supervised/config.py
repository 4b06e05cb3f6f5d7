"""Methods of ``train_gumbel``: hyperparameters, with the reasons for their defaults; no torch."""

from typing import Annotated, ClassVar

from pydantic import Field

from dfs_rl.agents.hyperparameters import FeatureChoice
from dfs_rl.agents.methods import Method, register_method
from dfs_rl.costs import FULL, SKIP, BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.gating.registry import ONE_SHOT
from dfs_rl.utils.config import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    configuration,
)
from dfs_rl.utils.registry import NameIn, Registry

SUPERVISED_METHODS: Registry[type["SupervisedConfig"]] = Registry("method")
"""Methods of ``train_gumbel``, by the name that ``--method`` takes."""
SupervisedMethodName = Annotated[str, NameIn(SUPERVISED_METHODS)]

_EVEN = 0.5
"""Probability of each of two equally likely options."""


@configuration
class SupervisedConfig(Method):
    """A method of ``train_gumbel``, with the hyperparameters of all methods.

    Attributes:
        batch_size: Images per step.
        learning_rate: Initial learning rate of Adam, annealed along a cosine to zero.
        temperature: Initial temperature of the Gumbel-softmax; for gumbel alone.
        final_temperature: Final temperature, reached exponentially; a lower one is closer to the
            samples, with noisier gradients. For gumbel alone.
        multiplier: Weight of computation relative to the budget: constant with dfs, the initial
            Lagrange multiplier with the other methods.
        multiplier_learning_rate: Learning rate of the Lagrange multiplier: the change of its
            logarithm per step at twice the budget.
        distillation: Weight of the divergence from the full-precision backbone, added to the loss
            with labels; for gumbel and dfs.
        max_grad_norm: Maximum norm of the gradient, for clipping.
    """

    command = "train_gumbel"
    registry = SUPERVISED_METHODS
    trainer: ClassVar[str]
    """Class of its trainer, a ``GateTrainer``, ``module:name``."""
    all_budgets: ClassVar[bool] = False
    """True if one gate learns all budgets; it also starts uniform on a frozen backbone."""
    is_relaxed: ClassVar[bool] = False
    """True if it learns by supervision alone, so that it can distil and co-train a backbone."""
    is_greedy: ClassVar[bool] = False
    """True if the gate takes its most likely options in training."""
    gate: ClassVar[str | None] = None
    """Kind of gate; ``None`` for the choice of ``--gate``."""
    features: ClassVar[FeatureChoice] = "confidence"
    """Features that its gate reads by default."""
    bits: ClassVar[tuple[int, ...] | None] = None
    """Bit options that its gate chooses from; ``None`` for all of the backbone's."""
    block: ClassVar[str | None] = None
    """Block of ``train_gumbel`` with hyperparameters of this method alone; ``None`` without."""

    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 0.01
    temperature: PositiveFloat = 2.0
    final_temperature: PositiveFloat = 0.5
    multiplier: PositiveFloat = 0.1
    multiplier_learning_rate: UnitInterval = 0.02
    distillation: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0

    @classmethod
    def choices(cls, options: BitOptions) -> tuple[int, ...] | None:
        """Return the indices of the options that a gate chooses from; ``None`` for all.

        Raises:
            ConfigError: If one of them is not among a backbone's bit options.
        """
        if cls.bits is None:
            return None
        for bits in cls.bits:
            if bits not in options.values:
                raise ConfigError(
                    f"the gate of {cls.label} chooses from {' and '.join(map(str, cls.bits))} bit, "
                    f"but the backbone's bit options {list(options)} lack {bits} bit."
                )
        return options.indices(cls.bits)


@register_method("gumbel")
class GumbelConfig(SupervisedConfig):
    """Straight-through Gumbel-softmax."""

    label = "Gumbel"
    trainer = "dfs_rl.agents.supervised.gumbel:GumbelTrainer"
    all_budgets = True
    is_relaxed = True


@register_method("dfs")
class DFSConfig(SupervisedConfig):
    """Straight-through argmax with a cost term that changes its sign at the budget."""

    label = "DFS"
    trainer = "dfs_rl.agents.supervised.dfs:DFSTrainer"
    is_relaxed = True
    is_greedy = True


@register_method("skipnet")
class SkipNetMethod(SupervisedConfig):
    """Skipping a layer or running it in full precision."""

    label = "SkipNet"
    trainer = "dfs_rl.agents.supervised.skipnet:SkipNetTrainer"
    bits = (SKIP, FULL)
    block = "skipnet"


@register_method("blockdrop")
class BlockDropMethod(SupervisedConfig):
    """One decision on all layers, which reads all features of the stem."""

    label = "BlockDrop"
    trainer = "dfs_rl.agents.supervised.blockdrop:BlockDropTrainer"
    gate = ONE_SHOT
    features = "all"
    block = "blockdrop"


@configuration
class SkipNetConfig:
    """Hyperparameters of ``--method skipnet``, in addition to those of all methods.

    Attributes:
        pretraining: Initial share of the training with supervision alone and no cost term, because
            reinforcement learning from scratch stays at chance.
        ent_coef: Initial weight of the entropy bonus, which falls linearly to 0; without it, a gate
            that supervision has made confident to run a layer would rarely sample a skip.
    """

    pretraining: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ent_coef: NonNegativeFloat = 0.3


@configuration
class BlockDropConfig:
    """Hyperparameters of ``--method blockdrop``, in addition to those of all methods.

    Attributes:
        curriculum: Share of the training over which layers open, the last one first; until then
            a layer runs at its largest option, because with random options at all layers no answer
            is right and the gate cannot learn.
        penalty: Penalty of a wrong answer, gamma in the paper; a right one earns 1 minus its
            weighted cost.
        bound: Upper bound on sampling probabilities, alpha in the paper, with the paper's value;
            the rest is spread over the other options.
    """

    curriculum: PositiveUnitInterval = 0.3
    penalty: NonNegativeFloat = 1.0
    bound: Annotated[float, Field(gt=_EVEN, le=1)] = 0.8
