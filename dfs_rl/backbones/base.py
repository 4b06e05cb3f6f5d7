"""Base class of all backbones, and their inference form."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedLayer, run_layers, runs_when_skipped
from dfs_rl.backbones.probe import EXIT_GRID, GRIDS, PROBE_SHARE, ExitHeads, describe, pool_grid
from dfs_rl.costs import FULL, SKIP, BitOptions, CostTable, ExitCost, FixedCost, check_exits
from dfs_rl.costs.latency_profile import LatencyProfile
from dfs_rl.costs.mac_counter import count_macs
from dfs_rl.data import ChannelStatistics
from dfs_rl.data.pixels import check_pixels
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import (
    copy_for_inference,
    keep_from_integers_unless_finite,
    to_inference,
)
from dfs_rl.quantization.modules import FractionalLinear
from dfs_rl.utils.constants import OptimizerName

FROZEN_DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes of inference forms."""


class Backbone(nn.Module, ABC):
    """The training form of a backbone: stem, gated layers, head, and features for gates.

    A subclass sets ``blocks``, the gated layers in order, and whatever else it needs after this
    ``__init__``, and calls ``finish_making`` last. See ``GatedBackbone`` for further attributes.

    Args:
        config: Shape and precision, a frozen dataclass that is stored with the weights; its
            ``bits``, ``n_classes`` and ``stem_bits`` are those of ``NetworkConfig``.
        statistics: Mean and deviation of the training images' channels, in [0, 1] units.
        image_shape: Channels, height and width of the images.

    Attributes:
        family: Name of the class in storage.
        optimizer: Default optimizer of networks of this class.
        feature_weight: Default weight of the distance of activations, see ``SupernetConfig``.
        probes: One linear classifier of the activation before each gated layer.
        probe_grid: Rows and columns into which a probe cuts an activation, see ``pool_grid``.
        exit_heads: Classifiers of the exits, ``None`` without exits.
    """

    family: ClassVar[str]
    optimizer: ClassVar[OptimizerName] = "sgd"
    feature_weight: ClassVar[float] = 1.0

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
    image_mean: Tensor
    image_std: Tensor
    image_scale: Tensor | None
    image_shift: Tensor

    def __init__(
        self,
        config: Any,  # noqa: ANN401 - each family has its own
        statistics: ChannelStatistics,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        if len(statistics.mean) != image_shape[0]:
            raise ConfigError(
                f"channel statistics have {len(statistics.mean)} channels, the backbone "
                f"{image_shape[0]}."
            )
        self.config = config
        self.statistics = statistics
        self.options = BitOptions(config.bits)
        self.image_shape = image_shape
        self.n_classes: int = config.n_classes
        self.stem_bits: int = config.stem_bits
        self.register_buffer("image_mean", torch.tensor(statistics.mean).reshape(1, -1, 1, 1))
        self.register_buffer("image_std", torch.tensor(statistics.std).reshape(1, -1, 1, 1))
        self.register_buffer("image_scale", None)  # the inference form has these two instead
        self.register_buffer("image_shift", None)

    @property
    def layers(self) -> Sequence[GatedLayer]:
        """The gated layers, in order."""
        return cast("Sequence[GatedLayer]", self.blocks)

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """The modules that always run: stem, head, mandatory parts of gated layers."""
        apart = (self.blocks, self.probes, self.exit_heads)
        return [part for part in self.children() if all(part is not other for other in apart)]

    @property
    def gated(self) -> Sequence[nn.Module]:
        """The modules that run as a gate decides."""
        return [self.blocks]

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of gated layers of each stage, in order; one each in a network without stages."""
        return (1,) * len(self.blocks)

    def at_depths(self, depths: Sequence[int], bits: int | Sequence[int]) -> tuple[int, ...]:
        """Return the bits of each gated layer where only the first of each stage run.

        Args:
            depths: Number of gated layers that run in each stage.
            bits: One bit width for all of these, or one for each gated layer of the network.

        Raises:
            ConfigError: If a stage has not as many gated layers.
        """
        stages = self.stages
        pairs = list(zip(depths, stages, strict=False))
        if len(depths) != len(stages) or not all(0 <= depth <= most for depth, most in pairs):
            raise ConfigError(
                f"depths are {list(depths)}; the stages have {list(stages)} gated layers, so "
                "allowed is for each a number from 0 to that."
            )
        runs = [n < depth for depth, most in pairs for n in range(most)]
        mix = [bits] * len(runs) if isinstance(bits, int) else bits
        return tuple(b if run else SKIP for b, run in zip(mix, runs, strict=True))

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated layer."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""

    def to_inference(self, dtype: torch.dtype = torch.float32) -> "InferenceBackbone":
        """Return the inference form; ``dtype`` is bfloat16 where the hardware is fast at it."""
        return InferenceBackbone(self, dtype=dtype)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 images, or floats in [0, 1], ``[batch, c, h, w]`` by the statistics."""
        pixels = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
        if self.image_scale is None:
            pixels = (pixels - self.image_mean) / self.image_std
        else:  # one multiplication and one addition per pixel
            pixels = pixels * self.image_scale + self.image_shift
        return pixels.contiguous(memory_format=torch.channels_last)

    def parts(self, hidden: Tensor, *, grid: int | None = None) -> Tensor:
        """Pool the activation before a gated layer, float32 ``[batch, channels, parts]``.

        ``grid`` is the number of rows and columns of parts, by default that of the probes.
        """
        return pool_grid(hidden, grid=self.probe_grid if grid is None else grid)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the features of a gate before a layer, float32 ``[batch, 3 + channels]``.

        The first three are the confidence of the layer's probe, the rest the pooled channels.
        Where there is an exit, its head replaces the probe. Its confidence is rescaled to the
        probe's mean and deviation, so that ``feature_mean`` and ``feature_std`` hold for both.
        """
        parts = self.parts(hidden)
        if self.exit_heads is None or layer not in self.exit_heads:
            return describe(parts, self.probes[layer](parts.flatten(1)))
        sure = self.exit_heads.sureness(self.answer(hidden, layer), layer)
        usual = self.feature_std[layer, :CONFIDENCE_SIZE]
        sure = sure * usual + self.feature_mean[layer, :CONFIDENCE_SIZE]
        return torch.cat([sure, parts.mean(dim=2)], dim=1)

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the logits of the exit before gated layer ``layer``, ``[batch, classes]``."""
        assert self.exit_heads is not None, "an image leaves where there is an exit"
        return self.exit_heads.answer(self.parts(hidden, grid=EXIT_GRID), layer)

    def forward(self, images: Tensor, bits: int | Sequence[int] = FULL) -> Tensor:
        """Return the logits ``[batch, classes]`` of samples that all run at the same bits.

        Args:
            images: uint8, or float in [0, 1], ``[batch, c, h, w]``; normalised inside. A backbone
                without normalisation takes any finite floats.
            bits: One bit width for all gated layers, or one for each.

        Raises:
            ConfigError: If bits are no bit options.
            DataError: If the images are of another type, or have other values.
        """
        check_pixels(images, bounded=not self.statistics.changes_nothing)
        return self.run(images, bits)

    def run(self, images: Tensor, bits: int | Sequence[int]) -> Tensor:
        """Run ``forward`` without checking the values of the images."""
        mix = [bits] if isinstance(bits, int) else bits
        if not isinstance(bits, int) and len(bits) != len(self.blocks):
            raise ConfigError(f"{len(bits)} bit widths given for {len(self.blocks)} gated layers.")
        self.options.indices(mix)
        return self.head(run_layers(self, self.stem(images), bits))

    def comparable(self, hidden: Tensor) -> Tensor:
        """Return an activation in the form in which feature distillation compares two passes."""
        return hidden

    @property
    def meaningful_bits(self) -> tuple[int, ...]:
        """Bit options that all layers can run at together: skipping all layers rarely works."""
        return tuple(bits for bits in self.options if bits != SKIP)

    @torch.no_grad()
    def finish_making(self, *, signed: bool = False) -> None:
        """Count all costs and add the probes, by running one empty image through every part.

        ``signed`` is whether activations between gated layers can be negative.
        """
        was_training = self.training
        self.eval()
        image = torch.zeros(1, *self.image_shape)
        largest = self.options[self.options.full]
        part = partial(FixedCost, bits=self.stem_bits)
        hidden = self.stem(image)
        fixed = [part(name="stem", macs=count_macs(partial(self.stem, image)))]
        layer_macs, seen = [], []
        for number, layer in enumerate(self.layers):
            seen.append(hidden)
            # The mandatory part of a layer is not gated.
            always = count_macs(partial(layer, hidden, SKIP)) if runs_when_skipped(layer) else 0
            if always:
                fixed.append(part(name="mandatory", macs=always, layer=number))
            layer_macs.append(count_macs(partial(layer, hidden, largest)) - always)
            hidden = layer(hidden, largest)
        head_macs = count_macs(partial(self.head, hidden))
        fixed.append(part(name="head", macs=head_macs, layer=len(layer_macs)))
        self.costs = CostTable(
            options=self.options, layer_macs=tuple(layer_macs), fixed=tuple(fixed)
        )
        self._signed = signed
        self._make_probes(seen)
        self._exit_sizes = [prod(self.parts(h, grid=EXIT_GRID).shape[1:]) for h in seen]
        self.set_exits(())
        self.train(was_training)

    def set_exits(self, after: Sequence[int]) -> None:
        """Replace all exits by untrained ones, after gated layers of these numbers, if any.

        Raises:
            ConfigError: If they are not ascending numbers from 0 to one less than the gated layers.
        """
        check_exits(after, len(self.blocks))
        sizes = {layer: self._exit_sizes[layer] for layer in after}
        exits = tuple(
            ExitCost(after=layer, macs=size * self.n_classes, bits=self.stem_bits)
            for layer, size in sizes.items()
        )
        self.costs = replace(self.costs, exits=exits)
        self._count_features()
        self.exit_heads = ExitHeads(after, self._classifiers(sizes.values())) if sizes else None

    def set_cost_model(self, name: str, profile: LatencyProfile | None = None) -> None:
        """Count all costs by another cost model, see ``CostTable.with_cost_model``."""
        self.costs = self.costs.with_cost_model(name, profile)
        self._count_features()

    def _count_features(self) -> None:
        """Count the MACs of a gate's features: the classifier of each layer, or of its exit."""
        each = self.n_classes * self.costs.feature_macs(1.0, self.stem_bits)
        sizes = [
            self._exit_sizes[layer] if layer in self.costs.exits_after else size
            for layer, size in enumerate(self.probe_sizes)
        ]
        self.layer_feature_macs = tuple(size * each for size in sizes)
        self.feature_macs = sum(sizes) * each

    def _classifiers(self, sizes: Iterable[int]) -> nn.ModuleList:
        """Return classifiers of numbers of activations; they are measured, never trained."""
        make = partial(FractionalLinear, bits=self.stem_bits, signed_input=self._signed)
        made = nn.ModuleList(make(size, self.n_classes) for size in sizes)
        return made.requires_grad_(requires_grad=False)

    def _make_probes(self, seen: Sequence[Tensor]) -> None:
        """Choose the finest grid of probes that is cheap enough, and add a probe per layer."""
        for self.probe_grid in GRIDS:
            self.probe_sizes = tuple(prod(self.parts(hidden).shape[1:]) for hidden in seen)
            self._count_features()
            if self.feature_macs <= PROBE_SHARE * self.costs.total_macs:
                break
        self.probes = self._classifiers(self.probe_sizes)
        self.feature_sizes = tuple(CONFIDENCE_SIZE + self.parts(h).shape[1] for h in seen)
        shape = (len(self.blocks), max(self.feature_sizes))
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(shape))


