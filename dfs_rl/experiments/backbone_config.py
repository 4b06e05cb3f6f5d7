"""Settings of ``train_backbone`` and ``train_exits``; imports no torch, for quick help pages."""

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro
from pydantic import Field

from dfs_rl.costs import DEFAULT_BITS, FULL, SKIP, parse_bit_options
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.config import DataSettings, RunConfig
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.config import Count, PositiveInt, Seed, configuration
from dfs_rl.utils.constants import DIGITS, ELASTIC_PARTS, FirstBlock, Granularity, Recipe, Stem
from dfs_rl.utils.trusted_import import is_constructor

if TYPE_CHECKING:
    _RecipeSetting = Recipe  # the constructor fills in the default
else:
    _RecipeSetting = Recipe | None


@configuration
class TrainBackboneConfig(DataSettings):
    """Settings of ``train_backbone``.

    Attributes:
        image_size: Pixels that the shorter side of each image is resized to before the centre is
            cropped; required for images of several sizes. It is stored with the backbone.
        flip: Mirroring of half of the training images; default for all data sets but the digits.
            Give --no-flip if a mirror image belongs to another class, as with letters.
        backbone: cifar_resnet8, cifar_resnet14, cifar_resnet20, ... (any depth 6 n + 2, in short
            resnet20) or vit1, vit2, ...; with the recipe elastic cifar_resnet14 or deeper; with the
            recipe adn cifar_resnet14 or deeper, resnet26, resnet50, resnet101 or resnet152, the
            ResNets for ImageNet, mobilenetv2, swin_tiny, swin_small, or vit3, vit6, vit9, ...; a
            registered name; or module:function that makes your own network.
        recipe: supernet trains the network and low bits together; elastic also the depths of its
            stages, so that layers can be skipped; adn trains a network of adaptive depth, whose
            stages end with paths that can be skipped, or run at any of the bit options. Default
            elastic for networks that it trains and bit options with 0, else supernet.
        granularity: Gated unit with adn: the path of each stage, or each block in it.
        stem: Stem with adn: cifar is a 3 x 3 convolution, imagenet a 7 x 7 one with stride 2 and
            pooling; by default imagenet in the ResNets for ImageNet and cifar elsewhere.
        bits: Bit options of every gated layer, ascending: 0 skips it, 32 is full precision; dfs is
            0 8 10 12 14 16 32.
        epochs: Passes over the train split.
        plain: Training without any quantization, for a full-precision reference; elastic and adn
            then have the bit options 0 32.
        seed: Seed of weights, data order and sampled bits.
        width: Channels of the first stage, by default 16, and 64 in the ResNets for ImageNet;
            channels of MobileNetV2's first convolution, 32; width of a transformer's tokens, 192 as
            in ViT-Tiny; width of the first stage of a Swin transformer, 96.
        patch: Height and width in pixels of a transformer's patches; by default about an eighth of
            the images' height, and a sixteenth in a Swin transformer, at most 4.
        heads: Attention heads of a transformer; ViT-Small has 6, and a width of 384.
        gate_branches: Separate gating of a transformer's attention and MLPs, instead of block by
            block.
        stem_bits: Bits of stem and head, and with adn of the blocks that always run; no gate
            decides about them.
        first_block: Gating of the first block like the others, or as a part of the stem that always
            runs.
        per_channel: One weight scale per output channel instead of one per layer.
        eval_images: Number of val images that each epoch is measured on; the final accuracy is
            measured on all.
        workers: Processes on this machine that share every batch; on cuda each takes a GPU. More
            than one start Ray.
        training: Hyperparameters of the training.
    """

    KIND: ClassVar = "train_backbone"
    DESCRIPTION: ClassVar = """\
Train a supernet: one network in which every layer works at every bit option.

Examples:
  python -m dfs_rl.train_backbone --dataset uoft-cs/cifar10 --epochs 60 --run-dir runs/net
  python -m dfs_rl.train_backbone --dataset photos --image-size 64 --bits 0 2 4 8 32
  python -m dfs_rl.train_backbone --backbone mynets:make --weights net.pt --epochs 15"""
    RUN: ClassVar = "dfs_rl.experiments.supernet_training:run"
    FIRST: ClassVar = ("dataset", "backbone", "bits", "epochs", "recipe", "seed", "run_dir")

    dataset: str = DIGITS
    backbone: str = "resnet20"
    recipe: _RecipeSetting = None  # type: ignore[assignment] # None: from backbone and bits
    granularity: Granularity = "path"
    stem: Stem | None = None
    bits: Annotated[tuple[int | str, ...] | str, tyro.conf.arg(metavar="INT [INT ...]|dfs")] = (
        DEFAULT_BITS
    )
    epochs: Count = 30
    plain: bool = False
    seed: Seed = 0
    width: Annotated[PositiveInt, Field(le=2**16)] | None = None
    patch: PositiveInt | None = None
    heads: PositiveInt = 3
    gate_branches: bool = False
    stem_bits: int = 8
    first_block: FirstBlock = "gated"
    per_channel: bool = False
    eval_images: PositiveInt = 2000
    workers: PositiveInt = 1
    training: SupernetConfig = field(default_factory=SupernetConfig)

    def __post_init__(self) -> None:
        from dfs_rl.data.load import flips_by_default  # imports torch, slow for a help page

        if self.weights is not None and not self.is_constructed:
            raise ConfigError(
                f"weights is {self.weights}, but backbone is {self.backbone!r}, which starts from "
                "random ones; weights go with module:function."
            )
        if self.flip is None:
            object.__setattr__(self, "flip", flips_by_default(self.dataset))
        # A named list of bits and its values count as one setting.
        object.__setattr__(self, "bits", parse_bit_options(self.bits))
        object.__setattr__(self, "recipe", self._recipe_or_default(self.recipe))
        self._check_network()
        if self.is_set("training.alpha") and self.recipe != "adn":
            raise ConfigError(
                f"training.alpha is set, which belongs to the recipe adn, not {self.recipe}."
            )
        unquantized = {"bits": self.bit_options, "stem_bits": FULL, "per_channel": False}
        for name, plain in unquantized.items():
            if self.plain and self.is_set(name) and getattr(self, name) != plain:
                raise ConfigError(
                    f"{name} is set, but with --plain nothing is quantized; leave one of them out."
                )
        if self.recipe == "elastic" and self.training.batch_size < ELASTIC_PARTS * self.workers:
            raise ConfigError(
                f"training.batch_size is {self.training.batch_size}; with the recipe elastic every "
                f"worker trains {ELASTIC_PARTS} parts of a batch, so at least "
                f"{ELASTIC_PARTS * self.workers} are needed, or --recipe supernet."
            )
        if self.workers > self.training.batch_size:
            raise ConfigError(
                f"workers is {self.workers}; at most {self.training.batch_size} can share a batch "
                "of as many images (training.batch_size)."
            )

    def _check_network(self) -> None:
        """Raise ConfigError for an unknown network, or settings that it has not."""
        from dfs_rl.backbones.adaptive import check_skippable
        from dfs_rl.backbones.registry import SETTINGS, network_of

        if self.recipe != "supernet" or not self.is_constructed:
            network = network_of(self.backbone, self.recipe)
        if self.recipe != "supernet":
            check_skippable(self.bit_options)
        for name in ("width", *SETTINGS):
            if not self.is_set(name):
                continue
            if self.is_constructed:
                raise ConfigError(
                    f"{name} is set, but the network of {self.backbone} has its own shape; leave "
                    "it out."
                )
            if name in SETTINGS and name not in network.settings:
                raise ConfigError(
                    f"{name} is set, which {self.backbone} with the recipe {self.recipe} has not; "
                    "leave it out."
                )

    @property
    def is_constructed(self) -> bool:
        """True if the backbone is ``module:function``, which makes a user's network."""
        return is_constructor(self.backbone)

    @property
    def bit_options(self) -> tuple[int, ...]:
        """Bit options of every gated layer."""
        if self.plain:
            return (FULL,) if self.recipe == "supernet" else (SKIP, FULL)
        return parse_bit_options(self.bits)

    def _recipe_or_default(self, recipe: Recipe | None) -> Recipe:
        """Return the recipe, by default elastic for networks and bit options that it can train."""
        from dfs_rl.backbones.registry import has_recipe

        if recipe is not None:
            return recipe
        elastic = not self.plain and SKIP in self.bit_options
        return "elastic" if elastic and has_recipe(self.backbone, "elastic") else "supernet"

    def is_set(self, name: str) -> bool:
        """Return True if a setting, by dotted name, differs from its default."""
        block, _, setting = name.rpartition(".")
        settings = getattr(self, block) if block else self
        return bool(getattr(settings, setting) != getattr(type(settings), setting))


@configuration
class TrainExitsConfig(RunConfig):
    """Settings of ``train_exits``.

    Attributes:
        after: Numbers of gated layers before the exits, ascending: 1 3 makes two exits, before the
            second and the fourth layer. Leave it out with --resume.
        seed: Seed of the augmentation and of the bits that the exits are fitted under.
    """

    KIND: ClassVar = "train_exits"
    DESCRIPTION: ClassVar = """\
Fit exits to a trained backbone: classifiers behind gated layers, where an image may leave the
network. The result is a backbone of its own.

Examples:
  python -m dfs_rl.train_exits --after 2 4
  python -m dfs_rl.train_exits --after 3 6 --dataset uoft-cs/cifar10 --backbone runs/net
  python -m dfs_rl.train_exits --after 1 3 --run-dir runs/exits"""
    RUN: ClassVar = "dfs_rl.experiments.exit_fitting:run"
    FIRST: ClassVar = ("after", "dataset", "backbone", "seed", "run_dir")

    after: tuple[int, ...]
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.after:
            raise ConfigError("after is empty; allowed are one or more numbers of gated layers.")
