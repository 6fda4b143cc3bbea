"""Decoding, views and normalisation against Pillow, NumPy and hand numbers."""

import dataclasses
import io
import itertools
import os
import pathlib
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections import Counter
from typing import Any

import jax
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import samples
import sklearn.datasets

from vgg_flax import config
from vgg_flax.images import augmentation, codec, preprocessing, resize

PHOTOS = {
    path.name: path.read_bytes()
    for path in (pathlib.Path(sklearn.datasets.__file__).parent / "images").glob(
        "*.jpg"
    )
}
BILINEAR = PIL.Image.Resampling.BILINEAR


def encode(picture: PIL.Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    """What Pillow makes of `data`: uint8 `[height, width, channels]`."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Pixels 1 to 255, so that zero is nothing but padding."""
    rng = np.random.default_rng((seed, height, width))
    return rng.integers(1, 256, (height, width, channels), dtype=np.uint8)


def picture_of(image: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(picture_of(image).resize((width, height), BILINEAR))
    return pixels.reshape(height, width, image.shape[-1])


def png(
    width: int, height: int, bits: int, color_type: int, samples: np.ndarray | None
) -> bytes:
    """A PNG file written by hand; `samples` big-endian `[height, width, n]`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    rows = [] if samples is None else [b"\0" + row.tobytes() for row in samples]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


# Decoding


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_photo_decodes_as_pillow_does(name: str):
    image = codec.decode(PHOTOS[name])
    assert image.shape == (427, 640, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, pillow(PHOTOS[name]))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True, "subsampling": 2},
        {"quality": 30},
        {"quality": 100, "progressive": True, "subsampling": 1},
        {"optimize": True, "restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_every_kind_of_jpeg_decodes_as_pillow_does(name: str, options: dict[str, Any]):
    # Odd sides: the last chroma samples cover half a pixel.
    odd = picture_of(pillow(PHOTOS[name])[:333, :501])
    data = encode(odd, "JPEG", **options)
    np.testing.assert_array_equal(codec.decode(data), pillow(data))


def test_a_grey_jpeg_repeats_its_channel():
    data = encode(picture_of(noise(37, 41, 1)), "JPEG")
    grey = pillow(data, "L")
    image = codec.decode(data)
    np.testing.assert_array_equal(image, np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(codec.decode(data, 1), grey)


@pytest.mark.parametrize("transform", [0, 2], ids=["CMYK", "YCCK"])
def test_a_cmyk_jpeg_decodes_as_pillow_does(transform: int):
    data = bytearray(encode(picture_of(noise(33, 47)).convert("CMYK"), "JPEG"))
    data[data.index(b"Adobe") + 11] = transform
    expected = pillow(bytes(data))
    np.testing.assert_array_equal(codec.decode(bytes(data)), expected)
    assert expected.std() > 10  # not all black: there is something to compare


def test_png_samples_come_back_unchanged():
    image = noise(19, 23)
    data = encode(picture_of(image), "PNG")
    np.testing.assert_array_equal(codec.decode(data), image)


@pytest.mark.parametrize(
    "transparency", [1, bytes([255, 0, 128])], ids=["one index", "alpha per index"]
)
def test_transparency_of_a_palette_is_ignored(transparency: int | bytes):
    palette = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 7]], np.uint8)
    indices = np.arange(63).reshape(7, 9) % 3
    picture = PIL.Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette(palette.tobytes())
    data = encode(picture, "PNG", transparency=transparency)
    np.testing.assert_array_equal(codec.decode(data), palette[indices])


def test_alpha_of_rgba_is_ignored():
    image = noise(11, 13, 4)
    data = encode(PIL.Image.fromarray(image), "PNG")
    np.testing.assert_array_equal(codec.decode(data), image[..., :3])


def test_alpha_of_grey_is_ignored():
    image = noise(11, 13, 2)
    data = png(13, 11, 8, 4, image)
    expected = np.repeat(image[..., :1], 3, axis=2)
    np.testing.assert_array_equal(codec.decode(data), expected)
    np.testing.assert_array_equal(codec.decode(data, 1), image[..., :1])


@pytest.mark.parametrize(
    ("color_type", "samples"),
    [(0, 1), (4, 2), (2, 3), (6, 4)],
    ids=["grey", "grey and alpha", "RGB", "RGBA"],
)
def test_of_16_bits_the_upper_8_are_kept(color_type: int, samples: int):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2**16, (9, 14, samples)).astype(">u2")
    colors = image[..., :3] if samples > 2 else np.repeat(image[..., :1], 3, axis=2)
    data = png(14, 9, 16, color_type, image)
    np.testing.assert_array_equal(codec.decode(data), colors >> 8)
    if samples < 3:
        expected = image[..., :1] >> 8
        np.testing.assert_array_equal(codec.decode(data, 1), expected)


def test_one_bit_becomes_black_and_white():
    bits = np.random.default_rng(0).integers(0, 2, (10, 21)).astype(bool)
    data = encode(PIL.Image.fromarray(bits), "PNG")
    expected = np.where(bits, 255, 0)[..., None]
    np.testing.assert_array_equal(codec.decode(data), expected.repeat(3, 2))
    np.testing.assert_array_equal(codec.decode(data, 1), expected)


def test_webp_decodes_as_pillow_does():
    image = noise(30, 40)
    lossless = encode(picture_of(image), "WEBP", lossless=True)
    np.testing.assert_array_equal(codec.decode(lossless), image)
    lossy = encode(picture_of(image), "WEBP", quality=50)
    np.testing.assert_array_equal(codec.decode(lossy), pillow(lossy))


def test_an_animated_gif_is_its_first_frame():
    frames = [PIL.Image.new("RGB", (8, 5), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    expected = np.broadcast_to(np.uint8([255, 0, 0]), (5, 8, 3))
    np.testing.assert_array_equal(codec.decode(data), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_exif_orientation_is_ignored(channels: int):
    picture = picture_of(noise(20, 30))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = codec.decode(encode(picture, "JPEG", exif=exif), channels)
    assert turned.shape == (20, 30, channels)
    plain = codec.decode(encode(picture, "JPEG"), channels)
    np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_colour_becomes_grey_as_pillow_makes_it(name: str):
    image = codec.decode(PHOTOS[name], channels=1)
    np.testing.assert_array_equal(image, pillow(PHOTOS[name], "L"))
    red, green, blue = np.moveaxis(pillow(PHOTOS[name]).astype(int), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601
    assert np.abs(image[..., 0] - luma).max() <= 0.51


BROKEN = {
    "nothing": b"",
    "text": b"These are not the pixels you are looking for.\n" * 9,
    "zeros": bytes(500),
    "two bytes of a JPEG": PHOTOS["china.jpg"][:2],
    "three bytes of a JPEG": PHOTOS["china.jpg"][:3],
    "a JPEG's first bytes": PHOTOS["china.jpg"][:100],
    "half a JPEG": PHOTOS["china.jpg"][: len(PHOTOS["china.jpg"]) // 2],
    "a JPEG but its last bytes": PHOTOS["flower.jpg"][:-500],
    "half a grey JPEG": encode(picture_of(noise(99, 99, 1)), "JPEG")[:2000],
    "half a CMYK JPEG": encode(picture_of(noise(99, 99, 4)).convert("CMYK"), "JPEG")[
        :9000
    ],
    "a PNG's signature": encode(picture_of(noise(50, 50)), "PNG")[:8],
    "a PNG's header": encode(picture_of(noise(50, 50)), "PNG")[:40],
    "half a PNG": encode(picture_of(noise(50, 50)), "PNG")[:4000],
    "half a WebP": encode(picture_of(noise(50, 50)), "WEBP")[:500],
    "half a GIF": encode(picture_of(noise(50, 50)), "GIF")[:1200],
    "a PNG that says 900 megapixels": png(30_000, 30_000, 8, 2, None),
    "a PNG that says 100 megapixels": png(10_000, 10_000, 8, 2, None),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_bytes_are_an_image_error(data: bytes, channels: int):
    with pytest.raises(codec.ImageError, match=f"decode {len(data)} bytes"):
        codec.decode(data, channels)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_photos_are_turned_as_exif_says_where_that_is_asked_for(
    tag: int, file_format: str
):
    picture = PIL.Image.fromarray(noise(24, 40))
    exif = PIL.Image.Exif()
    exif[0x0112] = tag
    data = encode(picture, file_format, exif=exif)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        upright = PIL.ImageOps.exif_transpose(opened)
        np.testing.assert_array_equal(
            codec.decode(data, 3, "exif"), np.asarray(upright.convert("RGB"))
        )
        np.testing.assert_array_equal(
            codec.open_image(opened, 3, "exif"), np.asarray(upright.convert("RGB"))
        )
    assert upright.size == ((24, 40) if tag > 4 else (40, 24))
    np.testing.assert_array_equal(codec.decode(data), pillow(data))  # as it was
    turned = dataclasses.replace(RGB, orientation="exif", test_scale=8, crop_size=8)
    expected = turned.test_view(np.asarray(upright.convert("RGB")))
    np.testing.assert_array_equal(turned.test_view(data), expected)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12",
        b"Exif\0\0II*\0abcdef",
    ],
)
def test_broken_exif_says_nothing(exif: bytes):
    picture = PIL.Image.fromarray(noise(8, 12))
    data, plain = encode(picture, "JPEG", exif=exif), encode(picture, "JPEG")
    np.testing.assert_array_equal(codec.decode(data, 3, "exif"), pillow(plain))


def tiff(bits: int, samples: np.ndarray, kind: int = 1) -> bytes:
    """Grey, uncompressed: samples of 12, 16 or 32 bits, of TIFF's sample format."""
    height, width = samples.shape
    if bits == 12:  # two in three bytes
        pairs = samples.reshape(-1, 2).astype(np.uint32)
        whole = pairs[:, 0] << 12 | pairs[:, 1]
        content = b"".join(int(pair).to_bytes(3, "big") for pair in whole)
    else:
        content = samples.tobytes()
    fields = [(256, width), (257, height), (258, bits), (259, 1), (262, 1)]
    fields += [(273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height)]
    fields += [(279, len(content)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    header = b"II*\0" + struct.pack("<IH", 8, len(fields))
    return header + entries + bytes(4) + content


def test_of_twelve_bits_the_upper_eight_are_kept():
    """As of 16: 4095 is white."""
    samples = np.linspace(0, 4095, 6 * 8).round().astype(np.uint16).reshape(6, 8)
    np.testing.assert_array_equal(
        codec.decode(tiff(12, samples), 1)[..., 0], samples >> 4
    )
    wide = (samples * 16).astype("<u2")
    np.testing.assert_array_equal(codec.decode(tiff(16, wide), 1)[..., 0], wide >> 8)


@pytest.mark.parametrize(
    ("dtype", "kind"), [("<u4", 1), ("<i4", 2), ("<i2", 2), ("<f4", 3)]
)
def test_other_samples_are_an_error_and_no_black_picture(dtype: str, kind: int):
    samples = np.arange(6 * 8).reshape(6, 8).astype(dtype)
    data = tiff(samples.itemsize * 8, samples, kind)
    with pytest.raises(codec.ImageError, match="expected unsigned ones of at most 16"):
        codec.decode(data)
    with pytest.raises(codec.ImageError, match="expected unsigned ones of at most 16"):
        codec.open_image(PIL.Image.fromarray(np.ones((2, 2), np.float32)))


@pytest.mark.parametrize(
    "image",
    [3, None, [[1, 2]], {"image": 1}, np.ones((2, 2)), np.ones((0, 2, 3), "u1")],
)
def test_what_is_no_image_is_told_in_a_line(image: Any):
    with pytest.raises(codec.ImageError, match="expected") as caught:
        codec.open_image(image)
    assert len(str(caught.value)) < 200


def test_an_array_of_another_library_is_an_image():
    image = noise(4, 6)
    np.testing.assert_array_equal(codec.open_image(jax.numpy.asarray(image)), image)


def claiming(file_format: str, side: int, mode: str = "RGB") -> bytes:
    """A small image whose header says `side` x `side` pixels."""
    data = bytearray(encode(PIL.Image.new(mode, (9, 9)), file_format))
    small, large = ((9).to_bytes(2, "big"), side.to_bytes(2, "big"))
    if file_format == "PPM":
        return bytes(data).replace(b"9 9", b"%d %d" % (side, side))
    if file_format in ("GIF", "BMP", "TGA"):
        small, large = small[::-1], large[::-1]
        place = {"GIF": 6, "BMP": 18, "TGA": 12}[file_format]
        step = 4 if file_format == "BMP" else 2
    else:  # the frame's header of a JPEG, baseline or progressive
        place, step = data.index(b"\xff\xc0") + 5, 2
    for at in (place, place + step):
        assert data[at : at + 2] == small
        data[at : at + 2] = large
    return bytes(data)


LIARS = {
    "JPEG": claiming("JPEG", 65_500),
    "grey JPEG": claiming("JPEG", 65_500, "L"),
    "CMYK JPEG": claiming("JPEG", 65_500, "CMYK"),
    "PNG": png(65_500, 65_500, 8, 2, None),
    "GIF": claiming("GIF", 65_500),
    "BMP": claiming("BMP", 65_500),
    "TGA": claiming("TGA", 65_500),
    "PPM": claiming("PPM", 65_500),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data", LIARS.values(), ids=LIARS)
def test_a_small_file_that_claims_many_pixels_takes_no_memory(
    data: bytes, channels: int
):
    tracemalloc.start()
    try:
        with pytest.raises(codec.ImageError):
            codec.decode(data, channels)
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_limit_of_pixels_holds_for_every_format(
    file_format: str, monkeypatch: pytest.MonkeyPatch
):
    data = encode(picture_of(noise(20, 30)), file_format)
    monkeypatch.setattr(codec, "MAX_PIXELS", 600)
    assert codec.decode(data).shape == (20, 30, 3)
    monkeypatch.setattr(codec, "MAX_PIXELS", 599)
    with pytest.raises(codec.ImageError, match="30 x 20 pixels are more than 599, wh"):
        codec.decode(data)


def test_the_environment_sets_the_limit_of_pixels():
    program = "from vgg_flax.images import codec; print(codec.MAX_PIXELS)"
    for text, said in (("400000000", "400000000"), ("4e8", "MAX_PIXELS=4e8: expected")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "VGG_FLAX_MAX_PIXELS": text},
            capture_output=True,
            text=True,
            check=False,
        )
        assert said in done.stdout + done.stderr


def test_too_little_memory_is_that_images_error(monkeypatch: pytest.MonkeyPatch):
    def exhaust(*_: Any, **__: Any) -> None:
        raise MemoryError

    data = encode(picture_of(noise(20, 30)), "PNG")
    monkeypatch.setattr(PIL.Image.Image, "convert", exhaust)
    with pytest.raises(codec.ImageError, match="bytes as an image: it takes more mem"):
        codec.decode(data)
    monkeypatch.setattr(PIL.Image.Image, "resize", exhaust)
    pixels = preprocessing.Preprocessing((0.5,) * 3, (0.5,) * 3, 16, 16)
    with pytest.raises(codec.ImageError, match="more memory than there is"):
        pixels.test_view(noise(20, 30))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_damaged_bytes_decode_as_pillow_does_or_are_an_image_error(file_format: str):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 9, (40, 56, 3)), axis=0).astype(np.uint8)
    whole = encode(picture_of(smooth), file_format)
    outcomes = Counter()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            expected = pillow(bytes(data))
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
            with pytest.raises(codec.ImageError):
                codec.decode(bytes(data))
            outcomes["refused"] += 1
        else:
            np.testing.assert_array_equal(codec.decode(bytes(data)), expected)
            outcomes["decoded"] += 1
    assert outcomes["refused"] and outcomes["decoded"]


# The test view

SIZES = [
    (427, 640),
    (640, 427),
    (256, 256),
    (300, 300),
    (257, 256),
    (255, 300),
    (301, 499),
    (499, 301),
    (100, 73),
    (73, 100),
    (31, 33),
    (33, 32),
    (8, 8),
    (3, 5),
    (1, 1),
    (1, 2),
    (1000, 7),
    (7, 1000),
]


def pillow_test_view(image: np.ndarray, scale: int, crop: int) -> np.ndarray:
    """torchvision's Resize(scale) and CenterCrop(crop), written with Pillow."""
    picture = picture_of(image)
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    new_long = int(scale * long / short)
    size = (scale, new_long) if width <= height else (new_long, scale)
    picture = picture.resize(size, BILINEAR)
    left = round((size[0] - crop) / 2.0)
    top = round((size[1] - crop) / 2.0)
    pixels = np.asarray(picture.crop((left, top, left + crop, top + crop)))
    return pixels.reshape(crop, crop, image.shape[-1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("scale", "crop"), [(256, 224), (32, 32), (40, 33), (41, 32)])
def test_the_test_view_is_torchvisions(scale: int, crop: int, channels: int):
    view = preprocessing.Preprocessing(
        (0.5,) * channels, (0.5,) * channels, scale, crop
    )
    for height, width in SIZES:
        image = noise(height, width, channels)
        if scale == 256 and 1000 in image.shape:
            continue  # 36,571 pixels wide: the smaller scales cover the shape
        expected = pillow_test_view(image, scale, crop)
        np.testing.assert_array_equal(view.test_view(image), expected)


def test_the_test_view_takes_the_rounded_middle():
    # (33 - 32) / 2 = 0.5 rounds to 0, and (35 - 32) / 2 = 1.5 to 2.
    view = preprocessing.Preprocessing((0.5,) * 3, (0.5,) * 3, 33, 32)
    wide, tall = noise(33, 35), noise(35, 33)
    np.testing.assert_array_equal(view.test_view(wide), wide[0:32, 2:34])
    np.testing.assert_array_equal(view.test_view(tall), tall[2:34, 0:32])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_test_view_decodes_bytes(channels: int, mode: str):
    view = preprocessing.Preprocessing((0.5,) * channels, (0.5,) * channels, 256, 224)
    data = PHOTOS["china.jpg"]
    expected = pillow_test_view(pillow(data, mode), 256, 224)
    np.testing.assert_array_equal(view.test_view(data), expected)


@pytest.mark.parametrize(
    ("height", "width", "scale", "expected"),
    [
        (500, 375, 256, (341, 256)),  # 341.33
        (375, 500, 256, (256, 341)),
        (600, 401, 256, (383, 256)),  # 383.04
        (1, 3, 8, (8, 24)),
        (512, 512, 256, (256, 256)),
    ],
)
def test_the_smaller_side_is_the_scale_and_the_larger_rounds_down(
    height: int, width: int, scale: int, expected: tuple[int, int]
):
    assert resize.isotropic_size(height, width, scale) == expected


# Normalisation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB = preprocessing.Preprocessing(MEAN, STD, 256, 224)


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (5, 7, 3)])
def test_normalize_is_numpys(shape: tuple[int, ...]):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    result = RGB.normalize(images)
    assert result.dtype == np.float32 and result.shape == shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_normalize_of_grey_is_by_hand():
    grey = preprocessing.Preprocessing((0.25,), (0.5,), 32, 32)
    images = np.uint8([0, 51, 255]).reshape(1, 3, 1)
    result = grey.normalize(images)
    np.testing.assert_allclose(result[0, :, 0], [-0.5, -0.1, 1.5], atol=1e-6)


def test_normalize_adds_each_images_color_shift():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    shift = rng.normal(0, 0.1, (3, 3)).astype(np.float32)
    pixels = images / 255.0 + shift.astype(float)[:, None, None, :]
    expected = (pixels - np.array(MEAN)) / np.array(STD)
    result = RGB.normalize(images, shift)
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-6)
    one = RGB.normalize(images[1], shift[1])
    np.testing.assert_allclose(one, expected[1], rtol=0, atol=3e-6)


