import io
import os

import numpy as np
import pytest
from PIL import Image

from dfs_rl.data.decode import ImageArray
from dfs_rl.errors import DataError


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(*pictures: bytes) -> np.ndarray:
    array = ImageArray(len(pictures))
    for index, data in enumerate(pictures):
        array.put(index, data, f"picture {index}")
    return array.pixels


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_eight_bit_kinds_keep_their_channels(numbered, mode, channels):
    picture = numbered(0, mode=mode)
    pixels = decode(encode(picture))
    assert pixels.shape == (1, channels, 6, 6)
    for channel, band in enumerate(picture.split()):
        assert np.array_equal(pixels[0, channel], np.asarray(band))


def test_black_and_white_becomes_grey(numbered):
    picture = numbered(0, mode="1")
    assert np.array_equal(decode(encode(picture))[0, 0], np.asarray(picture) * np.uint8(255))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255])])
def test_palette_becomes_rgb_without_transparency(numbered, transparency):
    picture = numbered(0, mode="P")
    options = {} if transparency is None else {"transparency": transparency}
    pixels = decode(encode(picture, **options))
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    assert np.array_equal(pixels[0], palette[np.asarray(picture)].transpose(2, 0, 1))


def test_cmyk_becomes_rgb():
    picture = Image.new("CMYK", (5, 5), (255, 0, 0, 0))  # cyan
    pixels = decode(encode(picture, "TIFF"))
    assert pixels[0, :, 2, 2].tolist() == [0, 255, 255]


@pytest.mark.parametrize("grey_first", [True, False])
def test_grey_among_rgb_becomes_rgb(numbered, grey_first):
    grey, colour = numbered(0, mode="L"), numbered(1)
    pictures = [grey, colour] if grey_first else [colour, grey]
    pixels = decode(*(encode(picture) for picture in pictures))
    for picture, values in zip(pictures, pixels, strict=True):
        assert np.array_equal(values, np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def test_exif_orientation_is_applied(numbered):
    picture = numbered(0).resize((8, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = decode(encode(picture, exif=exif))
    upright = np.rot90(np.asarray(picture), -1)
    assert np.array_equal(pixels[0], upright.transpose(2, 0, 1))
    with pytest.raises(DataError, match="picture 1 is 8 x 5 pixels but picture 0 is 5 x 8"):
        decode(encode(picture, exif=exif), encode(picture))


def refusal(*pictures: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode(*pictures)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_16_bit_and_float_images_are_refused(mode):
    values = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    picture = Image.fromarray(np.full((6, 6), 700).astype(values))
    message = refusal(encode(picture, "TIFF"))
    assert "picture 0 has pixels of kind" in message
    assert "allowed are 8-bit images" in message


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"mode": "RGBA"}, "picture 1 is RGBA but picture 0 is RGB"),
        ({}, {"side": 7}, "picture 1 is 7 x 7 pixels but picture 0 is 6 x 6; all images must"),
        ({"side": 3}, {}, "picture 0 is 3 x 3 pixels; at least 4 x 4"),
    ],
)
def test_images_that_do_not_fit_are_refused(numbered, first, second, message):
    assert message in refusal(encode(numbered(0, **first)), encode(numbered(0, **second)))


@pytest.mark.parametrize("image_size", [None, 8])
@pytest.mark.parametrize("sides", [(3, 9), (9, 3)])
def test_either_side_may_be_too_small(sides, image_size):
    picture = encode(Image.new("RGB", sides))
    with pytest.raises(DataError, match=f"a is {sides[0]} x {sides[1]} pixels; at least 4 x 4"):
        ImageArray(1, image_size=image_size).put(0, picture, "a")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.8])
def test_truncated_images_are_refused(numbered, kind, part):
    picture = numbered(0, side=32)
    data = encode(picture, kind)
    assert decode(data).shape == (1, 3, 32, 32)
    assert "picture 0 is not a readable image" in refusal(data[: int(part * len(data))])


@pytest.mark.parametrize("kind", ["AVIF", "BLP", "ICO", "TGA", "EPS", "text"])
def test_other_formats_are_refused(numbered, kind):
    picture = numbered(0, side=32, mode="P" if kind == "BLP" else "RGB")
    data = b"hello, I am called cat.jpg" if kind == "text" else encode(picture, kind)
    message = refusal(data)
    assert "picture 0 is not a readable image" in message
    assert "allowed are BMP, GIF, JPEG, PNG" in message
    assert "\n" not in message
    assert "0x" not in message  # the address of a buffer


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_failing_decoder_names_the_image(numbered, monkeypatch, error):
    def fail(*args, **options):
        raise error("first line\nsecond line")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    message = refusal(encode(numbered(0)))
    assert "picture 0 is not a readable image (first line)" in message


def test_too_many_pixels_are_refused():
    header = encode(Image.new("1", (8, 8)), "BMP")
    huge = header[:18] + (30_000).to_bytes(4, "little") * 2 + header[26:]  # width and height
    assert "picture 0 is not a readable image" in refusal(huge)


def test_pipes_and_devices_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "zero.png"):
        with pytest.raises(DataError, match=f"{path} is no regular file"):
            ImageArray(1).put(0, path, str(path))


def test_huge_file_is_not_read(tmp_path, numbered):
    path = tmp_path / "sparse.webp"
    numbered(0).save(path)
    os.truncate(path, 2**40)
    with pytest.raises(DataError, match="1099511627776 bytes; allowed are 1073741824"):
        ImageArray(1).put(0, path, str(path))


def test_more_than_the_memory_is_refused(numbered):
    array = ImageArray(10**12)
    with pytest.raises(DataError, match=r"1000000000000 images of 3 x 6 x 6 need 108000\.0 GB"):
        array.put(0, encode(numbered(0)), "picture 0")
