"""Settings that the commands share; imports no torch, to keep help pages quick."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from pydantic import Field
from typing_extensions import Self

from dfs_rl.agents.hyperparameters import BackboneMode, CoTrainConfig, Start
from dfs_rl.costs import COMPUTATION, BudgetUnit, CostModelName
from dfs_rl.costs.latency_profile import LatencySettings, check_cost
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.experiments.budgets import check_budget_unit, check_one_aim
from dfs_rl.utils.config import (
    Count,
    Percentage,
    PositiveFloat,
    PositiveInt,
    Seed,
    chosen_blocks,
    configuration,
)
from dfs_rl.utils.constants import DIGITS, MAX_PASSES, Corruptions, Precision
from dfs_rl.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from dfs_rl.costs import CostTable

Flip = Annotated[bool | None, tyro.conf.DisallowNone]
"""``--flip``, ``--no-flip``, or neither; likewise for others."""
ReportedSplit = Literal["test", "val"]
Passes = Annotated[int, Field(ge=1, le=MAX_PASSES)]
N_VALIDATIONS = 20
"""Default number of validations in a run."""
DEFAULT_BUDGET = 1.0
"""Default budget of gates that learn for one, in the unit of the budgets."""


def create_run(
    config: "DataSettings",
    name: str,
    *,
    path: Path | None = None,
    **record: Any,  # noqa: ANN401 - arguments of ``RunFolder.create``
) -> RunFolder:
    """Create the run folder of a configuration at ``path``, else at its ``run_dir``."""
    path = path or config.run_dir
    return RunFolder.create(path, kind=config.KIND, name=name, config=config, **record)


@configuration
class DataSettings:
    """Settings of every command that reads images.

    A command's configuration describes it: ``KIND`` is its name and the kind of its run folders,
    ``DESCRIPTION`` the head of its help page and ``RUN`` its work, imported at its first use.

    Attributes:
        dataset: "digits", "mnist5k", a folder with train/test parquet files or with class/name.jpg,
            or a hub id such as uoft-cs/cifar10.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Pixels that the shorter side of each image is resized to before the centre is
            cropped; default as in the training of the backbone.
        flip: Mirroring of half of the images when a backbone is trained; default as in the training
            of the backbone.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        threads: Number of CPU threads; with 1, runs are bitwise reproducible.
    """

    KIND: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    RUN: ClassVar[str]

    dataset: str | None = DIGITS
    weights: Path | None = None
    image_size: PositiveInt | None = None
    flip: Flip = None
    device: str = "auto"
    run_dir: Path | None = None
    threads: PositiveInt = 1

    def with_resolved_defaults(self) -> Self:
        """Return the configuration with the defaults that depend on other settings.

        A run stores them, so that it resumes unchanged after a version changes the defaults.
        """
        return self


@configuration
class BackboneSettings(DataSettings):
    """Settings of every command that takes a backbone.

    Attributes:
        backbone: Run of train_backbone or train_exits, a folder with a backbone, or module:function
            that makes your own network. By default the included digits network; other data sets
            train one first and keep it for later runs. Only train_agent, train_cascade and
            train_static --method search use exits.
    """

    backbone: Path | None = None

    @property
    def backbone_source(self) -> Path | None:
        """Place of the backbone; ``None`` for the default of the data set."""
        return self.backbone


@configuration
class RunConfig(BackboneSettings):
    """Settings of every training on a backbone.

    Attributes:
        supernet_epochs: Epochs of the backbone that is trained if none is given.
    """

    dataset: str = DIGITS
    supernet_epochs: Count = 30


@configuration
class GateSettings:
    """Settings of every command that takes a trained gate.

    Attributes:
        budget: Budget on the mean computation that a gate for all budgets is set to.
        budget_unit: Unit of the budget: percent of the gated layers in full precision, or ms for a
            run with the cost latency.
        max_accuracy_drop: Points of accuracy that a gate for all budgets may lose on val, against
            all layers at the largest bits; it is set to the cheapest such point.
    """

    budget: PositiveFloat | None = None
    budget_unit: BudgetUnit = "percent"
    max_accuracy_drop: Percentage | None = None


@configuration
class EvaluateConfig(GateSettings):
    """Settings of ``evaluate``.

    Attributes:
        corruptions: Stream of images that the gate is reported on, see train_agent; by default the
            one that it was tuned on.
        run: Folder of a run that trained a gate, or of train_backbone or train_exits for its
            uniform options alone.
        split: Split to report on; test is for one final evaluation.
        dataset: New location of the run's data set, if it moved; the images must be the same.
        device: "auto", "cpu", "cuda", ...
        batch_size: Images per batch.
        threads: Number of CPU threads.
        precision: Number format of the backbone; float32 for figures to report, "auto" selects
            bfloat16 where the hardware is fast at it.
        search: Limits of the search for the best static bit table.
        profile: File of python -m dfs_rl.profile whose times are reported as well; a run with the
            cost latency has one.
    """

    KIND: ClassVar = "evaluate"
    DESCRIPTION: ClassVar = """\
