"""Image files that viewers show: they are read by both decoders, or the reason is the true one."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipelines import images
from pipelines.enhancement.photo_files import read_photograph

PICTURE = (np.indices((64, 96, 3)).sum(axis=0) % 256).astype(np.uint8)
GREY = PICTURE[:, :, 0]
Decode = Callable[[bytes], NDArray[Any]]


def encoded(file_format: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PICTURE).save(sink, format=file_format, **options)
    return sink.getvalue()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, pixels, **options)
    return sink.getvalue()


def text(kind: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    getattr(info, kind)("history", "a" * 3_000_000, zip=True)
    return info


def in_two_segments(jpeg: bytes) -> bytes:
    """A JPEG with an EXIF block of 80 kB, which has room in two segments only."""
    exif = Image.Exif()
    exif[0x010F] = "Somebody"
    block = exif.tobytes().removeprefix(b"Exif\0\0") + bytes(80_000)
    parts = (b"Exif\0\0" + part for part in (block[:60_000], block[60_000:]))
    segments = (b"\xff\xe1" + (len(part) + 2).to_bytes(2) + part for part in parts)
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


@pytest.fixture(params=["pairs", "photographs"])
def decode(request: pytest.FixtureRequest) -> Decode:
    return images.decode if request.param == "pairs" else lambda data: read_photograph(data).pixels


@pytest.mark.parametrize(
    "data",
    [
        *(encoded("PNG", pnginfo=text(kind)) for kind in ("add_text", "add_itxt")),
        encoded("PNG", icc_profile=bytes(2_500_000)),
        in_two_segments(encoded("JPEG", quality=100, subsampling=0)),
    ],
    ids=["text chunk", "international text chunk", "colour profile", "EXIF in two segments"],
)
def test_files_with_much_beside_their_pixels_are_read(decode: Decode, data: bytes) -> None:
    assert np.abs(decode(data).astype(int) - PICTURE).max() <= 4


def deep_grey_png_with_alpha() -> bytes:
    """`GREY` with 16 bits and an alpha channel, as Pillow cannot write it."""
    planes = np.dstack([GREY.astype(np.uint16) * 257, np.full(GREY.shape, 40_000, np.uint16)]).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", GREY.shape[1], GREY.shape[0], 16, 4, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_grey_of_16_bits_with_alpha_is_read(decode: Decode) -> None:
    pixels = decode(deep_grey_png_with_alpha())
    assert np.array_equal(images.to_8_bit(pixels), np.dstack([GREY] * 3))


def test_a_tiff_whose_second_page_is_a_thumbnail_is_read(decode: Decode) -> None:
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as file:
        file.write(PICTURE, photometric="rgb")
        file.write(PICTURE[::4, ::4], photometric="rgb", subfiletype=1)
    assert np.array_equal(decode(sink.getvalue()), PICTURE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(PICTURE / np.float32(255), photometric="rgb"), "a TIFF with 3 channels of float32, but must be grey or"),
        (tiff(PICTURE.astype(np.uint32), photometric="rgb"), "a TIFF with 3 channels of uint32, but must be grey or"),
        (tiff(GREY.astype(np.float64)), "a TIFF with 1 channels of float64, but must be grey or RGB of 8 or 16 bits"),
        (tiff(np.dstack([GREY, GREY]).astype(np.uint16), planarconfig="contig"), "2 channels of uint16"),
        (tiff(GREY.astype(np.float32)), "its F-mode pixels .* have no stated range"),
        (tiff(GREY.astype(np.uint32)), "its I-mode pixels .* have no stated range"),
        (b"II*\0" + bytes(40), "a damaged TIFF"),
    ],
)
def test_tiffs_of_other_kinds_are_refused_with_the_true_reason(decode: Decode, data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [encoded("JPEG")[:-2], encoded("JPEG", quality=100)[:-300], encoded("PNG")[:-60], encoded("TIFF")[:-6000]],
    ids=["JPEG without its last two bytes", "JPEG", "PNG", "TIFF"],
)
def test_a_file_without_its_end_is_read_if_that_is_allowed(decode: Decode, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"truncated.*; --allow-truncated reads what is there"):
        decode(data)
    there = images.with_or_without_end(lambda: decode(data), allow_truncated=True)
    assert np.abs(there[:20].astype(int) - PICTURE[:20]).mean() < 4
    with pytest.raises(ValueError, match="truncated"):
        decode(data)
    assert np.abs(images.decode(images.repaired(data))[:20].astype(int) - PICTURE[:20]).mean() < 4


@pytest.mark.parametrize("data", [encoded("JPEG"), b"no image", b""])
def test_only_what_lacks_its_end_is_repaired(data: bytes) -> None:
    assert images.repaired(data) == data