def test_normalize_in_float64_is_exact_to_float64():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    shift = rng.normal(0, 0.1, (2, 3))
    pixels = images / 255.0 + shift[:, None, None, :]
    expected = (pixels - np.array(MEAN)) / np.array(STD)
    with jax.enable_x64(True):
        result = RGB.normalize(images, shift, dtype="float64")
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-14)


def test_normalize_takes_floats_of_0_to_255_and_gives_bfloat16():
    images = np.random.default_rng(0).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    expected = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(RGB.normalize(images), expected, rtol=0, atol=2e-6)
    result = RGB.normalize(images, dtype="bfloat16")
    assert result.dtype == "bfloat16"
    np.testing.assert_allclose(result.astype("float32"), expected, rtol=0, atol=0.05)


def test_preprocessing_survives_json_types():
    values = {"mean": [0.1], "std": [0.2], "test_scale": 40, "crop_size": 32}
    expected = preprocessing.Preprocessing((0.1,), (0.2,), 40, 32)
    assert preprocessing.Preprocessing.from_dict(values) == expected
    assert expected.channels == 1 and RGB.channels == 3


# Training views


def view_config(**fields: Any) -> config.DataConfig:
    defaults = {"train_view": "paper", "train_scale": (10, 14), "crop_size": 8}
    return config.DataConfig(**(defaults | fields))


