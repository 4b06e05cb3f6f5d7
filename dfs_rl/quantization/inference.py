"""Inference forms of the quantized modules, and the conversion of whole networks into them.

Weights are quantized once per bit width and norms are folded into scale and shift. A quantized
convolution runs on integer codes held in floating point. Sums of such products are exact in float32
as long as they stay below 2**24, in any order, so a sample's result does not depend on its batch;
the training form, which multiplies codes by scales first, agrees up to rounding. CPUs that compute
the same sums in 8-bit integers do so, with the same result.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import FULL
from dfs_rl.quantization.functional import QuantRange, to_codes
from dfs_rl.quantization.int8 import IntegerConv2d, integer_convolutions_are_exact
from dfs_rl.quantization.modules import (
    FractionalConv2d,
    FractionalLinear,
    FractionalMatmul,
    LayerQuantizers,
)
from dfs_rl.quantization.norms import BatchNormPerBits

BYTE_BITS = 8
"""Bits of a code that fits a byte, and bfloat16's mantissa."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)
InferenceForm = Callable[[Any, torch.dtype], nn.Module]
_FORMS: dict[type[nn.Module], InferenceForm] = {}


def inference_form(kind: type[nn.Module]) -> Callable[[InferenceForm], InferenceForm]:
    """Register a function or class as the inference form of a type of modules and its subclasses.

    It is called with the training form and the dtype of the inference form.
    """

    def register(form: InferenceForm) -> InferenceForm:
        _FORMS[kind] = form
        return form

    return register


