"""What backbones of every family share: the menu, its costs, what a gate may look at, and the walk at fixed bits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.exit_heads import EXIT_GRID, ExitHeads
from dfs_rl.backbones.interfaces import (
    CONFIDENCE_SIZE,
    GatedLayer,
    OptimizerName,
    runs_when_skipped,
)
from dfs_rl.backbones.probe import GRIDS, PROBE_SHARE, describe, pool_grid
from dfs_rl.costs import (
    FULL,
    SKIP,
    BitOptions,
    CostTable,
    ExitCost,
    FixedCost,
    check_exits,
    relative_cost,
)
from dfs_rl.costs.mac_counter import count_macs
from dfs_rl.data import ChannelStatistics
from dfs_rl.data.pixels import check_pixels
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import PreparedLinear, keep_from_integers_unless_finite
from dfs_rl.quantization.modules import FractionalLinear

FROZEN_DTYPES = (torch.float32, torch.bfloat16)
"""What a frozen backbone may compute in."""


class _Looks(nn.Module):
    """What the training and the frozen form of a backbone offer gates to look at.

    Attributes:
        options: The menu.
        costs: What each choice costs.
        blocks: The gated layers, in order.
        probes: One linear classifier of the activation before each gated layer.
        probe_grid: Into how many rows and columns a probe cuts an activation, see ``pool_grid``.
        feature_sizes: Numbers that ``feature`` returns before each gated layer: the probe's confidence and the channels.
        feature_macs: What the probes take per image; a multiply-accumulate at b bits counts (b / 32)**2.
        layer_feature_macs: The same for each layer; where there is an exit, its head is the probe.
        feature_mean: Mean of ``feature`` before each gated layer, ``[layers, largest size]``, zero-padded.
        feature_std: Its standard deviation, one where unused.
        exit_heads: Where an image may leave, ``None`` for nowhere.
    """

    options: BitOptions
    costs: CostTable
    blocks: nn.ModuleList
    probes: nn.ModuleList
    probe_grid: int
    feature_sizes: tuple[int, ...]
    feature_macs: float
    layer_feature_macs: tuple[float, ...]
    feature_mean: Tensor
    feature_std: Tensor
    exit_heads: ExitHeads | None

    @property
    def layers(self) -> Sequence[GatedLayer]:
        """The gated layers, in order."""
        return cast("Sequence[GatedLayer]", self.blocks)

    def parts(self, hidden: Tensor, *, grid: int | None = None) -> Tensor:
        """Pool an activation for a probe, or for a classifier with a grid of its own, float32 ``[batch, channels, parts]``."""
        return pool_grid(hidden, grid=self.probe_grid if grid is None else grid)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the confidence of the layer's probe and the pooled channels, float32 ``[batch, 3 + channels]``.

        Where there is an exit, its head takes the probe's place, for a gate that may leave by it must know how sure it is. Its
        confidence is told in the probe's mean and deviation, so that the layer's ``feature_mean`` and ``feature_std`` hold for both.
        """
        parts = self.parts(hidden)
        if self.exit_heads is None or layer not in self.exit_heads:
            return describe(parts, self.probes[layer](parts.flatten(1)))
        sure = self.exit_heads.sureness(self.answer(hidden, layer), layer)
        usual = self.feature_std[layer, :CONFIDENCE_SIZE]
        sure = sure * usual + self.feature_mean[layer, :CONFIDENCE_SIZE]
        return torch.cat([sure, parts.mean(dim=2)], dim=1)

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        """Return what the exit's head before gated layer ``layer`` says, logits float32 ``[batch, classes]``."""
        assert self.exit_heads is not None, "an image leaves where there is an exit"
        return self.exit_heads.answer(self.parts(hidden, grid=EXIT_GRID), layer)