def windows(image: np.ndarray, side: int) -> dict[bytes, tuple[int, int]]:
    """(top, left) of every window of `image`, by its pixels."""
    return {
        image[top : top + side, left : left + side].tobytes(): (top, left)
        for top in range(image.shape[0] - side + 1)
        for left in range(image.shape[1] - side + 1)
    }


def assert_uniform(counts: Counter, categories: Any) -> None:
    """Each category is drawn, about equally often: within 5 standard deviations."""
    categories = list(categories)
    assert set(counts) == set(categories)
    total, share = sum(counts.values()), 1 / len(categories)
    allowed = 5 * (total * share * (1 - share)) ** 0.5
    for category in categories:
        assert abs(counts[category] - total * share) <= allowed, (category, counts)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_paper_view_is_any_window_of_the_image_at_any_scale(channels: int):
    image = noise(9, 13, channels)
    sizes = {10: (10, 14), 11: (11, 15), 12: (12, 17), 13: (13, 18), 14: (14, 20)}
    places = {}  # pixels of a window -> (S, top, left, mirrored)
    for scale, size in sizes.items():
        for data, place in windows(resized(image, *size), 8).items():
            mirror = np.frombuffer(data, np.uint8).reshape(8, 8, channels)[:, ::-1]
            places[data] = (scale, *place, False)
            places[mirror.tobytes()] = (scale, *place, True)

    view = augmentation.make_train_view(view_config())
    rng = np.random.default_rng(0)
    # A view that is no such window has no place: a KeyError.
    drawn = [places[view(image, rng).tobytes()] for _ in range(10_000)]

    assert_uniform(Counter(scale for scale, *_ in drawn), sizes)
    assert_uniform(Counter(mirrored for *_, mirrored in drawn), [False, True])
    for scale, (height, width) in sizes.items():
        here = Counter(place[1:3] for place in drawn if place[0] == scale)
        every = itertools.product(range(height - 7), range(width - 7))
        assert_uniform(here, every)