def to_inference(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the inference form of a module, called in the same way; the module stays as it is.

    A module whose type has a registered form is replaced by it; any other is copied, with its
    parameters and its submodules in their inference forms. ``dtype`` is float32, or bfloat16 for
    activations between gated layers.
    """
    for kind in type(module).__mro__:
        if kind in _FORMS:
            return _FORMS[kind](module, dtype)
    return copy_for_inference(module, dtype)


def copy_for_inference(module: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Return a copy of a module without gradients, its submodules in their inference forms."""
    copied = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # parameters, buffers, submodules and hooks
            copied.__dict__[name] = value.copy()
    for name, parameter in module._parameters.items():
        if parameter is not None:
            constant = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            copied._parameters[name] = constant
    for name, buffer in module._buffers.items():
        copied._buffers[name] = None if buffer is None else buffer.clone()
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else to_inference(child, dtype)
    return copied


class Float32Module(nn.Module):
    """A module that computes in float32; its inference form keeps activations in its dtype."""

    inference_dtype: torch.dtype | None = None

    def kept(self, activation: Tensor) -> Tensor:
        """Return an activation in the dtype of the form."""
        return activation if self.inference_dtype is None else activation.to(self.inference_dtype)


@inference_form(Float32Module)
def _float32_form(source: Float32Module, dtype: torch.dtype) -> Float32Module:
    form = copy_for_inference(source, torch.float32)
    form.inference_dtype = dtype
    return form


def _hold(module: nn.Module, **constants: Tensor) -> None:
    """Register copies of tensors as buffers."""
    for name, tensor in constants.items():
        module.register_buffer(name, tensor.detach().clone())


class PerBits(nn.Module):
    """Inference forms of an operator, one for each bit width and set of norms.

    Args:
        source: The training form; its ``norm_sets``, if it has any, come set after set.
        make: Makes a form of the source, a bit width, and a set of norms.
        n_inputs: Number of tensors that the operator takes; bits and set of norms follow them.
    """

    calibrating = False

    def __init__(
        self,
        source: Any,  # noqa: ANN401 - any module with bit widths
        make: Callable[[Any, int, int], nn.Module],
        *,
        n_inputs: int = 1,
    ) -> None:
        super().__init__()
        places = [(b, s) for s in range(getattr(source, "norm_sets", 1)) for b in source.bits]
        self.forms = nn.ModuleList(make(source, *place) for place in places)
        self.n_inputs = n_inputs
        # A dictionary too, since torch finds the items of its lists slowly.
        self._at: dict[tuple[int, ...], nn.Module] = dict(zip(places, self.forms, strict=True))
        self._at |= {(b,): self._at[b, 0] for b in source.bits}
        if len(source.bits) == 1:
            self._at[()] = self.forms[0]
        self._chains: dict[tuple[object, ...], _Chain] = {}

    def at(self, *place: int) -> nn.Module:
        """Return the form at a bit width, by default the only one, and a set of norms."""
        return self._at[place]

    def chain(self, convolutions: Sequence["PerBits"], bits: int, norm_set: int) -> "_Chain":
        """Return the chain of convolutions, of which this is the first, at a bit width.

        Finding the forms of each takes as long as a small operator, so chains are kept.
        """
        key = (bits, norm_set, *convolutions)
        if key not in self._chains:
            self._chains[key] = _Chain([each.at(bits, norm_set) for each in convolutions])
        return self._chains[key]

    def forward(self, *arguments: Any) -> Tensor:  # noqa: ANN401 - tensors, then numbers
        """Run the operator, as in the training form."""
        n = self.n_inputs
        return cast("Tensor", self._at[arguments[n:]](*arguments[:n]))


def _input_codes(x: Tensor, inverse_scale: Tensor, quant_range: QuantRange) -> Tensor:
    """Return the float32 codes of ``x``; a fresh tensor, never ``x`` itself."""
    scaled = x.float() * inverse_scale
    qmin, qmax, gap = quant_range
    if gap == 1:
        return scaled.round_().clamp_(qmin, qmax)
    return torch.where(scaled > 0, float(qmax), float(qmin))


def _quantized(
    quantizers: LayerQuantizers, weight: Tensor, bits: int
) -> tuple[QuantRange, Tensor, Tensor, Tensor]:
    """Return input range, inverse input scale, weight codes, product of both scales (flat)."""
    input_scale = quantizers.input_scale(bits)
    weight_scale = quantizers.weight_scale(bits, weight)
    input_range, weight_range = quantizers.ranges(bits)
    codes = to_codes(weight, weight_scale, weight_range)
    return input_range, input_scale.reciprocal(), codes, (input_scale * weight_scale).flatten()


class InferenceConv2d(nn.Module):
    """A convolution at one bit width and set of norms: quantize, convolve codes, scale and shift.

    As ``dtype``, bfloat16 holds codes of up to 8 bit exactly, but rounds the output.
    """

    inverse_scale: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor
    reach: Tensor | None

    def __init__(
        self,
        source: FractionalConv2d,
        bits: int,
        norm_set: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        scale, bias = source.scale_and_shift(bits, norm_set)
        self.geometry = source.geometry
        self.dtype = dtype
        self.register_buffer("reach", source.output_reach(bits, norm_set), persistent=False)
        self.quant_range: QuantRange | None = None
        if bits == FULL:
            inverse_scale, weight = torch.ones(()), source.weight * scale.reshape(-1, 1, 1, 1)
            scale = torch.ones_like(scale)
        else:
            self.quant_range, inverse_scale, weight, product = _quantized(
                source.quantizers, source.weight, bits
            )
            scale = scale * product
        # Codes of more than 8 bit do not fit bfloat16's mantissa.
        weight_dtype = torch.float32 if FULL > bits > BYTE_BITS else dtype
        _hold(
            self,
            inverse_scale=inverse_scale.float(),
            weight=weight.to(weight_dtype).contiguous(memory_format=torch.channels_last),
            scale=scale.reshape(1, -1, 1, 1).to(dtype),
            bias=bias.reshape(1, -1, 1, 1).to(dtype),
        )
        self._integer: IntegerConv2d | None = None
        self.may_use_integers = (
            self.geometry.groups == 1
            and self.quant_range is not None
            and self.quant_range.qmin == 0
            and self.quant_range.qmax < 2**BYTE_BITS
            and dtype == torch.float32
        )

    def fits_integers(self, x: Tensor) -> bool:
        """Return whether integers convolve ``x``: unsigned codes of up to 8 bit, an exact CPU."""
        return (
            self.may_use_integers
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            and not (x.requires_grad and torch.is_grad_enabled())
            and integer_convolutions_are_exact()
        )

    @property
    def integer(self) -> IntegerConv2d:
        """The same convolution in integer arithmetic, made on first use."""
        if self._integer is None:
            assert self.quant_range is not None, "only quantized convolutions fit integers"
            self._integer = IntegerConv2d(
                self.weight,
                self.scale.flatten(),
                self.bias.flatten(),
                geometry=self.geometry,
                inverse_input_scale=self.inverse_scale,
                qmax=self.quant_range.qmax,
            )
        return self._integer

    def _load_from_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401 - as torch calls it
        super()._load_from_state_dict(*arguments)
        self._integer = None  # made of the weights from before

    def forward(self, x: Tensor) -> Tensor:
        """Return a fresh ``[batch, out, h, w]`` that the caller may change in place."""
        if self.quant_range is None:
            return self.geometry.convolve(x.to(self.dtype), self.weight, self.bias.flatten())
        if self.fits_integers(x):
            return self.integer(self.integer.codes_of(x))
        codes = _input_codes(x, self.inverse_scale, self.quant_range).to(self.weight.dtype)
        out = self.geometry.convolve(codes, self.weight)
        return out.to(self.dtype).mul_(self.scale).add_(self.bias)


class InferenceLinear(nn.Module):
    """A linear layer at one bit width, in float32."""

    inverse_scale: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, source: FractionalLinear, bits: int, _: int) -> None:
        super().__init__()
        self.quant_range: QuantRange | None = None
        inverse_scale, scale = torch.ones(()), torch.ones(())
        weight: Tensor = source.weight
        if bits != FULL:
            self.quant_range, inverse_scale, weight, scale = _quantized(
                source.quantizers, weight, bits
            )
        bias = torch.zeros(len(weight)) if source.bias is None else source.bias
        _hold(self, inverse_scale=inverse_scale, weight=weight, scale=scale, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 ``[..., in]`` to ``[..., out]``."""
        if self.quant_range is not None:
            x = _input_codes(x, self.inverse_scale, self.quant_range)
        return functional.linear(x, self.weight) * self.scale + self.bias


class InferenceMatmul(nn.Module):
    """A product of two activations at one bit width."""

    scales: Tensor

    def __init__(self, source: FractionalMatmul, bits: int, _: int) -> None:
        super().__init__()
        quantizers = source.quantizers
        self.quant_ranges: tuple[QuantRange, QuantRange] | None = None
        scales = torch.ones(2)
        if bits != FULL:
            self.quant_ranges = quantizers.ranges(bits)
            second = quantizers.weight_log_scale[quantizers.bits.index(bits)].exp()
            scales = torch.stack([quantizers.input_scale(bits), second])
        _hold(self, scales=scales)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply ``[..., n, k]`` by ``[..., k, m]``."""
        if self.quant_ranges is None:
            return first @ second
        inverse = self.scales.reciprocal()
        codes = _input_codes(first, inverse[0], self.quant_ranges[0])
        return (codes @ _input_codes(second, inverse[1], self.quant_ranges[1])) * self.scales.prod()


class InferenceBatchNorm(nn.Module):
    """A batch norm at one bit width: a scale and a shift."""

    scale: Tensor
    shift: Tensor

    def __init__(self, source: BatchNormPerBits, bits: int, norm_set: int) -> None:
        super().__init__()
        scale, shift = source.scale_and_shift(bits, norm_set)
        _hold(self, scale=scale, shift=shift)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[batch, channels, ...]``."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


_FORMS |= {
    FractionalConv2d: lambda source, dtype: PerBits(source, partial(InferenceConv2d, dtype=dtype)),
    BatchNormPerBits: lambda source, _: PerBits(source, InferenceBatchNorm),
    FractionalLinear: lambda source, _: PerBits(source, InferenceLinear),
    FractionalMatmul: lambda source, _: PerBits(source, InferenceMatmul, n_inputs=2),
}


def keep_from_integers_unless_finite(network: nn.Module) -> None:
    """Disable integer arithmetic in a network that is not finite: integers have no NaN."""
    values = [v for v in network.state_dict().values() if v.is_floating_point()]
    if all(bool(v.isfinite().all()) for v in values):
        return
    for module in network.modules():
        if isinstance(module, InferenceConv2d):
            module.may_use_integers = False


class _Chain:
    """Inference forms of convolutions, run one after another with a ReLU in between."""

    def __init__(self, forms: Sequence[nn.Module]) -> None:
        self._first, *self._others = cast("Sequence[InferenceConv2d]", forms)
        self._others_may_use_integers = all(form.may_use_integers for form in self._others)

    def __call__(self, x: Tensor) -> Tensor:
        """Stay on integers all the way where that gives the same result."""
        first, others = self._first, self._others
        if not (self._others_may_use_integers and first.fits_integers(x)):
            out = first(x)
            for convolution in others:
                out = convolution(out.relu_())
            return cast("Tensor", out)
        integers = first.integer
        codes = integers.codes_of(x)
        for convolution in others:
            following = convolution.integer
            codes = integers.to_codes(codes, following)
            integers = following
        return integers(codes)


def convolve_in_turn(
    convolutions: Sequence[nn.Module], x: Tensor, bits: int, norm_set: int = 0
) -> Tensor:
    """Run convolutions, or their inference forms, one after another with a ReLU in between.

    The inference forms stay on integers all the way where that gives the same result. The input
    ``[batch, in, h, w]`` stays unchanged; the caller may change the result in place.
    """
    first = convolutions[0]
    if isinstance(first, PerBits):
        return first.chain(cast("Sequence[PerBits]", convolutions), bits, norm_set)(x)
    for convolution in convolutions[:-1]:
        x = convolution(x, bits, norm_set).relu_()
    return cast("Tensor", convolutions[-1](x, bits, norm_set))