class Backbone(_Looks, ABC):
    """The training form of a backbone; a family adds its stem, its gated layers, its head and a frozen form.

    A family's ``__init__`` calls this one first, makes its parts, and calls ``finish_making`` last.

    Args:
        config: Shape and precision, a frozen dataclass that is stored with the weights.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
        bits: The menu of every gated layer.
        image_shape: Channels, height and width of the images.
        n_classes: Number of classes.
        stem_bits: Precision of the parts that no gate decides about.

    Attributes:
        family: What stored backbones of this class say they are.
        optimizer: What networks of this class are usually trained with.
        feature_weight: What it usually weighs in the recipe ``adn`` how far activations are apart, see ``SupernetConfig``.
        config: As given.
        statistics: As given.
        image_shape: As given.
        n_classes: As given.
        stem_bits: As given.
    """

    family: ClassVar[str]
    optimizer: ClassVar[OptimizerName] = "sgd"
    feature_weight: ClassVar[float] = 1.0

    def __init__(
        self,
        config: Any,  # noqa: ANN401 - each family has its own
        statistics: ChannelStatistics,
        *,
        bits: Sequence[int],
        image_shape: tuple[int, int, int],
        n_classes: int,
        stem_bits: int,
    ) -> None:
        super().__init__()
        if len(statistics.mean) != image_shape[0]:
            raise ConfigError(
                f"channel statistics have {len(statistics.mean)} channels, the backbone {image_shape[0]}."
            )
        self.config = config
        self.statistics = statistics
        self.options = BitOptions(tuple(bits))
        self.image_shape = image_shape
        self.n_classes = n_classes
        self.stem_bits = stem_bits
        self.image_mean: Tensor
        self.image_std: Tensor
        self.register_buffer("image_mean", torch.tensor(statistics.mean).reshape(1, -1, 1, 1))
        self.register_buffer("image_std", torch.tensor(statistics.std).reshape(1, -1, 1, 1))

    @property
    @abstractmethod
    def never_gated(self) -> Sequence[nn.Module]:
        """The modules that always run: stem, head, and what layers run even when they are skipped."""

    @property
    def gated(self) -> Sequence[nn.Module]:
        """The modules that run only as a gate decides."""
        return [self.blocks]

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated layer."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""

    @abstractmethod
    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedBackbone":
        """Return the frozen form: norms folded, weights quantized once per option."""

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images, or floats in [0, 1], ``[batch, c, h, w]`` into zero mean and unit variance."""
        pixels = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
        pixels = (pixels - self.image_mean) / self.image_std
        return pixels.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor, bits: int | Sequence[int] = FULL) -> Tensor:
        """Run every sample at the same bits.

        Args:
            images: uint8, or float in [0, 1], ``[batch, c, h, w]``; normalised inside. A backbone that normalises by nothing takes any
                finite floats.
            bits: One bit width for all gated layers, or one for each.

        Returns:
            Logits ``[batch, classes]``.

        Raises:
            DataError: If the images are of another type, or have other values.
        """
        check_pixels(images, bounded=not self.statistics.changes_nothing)
        return self.run(images, bits)

    def run(self, images: Tensor, bits: int | Sequence[int]) -> Tensor:
        """Do what ``forward`` does, whatever the values of the images are."""
        setting = [bits] * len(self.blocks) if isinstance(bits, int) else list(bits)
        if len(setting) != len(self.blocks):
            raise ConfigError(
                f"{len(setting)} bit widths given for {len(self.blocks)} gated layers."
            )
        hidden = self.stem(images)
        for block, layer_bits in zip(self.blocks, setting, strict=True):
            hidden = block(hidden, layer_bits)
        return self.head(hidden)

    def comparable(self, hidden: Tensor) -> Tensor:
        """Return an activation that leaves a layer as another pass's can be compared with it by squared distances."""
        return hidden

    @property
    def meaningful_bits(self) -> tuple[int, ...]:
        """The bits that all layers together can run at and leave a network: skipping them all rarely does."""
        return tuple(bits for bits in self.options if bits != SKIP)

    @torch.no_grad()
    def finish_making(self, *, signed: bool = False) -> None:
        """Count what everything costs, and make the probes, by running one empty image through every part.

        Args:
            signed: Whether activations between gated layers can be negative.
        """
        was_training = self.training
        self.eval()
        image = torch.zeros(1, *self.image_shape)
        dearest = self.options[self.options.full]
        hidden = self.stem(image)
        stem_macs = count_macs(lambda: self.stem(image))
        fixed: list[tuple[str, int, int | None]] = [("stem", stem_macs, None)]
        layer_macs, seen = [], []
        for number, layer in enumerate(self.layers):
            seen.append(hidden)
            # What a layer runs even when it is skipped is no part of what a gate decides about.
            always = _macs_of(layer, hidden, SKIP) if runs_when_skipped(layer) else 0
            if always:
                fixed.append(("mandatory", always, number))
            layer_macs.append(_macs_of(layer, hidden, dearest) - always)
            hidden = layer(hidden, dearest)
        fixed.append(("head", count_macs(lambda: self.head(hidden)), len(layer_macs)))
        self.costs = CostTable(
            options=self.options,
            layer_macs=tuple(layer_macs),
            fixed=tuple(
                FixedCost(name=name, macs=macs, bits=self.stem_bits, layer=layer)
                for name, macs, layer in fixed
            ),
        )
        self._signed = signed
        self._make_probes(seen)
        self._exit_sizes = [prod(self.parts(h, grid=EXIT_GRID).shape[1:]) for h in seen]
        self.set_exits(())
        self.train(was_training)

    def set_exits(self, after: Sequence[int]) -> None:
        """Make a head after each of these numbers of gated layers, untrained, in place of those there are; none takes them away.

        Raises:
            ConfigError: If they are not ascending numbers from 0 to one less than the gated layers.
        """
        check_exits(after, len(self.blocks))
        sizes = {layer: self._exit_sizes[layer] for layer in after}
        looks = [sizes.get(layer, size) for layer, size in enumerate(self.probe_sizes)]
        price = self.n_classes * relative_cost(self.stem_bits)
        self.layer_feature_macs = tuple(size * price for size in looks)
        self.feature_macs = sum(looks) * price
        self.costs = replace(
            self.costs,
            exits=tuple(
                ExitCost(after=layer, macs=size * self.n_classes, bits=self.stem_bits)
                for layer, size in sizes.items()
            ),
        )
        self.exit_heads = None
        if sizes:
            # Measured, not trained, like the probes.
            heads = [self._classifier(size) for size in sizes.values()]
            self.exit_heads = ExitHeads(after, heads).requires_grad_(requires_grad=False)

    def _classifier(self, size: int) -> FractionalLinear:
        """Return an untrained classifier of so many numbers of an activation between gated layers."""
        return FractionalLinear(
            size, self.n_classes, bits=self.stem_bits, signed_input=self._signed
        )

    def _make_probes(self, seen: Sequence[Tensor]) -> None:
        """Choose the probes' grid, the finest that is cheap enough, and make a probe of each activation."""
        for self.probe_grid in GRIDS:
            self.probe_sizes = tuple(prod(self.parts(hidden).shape[1:]) for hidden in seen)
            self.feature_macs = (
                sum(self.probe_sizes) * self.n_classes * relative_cost(self.stem_bits)
            )
            if self.feature_macs <= PROBE_SHARE * self.costs.total_macs:
                break
        # Measured, not trained: gradients never reach them.
        self.probes = nn.ModuleList(
            self._classifier(size) for size in self.probe_sizes
        ).requires_grad_(requires_grad=False)
        self.feature_sizes = tuple(CONFIDENCE_SIZE + self.parts(h).shape[1] for h in seen)
        shape = (len(self.blocks), max(self.feature_sizes))
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(shape))