def test_a_fixed_scale_is_kept():
    image = noise(9, 13)
    view = augmentation.make_train_view(view_config(train_scale=(12, 12), flip=False))
    rng = np.random.default_rng(0)
    places = windows(resized(image, 12, 17), 8)
    drawn = Counter(places[view(image, rng).tobytes()] for _ in range(2000))
    assert_uniform(drawn, itertools.product(range(5), range(10)))


@pytest.mark.parametrize("train_view", ["paper", "resized_crop", "pad_crop"])
def test_half_of_the_views_are_mirrored_and_none_without_flip(train_view: str):
    # Brightness rises from left to right, so that its slope shows the direction.
    image = np.repeat(np.arange(10, 250, 8, dtype=np.uint8)[None], 30, 0)[..., None]
    image = np.repeat(image, 3, axis=2)
    fields = {"train_view": train_view, "train_scale": (30, 30), "padding": 0}

    def mirrored(flip: bool) -> int:
        view = augmentation.make_train_view(
            view_config(**fields, flip=flip, crop_size=24)
        )
        rng = np.random.default_rng(0)
        crops = [view(image, rng).astype(int) for _ in range(1000)]
        return sum(crop[12, 0, 0] > crop[12, -1, 0] for crop in crops)

    assert abs(mirrored(flip=True) - 500) < 80  # 5 standard deviations
    assert mirrored(flip=False) == 0


