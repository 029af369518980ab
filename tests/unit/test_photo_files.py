"""Photographs as files: what is read is written back in kind."""

import dataclasses
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import IFD

from pipelines.enhancement.photo_files import megapixels_of, read_photograph, write_photograph
from pipelines.enhancement.photograph import TooLargeError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER, ORIENTATION, TAKEN = 0x010F, 0x0112, 0x9003


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def exif(orientation: int = 1) -> Image.Exif:
    block = Image.Exif()
    block[MAKER], block[ORIENTATION] = "Somebody", orientation
    block[IFD.Exif] = {TAKEN: "2026:11:22 12:00:00"}
    return block


def encode(image: NDArray[Any], name: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format=name, **options)
    return sink.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def brightened(data: bytes) -> Image.Image:
    """What comes back when every pixel is set to one colour of the right type."""
    photograph = read_photograph(data)
    return opened(write_photograph(photograph, np.full_like(photograph.pixels, 200)))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_format_profile_and_exif_are_kept(image: NDArray[np.uint8], name: str) -> None:
    result = brightened(encode(image, name, exif=exif().tobytes(), icc_profile=PROFILE))
    assert result.format == name
    assert result.info["icc_profile"] == PROFILE
    assert result.getexif()[MAKER] == "Somebody"
    assert result.getexif().get_ifd(IFD.Exif)[TAKEN] == "2026:11:22 12:00:00"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "16-bit TIFF"])
def test_exif_that_is_not_ascii_is_kept(image: NDArray[np.uint8], name: str) -> None:
    """And the directories of a 16-bit TIFF."""
    block = exif()
    block[MAKER] = "J\u00fcrgen".encode()  # as cameras write it: UTF-8 bytes in an ASCII field
    block[IFD.GPSInfo] = {1: "N", 2: (47.0, 22.0, 0.5)}
    if name == "16-bit TIFF":
        data = encode(image, "TIFF", tiffinfo=dict(block))
        original = dataclasses.replace(read_photograph(data), pixels=image.astype(np.uint16) * 257)
        again = read_photograph(write_photograph(original, original.pixels))
        np.testing.assert_array_equal(again.pixels, original.pixels)
        result = opened(write_photograph(again, again.pixels))
    else:
        result = brightened(encode(image, name, **({"tiffinfo": dict(block)} if name == "TIFF" else {"exif": block})))
    found = result.getexif()
    assert found[MAKER].encode("latin-1").decode() == "J\u00fcrgen"
    assert found.get_ifd(IFD.Exif)[TAKEN] == "2026:11:22 12:00:00"
    assert tuple(map(float, found.get_ifd(IFD.GPSInfo)[2])) == (47.0, 22.0, 0.5)


def test_bmp_is_kept(image: NDArray[np.uint8]) -> None:
    assert brightened(encode(image, "BMP")).format == "BMP"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF"])