Evaluate a run on its test split, with every baseline.

Examples:
  python -m dfs_rl.evaluate runs/gate
  python -m dfs_rl.evaluate runs/gate --budget 0.8
  python -m dfs_rl.evaluate runs/gate --split val --profile profile.json"""
    RUN: ClassVar = "dfs_rl.experiments.evaluation:run"

    corruptions: Corruptions | None = None
    run: tyro.conf.Positional[Path]
    split: ReportedSplit = "test"
    dataset: str | None = None
    device: str = "auto"
    batch_size: PositiveInt = 128
    threads: PositiveInt = 1
    precision: Precision = "float32"
    search: SearchConfig = field(default_factory=SearchConfig)
    profile: Path | None = None


@configuration
class GateRunConfig(RunConfig):
    """Settings of every command that makes a gate.

    ``MODULE`` names the module with the command's functions ``validate`` and ``train``.

    Attributes:
        corruptions: Stream of images that gates are tuned and reported on: none for clean images, a
            kind of corruption at five strengths, or mixed for clean images and every kind alike.
        budget: Bound on the mean computation, gate, stem and head included.
        budget_unit: Unit of every budget: percent of the gated layers in full precision, or ms per
            image with the cost latency. A run stores percent.
        cost: Cost that reward, budgets and reports count: computation is MACs x (bits / 32)^2 and
            bitops its numerator; macs counts the layers that run, at any bits; energy is that of
            the arithmetic; latency is measured.
        latency: Measured times for the cost latency.
    """

    RUN: ClassVar = "dfs_rl.experiments.gate_run:run"
    MODULE: ClassVar[str]

    corruptions: Corruptions = "none"
    budget: PositiveFloat | None = None
    budget_unit: BudgetUnit = "percent"
    cost: CostModelName = COMPUTATION
    latency: LatencySettings = field(default=LatencySettings())

    def __post_init__(self) -> None:
        check_cost(self.cost, self.latency)
        check_budget_unit(self.budget_unit, self.cost)

    @property
    def uses_exits(self) -> bool:
        """True if the gate may take a backbone's exits."""
        return False

    @property
    def cotrains(self) -> bool:
        """True if the backbone is trained with the gate."""
        return False

    def for_backbone(self, costs: "CostTable") -> Self:  # noqa: ARG002
        """Return the configuration with the defaults that depend on the backbone."""
        return self

    @classmethod
    def applicable(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that apply to the method among them; a file may serve several."""
        return dict(settings)


@configuration
class GateTrainingConfig(GateRunConfig):
    """Settings of every command that trains an input-dependent gate.

    Attributes:
        max_accuracy_drop: Points of accuracy that the gate may lose on val, against all layers at
            the largest bits, instead of a budget: a gate for all budgets is set to the cheapest
            such point after training.
        timesteps: Number of decisions to learn from; an image takes one per gated layer.
        seed: Seed of all random draws; same seed, machine and threads give the same gate.
        hidden: Width of each layer's network; by default the largest that costs at most 0.05 % of
            the gated layers' MACs, at least 8 and at most 32. An LSTM is 10 wide.
        fixed_budget: Training for one budget or cost weight instead of all.
        start: Initial policy: "uniform" prefers the option that is best if all layers run at it,
            "indifferent" prefers none.
        backbone_mode: Frozen backbone, or co-training of the backbone under the gate's choices.
        eval_every: Timesteps between validations; default a twentieth of all.
        val_repeats: Episodes per val image and validation, each with another budget; higher values
            compare gates for all budgets more precisely if val is small. One for other gates.
        checkpoint_every: Timesteps between checkpoints; default as --eval-every.
        cotrain: Training of the backbone with --backbone-mode co-train.
    """

    max_accuracy_drop: Percentage | None = None
    timesteps: PositiveInt = 600_000
    seed: Seed = 0
    hidden: PositiveInt | None = None
    fixed_budget: bool = False
    start: Start | None = None
    backbone_mode: BackboneMode = "frozen"
    eval_every: PositiveInt | None = None
    val_repeats: PositiveInt = 1
    checkpoint_every: PositiveInt | None = None
    cotrain: CoTrainConfig = field(default_factory=CoTrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._complete_blocks()
        self._check_cotrain()
        check_one_aim(self)
        self._check_accuracy_drop()
        self._check_val_repeats()

    @property
    def cotrains(self) -> bool:
        """True if the backbone is trained with the gate."""
        return self.backbone_mode == "co-train"

    def _check_cotrain(self) -> None:
        """Check that only co-training has settings in its block."""
        usual = vars(type(self.cotrain)())
        given = {name: value for name, value in vars(self.cotrain).items() if value != usual[name]}
        if given and not self.cotrains:
            name, value = next(iter(given.items()))
            raise ConfigError(
                f"cotrain.{name} is {value}, but backbone_mode is {self.backbone_mode!r}; leave it "
                "out, or give --backbone-mode co-train."
            )

    @property
    def all_budgets(self) -> bool:
        """True if one gate learns a range of budgets or cost weights."""
        return not self.fixed_budget

    @property
    def can_start_uniform(self) -> bool:
        """True if the gate can start from the best uniform option."""
        return not self.cotrains

    @property
    def resolved_start(self) -> Start:
        """Start of the gate: the setting, or uniform where that is possible."""
        return self.start or ("uniform" if self.can_start_uniform else "indifferent")

    @property
    def validation_interval(self) -> int:
        """Timesteps between two validations; by default there are ``N_VALIDATIONS``."""
        return self.eval_every or max(1, self.timesteps // N_VALIDATIONS)

    def _check_accuracy_drop(self) -> None:
        """Check that a gate with a bound on the loss of accuracy learns all budgets."""
        if self.max_accuracy_drop is not None and not self.all_budgets:
            raise ConfigError(
                f"max_accuracy_drop is {self.max_accuracy_drop:g}, which selects a point of a gate "
                "for all budgets, but this gate learns for one; leave it out, or train for all "
                "budgets."
            )

    def _check_val_repeats(self) -> None:
        """Check that episodes of a val image differ in their budget."""
        if self.val_repeats > 1 and not self.all_budgets:
            raise ConfigError(
                f"val_repeats is {self.val_repeats}, but this gate learns for one budget, so the "
                "episodes of an image would all be the same; leave it out."
            )

    def _complete_blocks(self) -> None:
        """Fill in the defaults of a block whose type a setting selects, and check its type."""
        for name, expected in chosen_blocks(type(self), vars(self)).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, expected())
            given = type(getattr(self, name))
            if given is not expected:
                setting = self.CHOICES[name][0]  # type: ignore[attr-defined] # it has the block
                raise ConfigError(
                    f"{name} is a {given.__name__}, but {setting} is {getattr(self, setting)!r}; "
                    f"give a {expected.__name__}."
                )