def _macs_of(layer: GatedLayer, hidden: Tensor, bits: int) -> int:
    return count_macs(lambda: layer(hidden, bits))


class PreparedBackbone(_Looks, ABC):
    """The frozen form of a backbone; satisfies the same contract as the form it was made from, without gradients.

    A family's ``__init__`` calls this one first, makes its parts, and calls ``freeze`` last.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: float32, or bfloat16 where the hardware is fast at it. The stem and the head stay in float32.
    """

    def __init__(self, source: Backbone, *, dtype: torch.dtype) -> None:
        super().__init__()
        if dtype not in FROZEN_DTYPES:
            raise ConfigError(
                f"dtype is {dtype!r}; a frozen backbone computes in {' or '.join(map(str, FROZEN_DTYPES))}."
            )
        self.options = source.options
        self.costs = source.costs
        self.feature_sizes = source.feature_sizes
        self.feature_macs = source.feature_macs
        self.layer_feature_macs = source.layer_feature_macs
        self.exit_heads = None if source.exit_heads is None else source.exit_heads.prepare()
        self.probe_grid = source.probe_grid
        self.image_shape = source.image_shape
        self.n_classes = source.n_classes
        self.dtype = dtype
        # Normalising is one multiplication and one addition per pixel: (x - mean) / std.
        self.image_scale: Tensor
        self.image_shift: Tensor
        scale = source.image_std.reciprocal()
        self.register_buffer("image_scale", scale.clone())
        self.register_buffer("image_shift", -source.image_mean * scale)
        self.register_buffer("feature_mean", source.feature_mean.clone())
        self.register_buffer("feature_std", source.feature_std.clone())
        self.probes = nn.ModuleList(
            PreparedLinear(cast("FractionalLinear", probe)) for probe in source.probes
        )

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated layer."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images, or floats in [0, 1], ``[batch, c, h, w]`` into zero mean and unit variance."""
        pixels = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
        return (pixels * self.image_scale + self.image_shift).contiguous(
            memory_format=torch.channels_last
        )

    def freeze(self) -> None:
        """End the making: evaluation mode, no gradients."""
        self.eval().requires_grad_(requires_grad=False)
        keep_from_integers_unless_finite(self)