def test_orientation_is_applied_once(image: NDArray[np.uint8], name: str, orientation: int) -> None:
    data = encode(image, name, exif=exif(orientation).tobytes(), **({"quality": 100} if name == "JPEG" else {}))
    photograph = read_photograph(data)
    upright = np.asarray(ImageOps.exif_transpose(opened(data)))
    np.testing.assert_array_equal(photograph.pixels, upright)
    result = opened(write_photograph(photograph, photograph.pixels))
    assert result.size == (upright.shape[1], upright.shape[0])
    assert result.getexif().get(ORIENTATION, 1) == 1
    assert result.getexif()[MAKER] == "Somebody"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_orientation_of_16_bit_is_that_of_8_bit(image: NDArray[np.uint8], name: str, orientation: int) -> None:
    upright = read_photograph(encode(image, "PNG", exif=exif(orientation).tobytes())).pixels
    deep = image.astype(np.uint16) * 257
    if name == "PNG":
        block = np.frombuffer(exif(orientation).tobytes()[6:], np.uint8)
        data = bytes(
            cv2.imencodeWithMetadata(
                ".png", np.ascontiguousarray(deep[:, :, ::-1]), [cv2.IMAGE_METADATA_EXIF], [block]
            )[1]
        )
    else:
        sink = io.BytesIO()
        tifffile.imwrite(
            sink, deep, photometric="rgb", metadata=None, extratags=[(ORIENTATION, 3, 1, orientation, True)]
        )
        data = sink.getvalue()
    photograph = read_photograph(data)
    assert photograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photograph.pixels, upright.astype(np.uint16) * 257)
    np.testing.assert_array_equal(
        read_photograph(write_photograph(photograph, photograph.pixels)).pixels, photograph.pixels
    )


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_in_16_bit_out(name: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    sink = io.BytesIO()
    tifffile.imwrite(
        sink,
        deep.squeeze(),
        photometric="rgb" if channels > 1 else "minisblack",
        extrasamples=["unassalpha"] if channels == 4 else None,
        iccprofile=PROFILE if channels > 1 else None,
        extratags=[(MAKER, 2, 0, "Somebody", True)],
        metadata=None,
    )
    tiff = read_photograph(sink.getvalue())
    data = sink.getvalue() if name == "TIFF" else write_photograph(dataclasses.replace(tiff, format="PNG"), tiff.pixels)
    photograph = read_photograph(data)
    assert photograph.grey == (channels == 1)
    result = write_photograph(photograph, np.maximum(photograph.pixels, 1))
    again = read_photograph(result)
    assert (again.format, again.pixels.dtype, again.grey) == (name, np.dtype(np.uint16), channels == 1)
    assert np.abs(again.pixels.astype(int) - np.maximum(deep[:, :, :3], 1)).max() <= (1 if channels == 1 else 0)
    assert again.icc == (PROFILE if channels > 1 else b"")
    assert opened(result).getexif()[MAKER] == "Somebody"
    if channels == 4:
        assert again.alpha is not None
        np.testing.assert_array_equal(again.alpha, deep[:, :, 3])


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_alpha_passes_through(image: NDArray[np.uint8], name: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, image.shape[:2], dtype=np.uint8)
    result = brightened(
        encode(np.dstack([image, alpha]), name, **({"lossless": True, "exact": True} if name == "WEBP" else {}))
    )
    assert result.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(result)[:, :, 3], alpha)
    assert (np.asarray(result)[:, :, :3] == 200).all()


def test_grey_stays_grey_and_cmyk_becomes_rgb(image: NDArray[np.uint8]) -> None:
    assert brightened(encode(image[:, :, 0], "PNG")).mode == "L"
    sink = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(sink, format="JPEG", icc_profile=PROFILE)
    result = brightened(sink.getvalue())
    assert result.mode == "RGB"
    assert "icc_profile" not in result.info


def test_webp_stays_lossless_or_lossy(image: NDArray[np.uint8]) -> None:
    assert read_photograph(encode(image, "WEBP", lossless=True, icc_profile=PROFILE)).lossless
    assert not read_photograph(encode(image, "WEBP", quality=80, icc_profile=PROFILE)).lossless


def test_same_pixels_give_the_same_bytes(image: NDArray[np.uint8]) -> None:
    for name in ("PNG", "JPEG", "WEBP", "TIFF"):
        photograph = read_photograph(encode(image, name, exif=exif().tobytes()))
        assert write_photograph(photograph, image) == write_photograph(photograph, image)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"GIF89a nothing", "not an image"),
        (encode(np.zeros((64, 64, 3), np.uint8), "PNG")[:60], "."),
        (encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "JPEG")[:900], "truncated"),
        (encode(np.zeros((8, 8), np.int32), "TIFF"), "32 bits"),
    ],
)
def test_what_is_no_photograph_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_photograph(data)


