"""Encoded images into one preallocated uint8 array."""

import io
import math
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dfs_rl.data.images import MIN_SIDE
from dfs_rl.data.pixels import resized_sides
from dfs_rl.errors import DataError

# The others of Pillow's decoders are little tried, and some end a process or fill its memory.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_CONVERTED = {
    "1": "L",
    "CMYK": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
    "P": "RGB",
    "PA": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
}
_EXIF = "exif"
_MAX_FILE_BYTES = 2**30


class EncodedImage(NamedTuple):
    """One image of a source, not yet decoded.

    Attributes:
        row: Its number within the source.
        data: The encoded bytes, or the file that holds them.
        place: Where it came from, for messages.
    """

    row: int
    data: bytes | Path
    place: str


def fit_picture(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size``, antialiased bilinear, and crop the centre.

    Pillow computes it in whole numbers, so that the same pixels come out on every machine.
    ``pixels.fit_images`` does the same to tensors.
    """
    if picture.size == (size, size):
        return picture
    width, height = resized_sides(picture.width, picture.height, size)
    across, down = picture.width / width, picture.height / height
    left, top = (width - size) // 2, (height - size) // 2
    # Only what is left after the crop is computed: the same pixels, and long images cost no more.
    part = (left * across, top * down, (left + size) * across, (top + size) * down)
    # By channel, for Pillow would weigh colours by their alpha, which a network does not.
    bands = [
        band.resize((size, size), Image.Resampling.BILINEAR, box=part) for band in picture.split()
    ]
    return Image.merge(picture.mode, bands)


class ImageArray:
    """An array uint8 ``[n, c, h, w]`` that fills image by image; the first one decides its shape.

    A palette image becomes RGB, and so do CMYK and the like; black-and-white becomes grey. Where
    grey and RGB images mix, as in many photo collections, all become RGB, without loss. Other
    mixtures, and 16-bit or floating-point grey, are refused.

    Each image is written to its final place, so the peak is ``n * c * h * w`` bytes and a little.

    Args:
        n: How many images there will be.
        image_size: Height and width that all are resized and cropped to; None refuses images of
            several sizes.
    """

    def __init__(self, n: int, *, image_size: int | None = None) -> None:
        self._n = n
        self._image_size = image_size
        self._pixels: NDArray[np.uint8] | None = None
        self._first = ""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The array; complete once every row was put."""
        if self._pixels is None:
            raise DataError("there is no image to read.")
        return self._pixels

    def put(self, index: int, image: EncodedImage) -> None:
        """Decode ``image`` into row ``index``.

        Raises:
            DataError: If it cannot be decoded, or differs from the first one in size or kind.
        """
        try:
            decoded = _read(image)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{image.place} is not a readable image ({_brief(error)}); allowed are "
                f"{', '.join(FORMATS)}."
            ) from error
        self._store(index, decoded, image.place)

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
            self._pixels = allocate((self._n, channels, height, width))
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


def _read(image: EncodedImage) -> Image.Image:
    if isinstance(image.data, bytes):
        source: Path | io.BytesIO = io.BytesIO(image.data)
    else:
        source = image.data
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device never ends
            raise DataError(f"{image.place} is no regular file; images must be.")
        if status.st_size > _MAX_FILE_BYTES:  # some decoders read it all at once
            raise DataError(
                f"{image.place} has {status.st_size} bytes; allowed are {_MAX_FILE_BYTES}."
            )
    with Image.open(source, formats=FORMATS) as picture:
        return _decode(picture, image.place)


def _decode(picture: Image.Image, place: str) -> Image.Image:
    mode = picture.mode
    if mode not in _CHANNELS and mode not in _CONVERTED:
        raise DataError(
            f"{place} has pixels of kind {mode!r}; allowed are 8-bit images: grey, RGB, with or "
            "without alpha, palette or CMYK."
        )
    if _EXIF in picture.info:  # photos that a camera stored lying on their side
        picture = ImageOps.exif_transpose(picture)
    picture.info.pop("transparency", None)  # a palette's; Pillow warns where RGB cannot hold it
    if mode in _CONVERTED:
        return picture.convert(_CONVERTED[mode])
    picture.load()
    return picture


def allocate(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Refuse what cannot fit instead of meeting the kernel's out-of-memory killer an hour later."""
    n_bytes = math.prod(shape)
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not told on this system
        installed = n_bytes
    if n_bytes > installed:
        n, channels, height, width = shape
        raise DataError(
            f"{n} images of {channels} x {height} x {width} need {n_bytes / 1e9:.1f} GB, this "
            f"machine has {installed / 1e9:.1f} GB; take fewer (limit) or smaller images."
        )
    return np.zeros(shape, dtype=np.uint8)


def _brief(error: Exception) -> str:
    """First line of an error, or its type where it says nothing."""
    if isinstance(error, UnidentifiedImageError):  # its text is the address of a buffer
        return "of none of the allowed formats, or damaged"
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