class InferenceBackbone(nn.Module):
    """The inference form of a backbone: norms folded, weights quantized once per option.

    It satisfies ``GatedBackbone`` too, and has no gradients.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: Dtype of activations between gated layers; stem and head compute in float32.
    """

    def __init__(self, source: Backbone, *, dtype: torch.dtype) -> None:
        super().__init__()
        if dtype not in FROZEN_DTYPES:
            allowed = " or ".join(map(str, FROZEN_DTYPES))
            raise ConfigError(f"dtype is {dtype!r}; a frozen backbone computes in {allowed}.")
        self.dtype = dtype
        self.options = source.options
        self.stages = source.stages
        self.costs = source.costs
        self.feature_sizes = source.feature_sizes
        self.feature_macs = source.feature_macs
        self.layer_feature_macs = source.layer_feature_macs
        self.image_shape = source.image_shape
        self.n_classes = source.n_classes
        network = copy_for_inference(source, torch.float32)
        if dtype != torch.float32:
            network.blocks = cast("nn.ModuleList", to_inference(source.blocks, dtype))
        scale = source.image_std.reciprocal()
        network.image_scale = scale
        network.image_shift = -source.image_mean * scale
        self.network = network
        self.eval().requires_grad_(requires_grad=False)
        keep_from_integers_unless_finite(self)

    @property
    def layers(self) -> Sequence[GatedLayer]:
        """The gated layers, in order."""
        return self.network.layers

    @property
    def feature_mean(self) -> Tensor:
        """Mean of ``feature`` before each gated layer."""
        return self.network.feature_mean

    @property
    def feature_std(self) -> Tensor:
        """Standard deviation of ``feature`` before each gated layer."""
        return self.network.feature_std

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated layer."""
        return self.network.stem(images).to(self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return self.network.head(hidden)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the features of a gate before a layer, see ``Backbone.feature``."""
        return self.network.feature(hidden, layer)

    def answer(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the logits of the exit before gated layer ``layer``, ``[batch, classes]``."""
        return self.network.answer(hidden, layer)
