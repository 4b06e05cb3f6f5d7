"""Integer convolutions of codes of up to 8 bit, on CPUs where oneDNN computes them exactly.

The result is that of a floating point convolution of the same codes, bit for bit, in a third of the
time.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.quantization.modules import ConvGeometry

# Adding 2**23 leaves no bits for a fraction: the sum is rounded half to even and its lowest byte is
# the code. Casting the 32-bit pattern to a byte is several times as fast as casting a float.
_ROUNDING = 2.0**23

_INPUT_SCALE = 1.0
_ZERO_POINT = 0
_FLOATS_AS_OUTPUT: tuple[Any, ...] = (1.0, _ZERO_POINT, torch.float32, "none", [], "")
"""Scale, zero point and type of the output, and what follows: nothing."""


def to_uint8_codes(x: Tensor, inverse_scale: Tensor, qmax: int) -> Tensor:
    """Return the codes 0 to ``qmax`` of float32 ``x`` as uint8, in the same memory layout."""
    return (x * inverse_scale).clamp_(0, qmax).add_(_ROUNDING).view(torch.int32).to(torch.uint8)


class IntegerConv2d:
    """A convolution of unsigned codes with signed ones, then a scale and a shift per channel.

    Args:
        weight: Codes from -128 to 127 as floating point values, ``[out, in, height, width]``.
        scale: Factor of each output channel, ``[out]``.
        bias: Addend of each output channel, ``[out]``.
        geometry: Stride, padding, dilation and groups.
        inverse_input_scale: Inverse scale of the input's codes, a scalar.
        qmax: Their largest.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        *,
        geometry: ConvGeometry,
        inverse_input_scale: Tensor,
        qmax: int,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "weight": weight,
            "scale": scale,
            "bias": bias,
            "geometry": geometry,
            "inverse_input_scale": inverse_input_scale,
            "qmax": qmax,
        }
        self._inverse_input_scale = inverse_input_scale
        self._qmax = qmax
        input_scale = 1.0 / float(inverse_input_scale)
        # Scale, zero point and type of codes as an output, and the ReLU with its limits.
        self._as_output = (
            input_scale,
            _ZERO_POINT,
            torch.uint8,
            "hardtanh",
            [0.0, qmax * input_scale],
            "",
        )
        moves = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        scale, bias = scale.float().contiguous(), bias.float().contiguous()
        packed = torch.ops.onednn.qconv_prepack(
            weight.to(torch.int8).contiguous(), scale, _INPUT_SCALE, _ZERO_POINT, *moves, None
        )
        zero_points = torch.zeros(len(scale), dtype=torch.int64)
        self._common = (_INPUT_SCALE, _ZERO_POINT, packed, scale, zero_points, bias, *moves)
        # The overload itself, since finding it takes as long as a small operator.
        self._convolve = torch.ops.onednn.qconv_pointwise.default

    def __reduce__(self) -> tuple[Callable[[], "IntegerConv2d"], tuple[()]]:
        # The packed weight can be neither copied nor pickled; it is packed again.
        return partial(IntegerConv2d, **self._arguments), ()

    def codes_of(self, x: Tensor) -> Tensor:
        """Return the codes of an input, float32 ``[batch, in, h, w]``, as uint8."""
        return to_uint8_codes(x, self._inverse_input_scale, self._qmax)

    def __call__(self, codes: Tensor) -> Tensor:
        """Map codes to a fresh float32 ``[batch, out, h', w']``."""
        return cast("Tensor", self._convolve(codes, *self._common, *_FLOATS_AS_OUTPUT))

    def to_codes(self, codes: Tensor, following: "IntegerConv2d") -> Tensor:
        """Map codes to those of the output's ReLU, as ``following`` takes them."""
        return cast("Tensor", self._convolve(codes, *self._common, *following._as_output))


@cache
def integer_convolutions_are_exact() -> bool:
    """Return whether this CPU and this torch convolve 8-bit codes exactly, by trying.

    Processors without 8-bit dot products add pairs of products in 16 bits, which overflow at the
    codes' ends; and the operators are not part of torch's stable interface.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(0, 2, (16, 8, 3, 3), generator=generator) * 255.0 - 128.0
    weight[0] = 127.0
    codes = torch.randint(0, 2, (2, 8, 6, 6), generator=generator) * 255.0
    codes[0] = 255.0
    codes = codes.contiguous(memory_format=torch.channels_last)
    scale, bias = torch.full((16,), 2.0**-10), torch.arange(16.0)
    expected = functional.conv2d(codes, weight, padding=1) * scale.reshape(1, -1, 1, 1)
    expected += bias.reshape(1, -1, 1, 1)
    try:
        make = partial(IntegerConv2d, weight, scale, bias, geometry=ConvGeometry(padding=(1, 1)))
        convolution = make(inverse_input_scale=torch.ones(()), qmax=255)
        following = make(inverse_input_scale=torch.tensor(1.0 / 8.0), qmax=15)
        floats = convolution(codes.to(torch.uint8))
        rounded = convolution.to_codes(codes.to(torch.uint8), following)
    except (RuntimeError, AttributeError, TypeError):
        return False
    expected_codes = (expected / 8.0).round().clamp(0, 15)
    return torch.equal(floats, expected) and torch.equal(rounded.float(), expected_codes)
