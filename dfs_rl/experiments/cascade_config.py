"""Settings of ``train_cascade``; imports no torch, to keep help pages quick."""

from typing import ClassVar

from dfs_rl.errors import ConfigError
from dfs_rl.experiments.config import Flip, GateRunConfig
from dfs_rl.utils.config import NonNegativeFloat, PositiveInt, configuration
from dfs_rl.utils.constants import AnswerRule


@configuration
class TrainCascadeConfig(GateRunConfig):
    """Settings of ``train_cascade``.

    Attributes:
        budget: Upper bound on the mean computation, all passes included; a single image may cost
            the sum of all. By default there are tuned rules for all budgets.
        max_accuracy_drop: Points of accuracy that the gate may lose on val, against all layers at
            the largest bits, instead of a budget: a gate for all budgets is set to the cheapest
            such point.
        passes: Largest number of passes of an image; 2 make a cascade, with --answer last and
            --no-mirrored.
        mirrored: Use of mirror images in further passes; by default if the training of the backbone
            mirrored images.
        answer: Answer after several passes: the mean of their probabilities, that of the last pass
            or that of the surest one; default the best on agent and val.
    """

    KIND: ClassVar = "train_cascade"
    DESCRIPTION: ClassVar = """\
Tune rules over several passes: a cheap one for every image, and others for unsure answers.

Examples:
  python -m dfs_rl.train_cascade --budget 0.8
  python -m dfs_rl.train_cascade --max-accuracy-drop 1
  python -m dfs_rl.train_cascade --passes 2 --dataset uoft-cs/cifar10 --backbone runs/net"""
    MODULE: ClassVar = "dfs_rl.experiments.cascade_search"
    FIRST: ClassVar = (
        *("dataset", "backbone", "budget", "budget_unit", "max_accuracy_drop"),
        *("passes", "mirrored", "answer", "run_dir"),
    )

    max_accuracy_drop: NonNegativeFloat | None = None
    passes: PositiveInt = 3
    mirrored: Flip = None
    answer: AnswerRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes == 1:
            for name in ("mirrored", "answer"):
                if value := getattr(self, name):
                    raise ConfigError(
                        f"{name} is {str(value).lower()}, but passes is 1; it needs 2 or more."
                    )
        if self.budget is not None and self.max_accuracy_drop is not None:
            raise ConfigError(
                f"budget is {self.budget:g} and max_accuracy_drop is {self.max_accuracy_drop:g}; "
                "give one of them."
            )

    @property
    def uses_exits(self) -> bool:
        """True: a pass may take a backbone's exits."""
        return True
