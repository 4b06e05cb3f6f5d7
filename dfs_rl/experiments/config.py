"""Settings that the commands share; imports no torch, to keep help pages quick."""

from pathlib import Path
from typing import Annotated

import tyro

from dfs_rl.agents.cotraining_config import BackboneMode
from dfs_rl.agents.hyperparameters import Start
from dfs_rl.costs import COMPUTATION, CostModelName
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import PositiveFloat, PositiveInt, Seed, chosen_blocks, configuration
from dfs_rl.utils.constants import DIGITS

Flip = Annotated[bool | None, tyro.conf.DisallowNone]
"""``--flip``, ``--no-flip``, or neither."""


@configuration
class DataSettings:
    """Settings of every command that reads images.

    Attributes:
        dataset: "digits", a folder with train/test parquet files or with class/name.jpg, or a hub
            id such as uoft-cs/cifar10.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Pixels that the shorter side of each image is resized to before the centre is
            cropped; default as in the training of the backbone.
        flip: Mirroring of half of the images when a backbone is trained; default as in the training
            of the backbone.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        threads: Number of CPU threads; with 1, runs are bitwise reproducible.
    """

    dataset: str | None = DIGITS
    weights: Path | None = None
    image_size: PositiveInt | None = None
    flip: Flip = None
    device: str = "auto"
    run_dir: Path | None = None
    threads: PositiveInt = 1


@configuration
class BackboneSettings(DataSettings):
    """Settings of every command that takes a backbone.

    Attributes:
        backbone: Run of train_backbone or train_exits, a folder with a backbone, or module:function
            that makes your own network. By default the included digits network; other data sets
            train one first and keep it for later runs. Only train_agent uses a backbone's exits.
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
    supernet_epochs: PositiveInt = 30


@configuration
class GateRunConfig(RunConfig):
    """Settings of every command that makes a gate.

    Attributes:
        budget: Bound on the mean computation in percent, gate, stem and head included.
        cost_model: Cost that reward, budgets and reports count: computation is MACs x (bits / 32)^2
            and bitops its numerator; macs counts skipped layers alone.
    """

    budget: PositiveFloat | None = None
    cost_model: CostModelName = COMPUTATION

    @property
    def uses_exits(self) -> bool:
        """True if the gate may take a backbone's exits."""
        return False


@configuration
class GateTrainingConfig(GateRunConfig):
    """Settings of every command that trains an input-dependent gate.

    Attributes:
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
            compare gates for all budgets more precisely if val is small.
        checkpoint_every: Timesteps between checkpoints; default as --eval-every.
    """

    timesteps: PositiveInt = 600_000
    seed: Seed = 0
    hidden: PositiveInt | None = None
    fixed_budget: bool = False
    start: Start | None = None
    backbone_mode: BackboneMode = "frozen"
    eval_every: PositiveInt | None = None
    val_repeats: PositiveInt = 1
    checkpoint_every: PositiveInt | None = None

    @property
    def cotrains(self) -> bool:
        """True if the backbone is trained with the gate."""
        return self.backbone_mode == "co-train"

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
