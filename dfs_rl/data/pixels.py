"""Checks and resizing of the images that a model receives."""

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.errors import DataError

_ROUNDING = 1e-3  # tolerance for floats outside [0, 1], about a quarter of 1/255
_ALLOWED = "allowed are uint8, or float in [0, 1]"
_WAY_OUT = (
    "divide by 255 or pass uint8, leave out mean and std, which the model applies itself, and "
    "clamp the results of an interpolation"
)


def check_pixels(images: object, *, bounded: bool = True) -> None:
    """Check that images are a uint8 or float tensor with finite values in [0, 1].

    For floats it computes the minimum and the maximum, which is cheap compared with a network; for
    uint8 it reads no values. Inside a graph of ``torch.compile`` the check is an assertion that
    raises torch's own error; during export there is no check of values.

    Args:
        images: Images of any shape.
        bounded: Whether floats must also be in [0, 1], and not only finite.

    Raises:
        DataError: If the type or a value is invalid; the message contains the range found.
    """
    if not isinstance(images, Tensor):
        raise DataError(
            f"images is a {type(images).__name__}; allowed is a torch.Tensor, uint8 or float in "
            "[0, 1]; torch.from_numpy converts an array."
        )
    if images.layout != torch.strided or images.is_nested:
        kind = "nested" if images.is_nested else str(images.layout)
        raise DataError(f"images are a {kind} tensor; allowed is a dense one.")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point() or images.dtype.itemsize == 1:  # float8 has no minimum
        raise DataError(
            f"images are {images.dtype}; allowed are uint8, or float16, bfloat16, float32 and "
            "float64 in [0, 1]."
        )
    if not images.numel() or images.is_meta or torch.compiler.is_exporting():
        return
    low, high = images.detach().aminmax()
    least, most = (-_ROUNDING, 1.0 + _ROUNDING) if bounded else (-torch.inf, torch.inf)
    if torch.compiler.is_compiling():
        fits = (low >= least) & (high <= most) & low.isfinite() & high.isfinite()
        torch._assert_async(fits, f"images have other values; {_ALLOWED}: {_WAY_OUT}.")
        return
    low, high = torch.stack((low, high)).tolist()
    if not (low > -torch.inf and high < torch.inf):
        raise DataError(f"images contain numbers that are not finite (NaN or inf); {_ALLOWED}.")
    if not (low >= least and high <= most):
        raise DataError(f"images are float from {low:.4g} to {high:.4g}; {_ALLOWED}: {_WAY_OUT}.")


def resized_sides(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height after a resize of the shorter side to ``size`` pixels."""
    shorter = min(width, height)
    return width * size // shorter, height * size // shorter


def fit_images(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to ``size``, antialiased bilinear, and crop the centre.

    Images ``[n, c, size, size]`` are returned unchanged. For others, uint8 or float in [0, 1], the
    result is float in [0, 1] and equals that of ``decode.fit_picture`` up to rounding.
    """
    rows, columns = images.shape[2:]
    if rows == columns == size:
        return images
    width, height = resized_sides(columns, rows, size)
    pixels = images / 255.0 if images.dtype == torch.uint8 else images.float()
    resized = functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    left, top = (width - size) // 2, (height - size) // 2
    return resized[:, :, top : top + size, left : left + size]
