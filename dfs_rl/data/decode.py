"""Decoding of images into a preallocated uint8 array."""

import io
import math
import stat
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dfs_rl.data.images import MIN_SIDE
from dfs_rl.data.pixels import resized_sides
from dfs_rl.errors import DataError
from dfs_rl.utils.device import free_bytes

# Pillow's other decoders are little tested; some crash the process or exhaust its memory.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_CONVERTED = {
    "1": "L",
    "PA": "RGBA",
    **dict.fromkeys(("CMYK", "HSV", "LAB", "P", "RGBX", "YCbCr"), "RGB"),
}
_MAX_FILE_BYTES = 2**30


ImageData = bytes | Path | Image.Image
"""An encoded image, its file, or a decoded image."""


def fit_picture(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` pixels, antialiased bilinear, and crop the centre.

    Pillow resizes in integer arithmetic, so the result is the same on every machine.
    """
    if picture.size == (size, size):
        return picture
    width, height = resized_sides(picture.width, picture.height, size)
    across, down = picture.width / width, picture.height / height
    left, top = (width - size) // 2, (height - size) // 2
    # Computes only the cropped region: the same pixels, without extra work for long images.
    part = (left * across, top * down, (left + size) * across, (top + size) * down)
    # Channels are resized separately, since Pillow weights colours by alpha and a network does not.
    bands = [
        band.resize((size, size), Image.Resampling.BILINEAR, box=part) for band in picture.split()
    ]
    return Image.merge(picture.mode, bands)


class ImageArray:
    """Array uint8 ``[n, c, h, w]`` that is filled image by image; the first one sets its shape.

    Palette images, CMYK and similar kinds become RGB; black-and-white becomes grey. A mixture of
    grey and RGB images, common in photo collections, becomes RGB without loss. Other mixtures, and
    16-bit or floating-point grey, are errors. All images are resized and cropped to ``image_size``
    pixels; None requires images of equal size.

    Each image is written to its final position, so peak memory is a little above ``n * c * h * w``
    bytes; turning a grey array into RGB adds a copy.
    """

    def __init__(self, n: int, *, image_size: int | None = None) -> None:
        self._n = n
        self._image_size = image_size
        self._pixels: NDArray[np.uint8] | None = None
        self._first = ""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Pixels, uint8 ``[n, c, h, w]``, complete after ``put`` of every row."""
        assert self._pixels is not None
        return self._pixels

    def put(self, index: int, data: ImageData, place: str) -> None:
        """Decode an image into row ``index``; errors name its ``place``."""
        try:
            picture = _read(data, place)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{place} is not a readable image ({brief(error)}); allowed are "
                f"{', '.join(FORMATS)}."
            ) from error
        self._store(index, picture, place)

    def _store(self, index: int, picture: Image.Image, place: str) -> None:
        width, height = picture.size
        if min(picture.size) < MIN_SIDE:
            raise DataError(
                f"{place} is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are "
                "needed."
            )
        if self._image_size is not None:
            width = height = self._image_size
        channels = _CHANNELS[picture.mode]
        if self._pixels is None:
            self._pixels = _allocate((self._n, channels, height, width))
            self._first = place
        _, expected, expected_height, expected_width = self._pixels.shape
        if (width, height) != (expected_width, expected_height):
            raise DataError(
                f"{place} is {width} x {height} pixels but {self._first} is {expected_width} x "
                f"{expected_height}; all images must have one size: --image-size N, or "
                "load_dataset(..., image_size=N), resizes their shorter sides to N pixels and "
                "crops the centres."
            )
        if self._image_size is not None:
            picture = fit_picture(picture, self._image_size)
        if {channels, expected} == {_CHANNELS["L"], _CHANNELS["RGB"]}:
            if expected == _CHANNELS["L"]:
                self._pixels = np.repeat(self._pixels, _CHANNELS["RGB"], axis=1)
            picture = picture.convert("RGB")
        elif channels != expected:
            kinds = {count: mode for mode, count in _CHANNELS.items()}
            raise DataError(
                f"{place} is {kinds[channels]} but {self._first} is {kinds[expected]}; images with "
                "and without an alpha channel cannot be mixed."
            )
        values = np.asarray(picture)  # [h, w] or [h, w, c]
        self._pixels[index] = np.moveaxis(np.atleast_3d(values), 2, 0)


def _read(data: ImageData, place: str) -> Image.Image:
    if isinstance(data, Image.Image):
        return _eight_bit(data, place)
    if isinstance(data, Path):
        status = data.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise DataError(f"{place} is no regular file; images must be.")
        if status.st_size > _MAX_FILE_BYTES:  # some decoders read the whole file
            raise DataError(f"{place} has {status.st_size} bytes; allowed are {_MAX_FILE_BYTES}.")
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    with Image.open(source, formats=FORMATS) as picture:
        return _eight_bit(picture, place)


def _eight_bit(picture: Image.Image, place: str) -> Image.Image:
    mode = picture.mode
    if mode not in _CHANNELS and mode not in _CONVERTED:
        raise DataError(
            f"{place} has pixels of kind {mode!r}; allowed are 8-bit images: grey, RGB, with or "
            "without alpha, palette or CMYK."
        )
    if "exif" in picture.info:  # cameras store the orientation of photos in EXIF
        picture = ImageOps.exif_transpose(picture)
    picture.info.pop("transparency", None)  # of palettes; Pillow warns if RGB cannot store it
    if mode in _CONVERTED:
        return picture.convert(_CONVERTED[mode])
    picture.load()
    return picture


def _allocate(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Allocate a zero array ``[n, c, h, w]`` after a check that the machine has enough memory.

    Without the check, the out-of-memory killer would end the process while the array fills.
    """
    n_bytes, free = math.prod(shape), free_bytes(torch.device("cpu"))
    if n_bytes > free:
        n, channels, height, width = shape
        raise DataError(
            f"{n} images of {channels} x {height} x {width} need {n_bytes / 1e9:.1f} GB, this "
            f"machine has {free / 1e9:.1f} GB free; take fewer (limit) or smaller images."
        )
    return np.zeros(shape, dtype=np.uint8)


def brief(error: Exception) -> str:
    """Return the first line of an error, or its type if it has no text."""
    if isinstance(error, UnidentifiedImageError):  # its text contains only a buffer's address
        return "of none of the allowed formats, or damaged"
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__
