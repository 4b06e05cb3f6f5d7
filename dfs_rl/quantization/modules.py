"""Layers that run at any bit width of a menu: shared weights, one step and one norm per bit width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import FULL, SKIP
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.functional import fake_quantize, grid, lsq_gradient_scale, mse_step

NORM_MOMENTUM = 0.1
NORM_EPSILON = 1e-5

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """How a convolution moves over its input, as in ``torch.nn.Conv2d``."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve ``[batch, in, h, w]``."""
        return functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class LayerQuantizers(nn.Module):
    """Learned steps of one layer, for its input and its weight, one of each per quantized bit width.

    What is learned is the logarithm of a step, as in TQT (Jain et al., MLSys 2020): a step stays positive, and its updates
    are relative to its size, which spans three orders of magnitude between 2 and 16 bit. Plain steps under SGD were driven
    through zero, from where no gradient leads back.

    Args:
        bits: The bit widths the layer runs at; 32 needs no quantizer and is passed over.
        signed_input: Whether the input has a sign (an image) or not (after a ReLU).
        channels: Number of output channels for one weight step per channel, or None for one step per layer.
    """

    def __init__(
        self, bits: Sequence[int], *, signed_input: bool, channels: int | None = None
    ) -> None:
        super().__init__()
        self.bits = tuple(b for b in bits if b != FULL)
        self.signed_input = signed_input
        self.per_channel = channels is not None
        weight_shape = (len(self.bits), channels) if channels is not None else (len(self.bits),)
        self.input_log_step = nn.Parameter(torch.zeros(len(self.bits)))
        self.weight_log_step = nn.Parameter(torch.zeros(weight_shape))

    def input_step_of(self, bits: int) -> Tensor:
        """Step of the input at ``bits``, a scalar."""
        return self.input_log_step[self.bits.index(bits)].exp()

    def weight_step_of(self, bits: int, weight: Tensor) -> Tensor:
        """Step of the weight at ``bits``, broadcastable to ``weight``."""
        step = self.weight_log_step[self.bits.index(bits)].exp()
        return step.reshape(-1, *[1] * (weight.dim() - 1)) if self.per_channel else step

    def forward(self, x: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Quantize an input ``[batch, ...]`` and a weight to ``bits``; LSQ scales gradients by elements per sample."""
        inputs, weights = grid(bits, signed=self.signed_input), grid(bits, signed=True)
        per_step = weight[0].numel() if self.per_channel else weight.numel()
        return (
            fake_quantize(
                x,
                self.input_step_of(bits),
                inputs,
                gradient_scale=lsq_gradient_scale(x[0].numel(), inputs),
            ),
            fake_quantize(
                weight,
                self.weight_step_of(bits, weight),
                weights,
                gradient_scale=lsq_gradient_scale(per_step, weights),
            ),
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor, weight: Tensor) -> None:
        """Set every step to the one with the least squared error on this input and weight."""
        for i, bits in enumerate(self.bits):
            self.input_log_step[i] = mse_step(x, grid(bits, signed=self.signed_input)).log()
            self.weight_log_step[i] = mse_step(
                weight, grid(bits, signed=True), per_channel=self.per_channel
            ).log()


class FractionalLayer(nn.Module):
    """What layers with a weight and quantizers share; a subclass sets both.

    Attributes:
        weight: The weight, shared by all bit widths.
        quantizers: Its quantizers and those of the input.
    """

    weight: nn.Parameter
    quantizers: LayerQuantizers

    def __init__(self) -> None:
        super().__init__()
        self.calibrating = False

    def quantized(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Return input and weight as they are at ``bits``; while steps are calibrated, ``x`` sets them first."""
        if self.calibrating:
            self.quantizers.calibrate(x, self.weight)
        return (x, self.weight) if bits == FULL else self.quantizers(x, self.weight, bits)

    def calibrate_steps(self, *, on: bool) -> None:
        """While on, every forward pass sets the steps from the input it sees."""
        self.calibrating = on


class NormPerBits(nn.Module):
    """A norm with scale and shift of its own for every bit width, in one set or several.

    Quantization moves the statistics of what comes out (Jin et al., AdaBits, CVPR 2020), and so does what runs after it (Kang
    et al., "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS 2024): further sets are for other modes of the network.

    Attributes:
        bits: The bit widths, ascending.
        norm_sets: Number of sets.
        norm_weight: Scales, ``[sets * bits, channels]``.
        norm_bias: Shifts, likewise.
        epsilon: What is added to variances.
    """

    bits: tuple[int, ...]
    epsilon: float = NORM_EPSILON

    def make_norm(self, bits: Sequence[int], channels: int, *, sets: int = 1) -> None:
        """Make the norm's parameters; for subclasses."""
        self.bits = tuple(bits)
        self.norm_sets = sets
        rows = sets * len(self.bits)
        self.norm_weight = nn.Parameter(torch.ones(rows, channels))
        self.norm_bias = nn.Parameter(torch.zeros(rows, channels))

    def norm_row(self, bits: int, norm_set: int = 0) -> int:
        """Which row of the tensors normalises at ``bits``."""
        return norm_set * len(self.bits) + self.bits.index(bits)

    def norm_tensors(self) -> Sequence[Tensor]:
        """Return everything that has a row for every bit width."""
        return self.norm_weight, self.norm_bias

    @torch.no_grad()
    def copy_dearest_norm(self) -> None:
        """Start every bit width's norm from the dearest one's of its set: its statistics are nearer than zero and one."""
        for tensor in self.norm_tensors():
            sets = tensor.view(self.norm_sets, len(self.bits), -1)
            sets.copy_(sets[:, -1:].expand_as(sets))


class LayerNormPerBits(NormPerBits):
    """Layer norm over the channels of every token (Ba et al., 2016), see ``NormPerBits``.

    Args:
        channels: How many.
        bits: The bit widths.
        sets: Number of sets.
    """

    epsilon = 1e-6  # as in ViT

    def __init__(self, channels: int, bits: Sequence[int], *, sets: int = 1) -> None:
        super().__init__()
        self.make_norm(bits, channels, sets=sets)

    def forward(self, x: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Normalise ``[..., channels]`` as at ``bits``."""
        i = self.norm_row(bits, norm_set)
        weight, bias = self.norm_weight[i], self.norm_bias[i]
        return functional.layer_norm(x, weight.shape, weight, bias, self.epsilon)


class BatchNormPerBits(NormPerBits):
    """Batch norm, with statistics of its own for every bit width and set too.

    Attributes:
        running_mean: Means, ``[sets * bits, channels]``.
        running_var: Variances, likewise.
        batch_norm: What normalises, with the arguments of torch's; another may take its place for a while.
    """

    running_mean: Tensor
    running_var: Tensor

    def make_norm(self, bits: Sequence[int], channels: int, *, sets: int = 1) -> None:
        """Make the norm's parameters and statistics; for subclasses."""
        super().make_norm(bits, channels, sets=sets)
        self.register_buffer("running_mean", torch.zeros_like(self.norm_bias))
        self.register_buffer("running_var", torch.ones_like(self.norm_weight))
        self.batch_norm: Callable[..., Tensor] = functional.batch_norm
        self._averaged: list[int] | None = None

    def norm_tensors(self) -> Sequence[Tensor]:
        """Return everything that has a row for every bit width."""
        return *super().norm_tensors(), self.running_mean, self.running_var

    def normalised(self, x: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Normalise ``[batch, channels, ...]`` as at ``bits``."""
        i = self.norm_row(bits, norm_set)
        momentum = NORM_MOMENTUM
        if self._averaged is not None:
            self._averaged[i] += 1
            # The k-th batch enters with weight 1 / k: the running mean becomes the mean.
            momentum = 1.0 / self._averaged[i]
        return self.batch_norm(
            x,
            self.running_mean[i],
            self.running_var[i],
            self.norm_weight[i],
            self.norm_bias[i],
            training=self.training,
            momentum=momentum,
            eps=self.epsilon,
        )

    def scale_and_shift(self, bits: int, norm_set: int = 0) -> tuple[Tensor, Tensor]:
        """Return what evaluation multiplies with and then adds, ``[channels]`` each."""
        i = self.norm_row(bits, norm_set)
        scale = self.norm_weight[i] * (self.running_var[i] + self.epsilon).rsqrt()
        return scale, self.norm_bias[i] - self.running_mean[i] * scale

    def average_statistics(self, *, on: bool) -> None:
        """While on, passes in training mode make the running statistics the plain average over all batches since."""
        self._averaged = [0] * len(self.norm_weight) if on else None


class FractionalConv2d(FractionalLayer, BatchNormPerBits):
    """A convolution followed by batch norm that runs at any of ``bits``; at stride 1 it keeps height and width.

    The weight is shared; every bit width has its own quantizer steps and its own norm.

    Args:
        in_channels: Channels that enter.
        out_channels: Channels that leave.
        bits: Bit widths, each 1 to 8, 10, 12, 14, 16 or 32; never 0, since skipping a layer runs none of it.
        kernel_size: Height and width of the kernel, odd.
        stride: 1 or 2.
        groups: How many parts of the channels are convolved each by itself; as many as channels make it depthwise.
        signed_input: Whether the input can be negative.
        per_channel: One weight step per output channel instead of one per layer.
        norm_sets: Number of sets of norms, see ``NormPerBits``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bits: Sequence[int],
        *,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        signed_input: bool = False,
        per_channel: bool = False,
        norm_sets: int = 1,
    ) -> None:
        super().__init__()
        if SKIP in bits:
            raise ConfigError(
                f"a convolution cannot run at 0 bit, yet its bit widths are {list(bits)}."
            )
        self.geometry = ConvGeometry(
            stride=(stride, stride), padding=(kernel_size // 2, kernel_size // 2), groups=groups
        )
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.quantizers = LayerQuantizers(
            bits, signed_input=signed_input, channels=out_channels if per_channel else None
        )
        self.make_norm(bits, out_channels, sets=norm_sets)

    def forward(self, x: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Convolve and normalise ``[batch, in, h, w]`` at ``bits``, with the norms of that set."""
        x, weight = self.quantized(x, bits)
        return self.normalised(self.geometry.convolve(x, weight), bits, norm_set)


class FractionalLinear(FractionalLayer):
    """A linear layer at one fixed precision, as heads are, or at any of several.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bits: 1 to 8, 10, 12, 14, 16 or 32, or several of them.
        signed_input: Whether the input can be negative.
        bias: Whether it has one.
        per_channel: One weight step per output instead of one per layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int | Sequence[int],
        signed_input: bool = False,
        bias: bool = True,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        self.bits = (bits,) if isinstance(bits, int) else tuple(bits)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.quantizers = LayerQuantizers(
            self.bits, signed_input=signed_input, channels=out_features if per_channel else None
        )

    def forward(self, x: Tensor, bits: int | None = None) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]`` at ``bits``, by default the only ones."""
        x, weight = self.quantized(x, self.bits[0] if bits is None else bits)
        return functional.linear(x, weight, self.bias)