def test_size_is_refused_before_it_is_decoded(image: NDArray[np.uint8]) -> None:
    with pytest.raises(TooLargeError, match=r"megapixels, but at most 0\.0005 are enhanced; raise --max-megapixels"):
        read_photograph(encode(image, "PNG")[:100], 0.0005)


def deep_tiff(samples: NDArray[np.uint16], **options: Any) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, samples, metadata=None, **options)
    return sink.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_separate_planes_of_16_bit(image: NDArray[np.uint8], orientation: int) -> None:
    deep = image.astype(np.uint16) * 257
    tags = [(ORIENTATION, 3, 1, orientation, True)]
    planes = np.moveaxis(deep, -1, 0)
    data = deep_tiff(planes, photometric="rgb", planarconfig="separate", compression="zlib", extratags=tags)
    photograph = read_photograph(data)
    np.testing.assert_array_equal(photograph.pixels, np.rot90(deep, -1) if orientation == 6 else deep)
    again = read_photograph(write_photograph(photograph, photograph.pixels))
    np.testing.assert_array_equal(again.pixels, photograph.pixels)


def test_white_is_zero_in_16_bit_grey(image: NDArray[np.uint8]) -> None:
    deep = image[:, :, 0].astype(np.uint16) * 257
    photograph = read_photograph(deep_tiff(65535 - deep, photometric="miniswhite"))
    assert photograph.grey
    np.testing.assert_array_equal(photograph.pixels[:, :, 1], deep)
    again = read_photograph(write_photograph(photograph, photograph.pixels))
    assert np.abs(again.pixels[:, :, 1].astype(int) - deep).max() <= 1


def test_colours_that_were_multiplied_by_alpha_are_divided_by_it(image: NDArray[np.uint8]) -> None:
    alpha = np.full(image.shape[:2], 40_000, np.uint16)
    alpha[:5] = 0
    stored = np.rint(image * 257.0 * alpha[:, :, None] / 65535).astype(np.uint16)
    data = deep_tiff(np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    photograph = read_photograph(data)
    np.testing.assert_array_equal(photograph.alpha, alpha)
    assert np.abs(photograph.pixels[5:] - image[5:] * 257.0).max() <= 1
    assert not photograph.pixels[:5].any()


def test_other_colours_of_16_bit_are_refused(image: NDArray[np.uint8]) -> None:
    cmyk = np.zeros((20, 30, 4), np.uint16)
    with pytest.raises(ValueError, match="colours are of TIFF's kind 5, but must be grey or RGB"):
        read_photograph(deep_tiff(cmyk, photometric="separated"))


@pytest.mark.parametrize("grey", [False, True])
def test_a_transparent_colour_of_16_bit_png_becomes_alpha(image: NDArray[np.uint8], grey: bool) -> None:
    deep = image.astype(np.uint16)[:, :, : 1 if grey else 3] * 257 + 1
    key = deep[3, 4]
    data = cv2.imencode(".png", deep[:, :, ::-1])[1].tobytes()
    chunk = b"tRNS" + key.astype(">u2").tobytes()
    block = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    photograph = read_photograph(data[:33] + block + data[33:])  # behind IHDR
    np.testing.assert_array_equal(photograph.pixels, np.broadcast_to(deep, image.shape))
    assert photograph.alpha is not None
    np.testing.assert_array_equal(photograph.alpha == 0, (deep == key).all(axis=2))
    again = read_photograph(write_photograph(photograph, photograph.pixels))
    np.testing.assert_array_equal(again.alpha, photograph.alpha)


@pytest.mark.filterwarnings("error")
def test_the_limit_is_the_one_that_is_set_and_no_other() -> None:
    """Pillow has one of its own, at 179 megapixels, and warns from half of that on."""
    sink = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(sink, format="PNG")
    assert megapixels_of(sink.getvalue()) == 200
    with pytest.raises(TooLargeError, match=r"200\.0 megapixels, but at most 150 are enhanced; raise --max-megapixels"):
        read_photograph(sink.getvalue(), 150)