@pytest.mark.parametrize("train_view", ["paper", "resized_crop", "pad_crop"])
def test_the_view_follows_from_the_generator(train_view: str):
    view = augmentation.make_train_view(view_config(train_view=train_view))
    image = noise(40, 50)
    once, again, other = (
        np.stack([view(image, rng) for _ in range(8)])
        for rng in map(np.random.default_rng, (5, 5, 6))
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    assert once.shape == (8, 8, 8, 3) and once.dtype == np.uint8


def uniform_distance(samples: np.ndarray) -> float:
    """Kolmogorov's distance from U(0, 1), times the root of the sample size."""
    ordered, count = np.sort(samples), len(samples)
    steps = np.arange(count + 1) / count
    above, below = steps[1:] - ordered, ordered - steps[:-1]
    return max(above.max(), below.max()) * count**0.5


def test_random_areas_are_uniform_in_area_log_aspect_and_place():
    # At most half the area: sqrt(0.5 * 4 / 3) < 1, so no draw is ever refused.
    settings = view_config(crop_area=(0.08, 0.5))
    rng = np.random.default_rng(0)
    boxes = [augmentation.random_area(settings, 4000, 4000, rng) for _ in range(4000)]
    left, top, width, height = np.array(boxes, float).T

    area = width * height / 4000**2
    log_aspect = np.log(width / height) / np.log(4 / 3)  # -1 to 1
    # 1.95 is passed once in a thousand; the seed is fixed.
    assert uniform_distance((area - 0.08) / 0.42) < 1.95
    assert uniform_distance((log_aspect + 1) / 2) < 1.95
    assert uniform_distance(left / (4000 - width)) < 1.95
    assert uniform_distance(top / (4000 - height)) < 1.95
    for first, second in itertools.combinations(
        (area, log_aspect, left / (4000 - width), top / (4000 - height)), 2
    ):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.08  # 5 / sqrt(4000)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (61, 150)])
def test_random_areas_stay_in_the_image_and_in_bounds(height: int, width: int):
    settings = view_config(crop_area=(0.2, 1.0))
    rng = np.random.default_rng(0)
    for _ in range(1000):
        left, top, w, h = augmentation.random_area(settings, height, width, rng)
        assert 0 <= left <= left + w <= width and 0 <= top <= top + h <= height
        assert w > 0 and h > 0
        # Both sides are rounded, by half a pixel at most.
        assert (w + 0.5) * (h + 0.5) >= 0.2 * height * width
        assert (w + 0.5) / (h - 0.5) >= 3 / 4 and (w - 0.5) / (h + 0.5) <= 4 / 3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (7, 1000, (495, 0, 9, 7)),  # round(7 * 4 / 3) = 9; (1000 - 9) // 2
        (1000, 7, (0, 495, 7, 9)),
        (1, 900, (449, 0, 1, 1)),
        (3, 500, (248, 0, 4, 3)),
    ],
)
def test_a_very_long_image_gives_its_middle(
    height: int, width: int, expected: tuple[int, int, int, int]
):
    settings = view_config(crop_area=(0.5, 1.0))
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert augmentation.random_area(settings, height, width, rng) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(61, 83), (20, 17), (5, 400), (1, 1)])
def test_a_resized_crop_is_pillows_crop_and_resize(
    height: int, width: int, channels: int
):
    settings = view_config(
        train_view="resized_crop", crop_size=32, crop_area=(0.08, 1.0)
    )
    view, image = augmentation.make_train_view(settings), noise(height, width, channels)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        left, top, w, h = augmentation.random_area(settings, height, width, rng)
        mirrored = rng.random() < 0.5
        # torchvision crops before it resizes: nothing outside the box bleeds in.
        cut = image[top : top + h, left : left + w]
        expected = resized(cut, 32, 32)
        result = view(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(
            result, expected[:, ::-1] if mirrored else expected
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pad_crop_is_any_window_of_the_padded_image(channels: int):
    image = noise(8, 8, channels)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    places = windows(padded, 8)
    assert len(places) == 25
    view = augmentation.make_train_view(
        view_config(train_view="pad_crop", train_scale=(8, 8), padding=2, flip=False)
    )
    rng = np.random.default_rng(0)
    drawn = Counter(places[view(image, rng).tobytes()] for _ in range(5000))
    assert_uniform(drawn, itertools.product(range(5), range(5)))


def test_a_pad_crop_scales_before_it_pads():
    image = noise(6, 9)
    places = {}
    for scale, size in {7: (7, 10), 8: (8, 12), 9: (9, 13)}.items():
        padded = np.pad(resized(image, *size), ((1, 1), (1, 1), (0, 0)))
        places |= dict.fromkeys(windows(padded, 8), scale)
    view = augmentation.make_train_view(
        view_config(train_view="pad_crop", train_scale=(7, 9), padding=1, flip=False)
    )
    rng = np.random.default_rng(0)
    drawn = Counter(places[view(image, rng).tobytes()] for _ in range(3000))
    assert_uniform(drawn, [7, 8, 9])


@pytest.mark.parametrize("train_view", ["paper", "resized_crop", "pad_crop"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_cv2_makes_other_pixels_of_the_same_view(
    train_view: str, channels: int, mode: str
):
    image = pillow(PHOTOS["china.jpg"], mode)
    fields = {"train_view": train_view, "train_scale": (256, 256), "crop_size": 224}
    both = []
    for train_resize in ("pillow", "cv2"):
        view = augmentation.make_train_view(
            view_config(**fields, train_resize=train_resize)
        )
        rng = np.random.default_rng(3)
        both.append(np.stack([view(image, rng) for _ in range(3)]).astype(float))
    difference = np.abs(both[0] - both[1]).mean()
    # Measured: 1.4 to 4.2; another crop of this photo differs by 66 and more.
    assert 0.1 < difference < 10


def test_cv2_resizes_as_opencv_does_without_antialiasing():
    # Halving by bilinear samples between two pixels: the mean of each 2 x 2 block.
    image = noise(16, 24)
    blocks = image.reshape(8, 2, 12, 2, 3).astype(float).mean((1, 3))
    result = resize.resize_cv2(image, 8, 12)
    assert np.abs(result - blocks).max() <= 1
    # At a quarter the two pixels in the middle of each four are all it looks at.
    middle = image.reshape(4, 4, 6, 4, 3)[:, 1:3, :, 1:3].astype(float).mean((1, 3))
    assert np.abs(resize.resize_cv2(image, 4, 6) - middle).max() <= 1
    # A box is that part of the image and nothing else.
    part = resize.resize_cv2(image, 4, 4, (2, 3, 10, 11))
    blocks = image[3:11, 2:10].reshape(4, 2, 4, 2, 3).astype(float).mean((1, 3))
    assert np.abs(part - blocks).max() <= 1


def test_color_shift_has_krizhevskys_covariance():
    # The published principal components of ImageNet's pixels; columns are vectors.
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [
            [-0.5675, 0.7192, 0.4009],
            [-0.5808, -0.0045, -0.8140],
            [-0.5836, -0.6948, 0.4203],
        ]
    )
    rng = np.random.default_rng(0)
    settings = view_config(color_shift=0.1)
    shifts = np.stack([augmentation.color_shift(settings, rng) for _ in range(20_000)])
    assert shifts.shape == (20_000, 3) and shifts.dtype == np.float32

    expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    along = vectors.T @ np.cov(shifts.T.astype(float)) @ vectors
    deviations = np.sqrt(np.diag(along))
    np.testing.assert_allclose(deviations, 0.1 * values, rtol=0.03)
    np.testing.assert_allclose(
        np.cov(shifts.T.astype(float)), expected, atol=0.03 * expected.max()
    )
    assert np.abs(shifts.mean(0)).max() < 5 * 0.02175 / 20_000**0.5


def test_no_view_warns_or_changes_its_image():
    image = noise(40, 50)
    before = image.copy()
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for train_view in ("paper", "resized_crop", "pad_crop"):
            view = augmentation.make_train_view(view_config(train_view=train_view))
            view(image, np.random.default_rng(0))
        RGB.test_view(image)
    np.testing.assert_array_equal(image, before)


def test_a_test_view_is_of_a_path_bytes_a_picture_or_an_array(
    tmp_path: pathlib.Path,
) -> None:
    photo, path = samples.pictures()[0], tmp_path / "a.png"
    photo.save(path)
    expected = RGB.test_view(path.read_bytes())
    array = np.asarray(photo)
    for given in (path, str(path), photo, array):
        np.testing.assert_array_equal(RGB.test_view(given), expected)
    grey = photo.convert("L")
    grey.save(path)
    expected = RGB.test_view(path.read_bytes())
    for given in (grey, np.asarray(grey), np.asarray(grey)[..., None]):
        np.testing.assert_array_equal(RGB.test_view(given), expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("no/such.png", "no/such.png: .*No such file"),
        (np.zeros((8, 8, 3), np.float32), "array of float32 of shape .*expected uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"shape \(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (7, "a int; expected a path, an image's bytes"),
    ],
)
def test_what_is_no_image_is_told(given: Any, said: str) -> None:
    with pytest.raises(codec.ImageError, match=said):
        RGB.test_view(given)


def test_a_picture_that_cannot_be_decoded_is_told(tmp_path: pathlib.Path) -> None:
    """Pillow opens a cut file, and finds that out when it is asked for the pixels."""
    path = tmp_path / "cut.png"
    samples.pictures()[0].save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with PIL.Image.open(path) as cut, pytest.raises(codec.ImageError):
        RGB.test_view(cut)
    with pytest.raises(codec.ImageError, match=r"cut\.png: cannot decode 5000 bytes"):
        RGB.test_view(path)


def test_a_picture_stays_as_it_is() -> None:
    palette = samples.pictures()[0].quantize(16)
    palette.info["transparency"] = 3
    RGB.test_view(palette)
    assert palette.info["transparency"] == 3
