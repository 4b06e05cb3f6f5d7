"""Settings of ``train_cascade`` and ``train_static``; imports no torch, for quick help pages."""

from typing import ClassVar

from dfs_rl.agents.static.methods import StaticMethodName
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.budgets import check_one_aim
from dfs_rl.experiments.config import DEFAULT_BUDGET, Flip, GateRunConfig, Passes
from dfs_rl.utils.config import Percentage, PositiveFloat, PositiveInt, Seed, configuration
from dfs_rl.utils.constants import AnswerRule, Stopping


@configuration
class TrainCascadeConfig(GateRunConfig):
    """Settings of ``train_cascade``.

    Attributes:
        budget: Upper bound on the mean computation, all passes included; a single image may cost
            the sum of all. By default there are rules for all budgets.
        max_accuracy_drop: Points of accuracy that the gate may lose on val, against all layers at
            the largest bits, instead of a budget: a gate for all budgets is set to the cheapest
            such point.
        passes: Largest number of passes of an image, 1 to 5; 2 make the baseline cascade, with
            --answer last, --no-mirrored and --stopping confidence.
        mirrored: Use of mirror images in further passes; by default if the training of the backbone
            mirrored images.
        answer: Answer after several passes: the mean of their probabilities, that of the last pass
            or that of the surest one; default the best on agent and val.
        stopping: What decides whether to run again: a low confidence of the answer so far, or a
            high predicted gain of the next pass, fitted to outputs on the agent split; default the
            gain if it is significantly better on val.
    """

    KIND: ClassVar = "train_cascade"
    DESCRIPTION: ClassVar = """\
Tune rules over several passes: a cheap one for every image, and others for unsure answers.

They are named tuned or fitted rules. The baseline "cascade" in tables is the rule of two passes.

Examples:
  python -m dfs_rl.train_cascade --budget 0.8
  python -m dfs_rl.train_cascade --max-accuracy-drop 1
  python -m dfs_rl.train_cascade --passes 2 --dataset uoft-cs/cifar10 --backbone runs/net"""
    MODULE: ClassVar = "dfs_rl.experiments.rule_gates"
    FIRST: ClassVar = (
        *("dataset", "backbone", "budget", "budget_unit", "max_accuracy_drop"),
        *("passes", "mirrored", "answer", "stopping", "run_dir"),
    )

    max_accuracy_drop: Percentage | None = None
    passes: Passes = 3
    mirrored: Flip = None
    answer: AnswerRule | None = None
    stopping: Stopping | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes == 1:
            for name in ("mirrored", "answer", "stopping"):
                if value := getattr(self, name):
                    raise ConfigError(
                        f"{name} is {str(value).lower()}, but passes is 1; it needs 2 or more."
                    )
        check_one_aim(self)

    @property
    def uses_exits(self) -> bool:
        """True: a pass may take a backbone's exits."""
        return True


@configuration
class TrainStaticConfig(GateRunConfig):
    """Settings of ``train_static``.

    Attributes:
        method: Learner that chooses the bits layer by layer, as in HAQ, "greedy" search by
            sensitivity, or local "search", which also tries skips and exits.
        budget: Upper bound on the computation, stem and head included; a static bit table has no
            gate that costs anything.
        episodes: Number of tables that a learner or a local search tries; a greedy search ends by
            itself.
        images: Images of the agent split that each table is tried on.
        seed: Seed of all random draws; same seed, machine and threads give the same table.
            Greedy and search do not depend on it.
    """

    KIND: ClassVar = "train_static"
    DESCRIPTION: ClassVar = """\
Find one static bit table for all images, by reinforcement learning or by a search.

Examples:
  python -m dfs_rl.train_static --budget 0.8
  python -m dfs_rl.train_static --method greedy --budget 0.8
  python -m dfs_rl.train_static --method sac --dataset uoft-cs/cifar10 --backbone runs/net"""
    MODULE: ClassVar = "dfs_rl.experiments.static_search"
    FIRST: ClassVar = (
        *("method", "dataset", "backbone", "budget", "budget_unit"),
        *("episodes", "images", "seed", "run_dir"),
    )

    method: StaticMethodName = "ddpg"
    budget: PositiveFloat = DEFAULT_BUDGET
    episodes: PositiveInt = 600
    images: PositiveInt = 1000
    seed: Seed = 0

    @property
    def uses_exits(self) -> bool:
        """True if the table may take a backbone's exits."""
        return self.method == "search"
