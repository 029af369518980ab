"""Decoding: what is converted, how, and what is refused with which reason."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines import images

ORIENTATION = 0x0112


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=file_format, **options)
    return sink.getvalue()


def picture(height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 in which every row, column and channel differs."""
    y, x, channel = np.indices((height, width, 3))
    return (20 * y + 3 * x + 70 * channel).astype(np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_come_back_exactly(file_format: str) -> None:
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    assert np.array_equal(images.decode(encoded(Image.fromarray(picture()), file_format, **options)), picture())


def test_jpeg_comes_back_nearly() -> None:
    flat = np.full((16, 16, 3), 120, np.uint8)
    assert np.abs(images.decode(encoded(Image.fromarray(flat), "JPEG", quality=95)).astype(int) - 120).max() <= 2


def test_png_encoding_is_lossless_and_repeatable() -> None:
    data = images.encode_png(picture())
    assert np.array_equal(images.decode(data), picture())
    assert data == images.encode_png(picture())


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_the_high_byte(file_format: str) -> None:
    values = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    decoded = images.decode(encoded(Image.fromarray(values), file_format))
    assert decoded.shape == (1, 5, 3)
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 156, 255]
    assert (decoded == decoded[:, :, :1]).all()


def test_16_bit_rgb_keeps_the_high_byte() -> None:
    import cv2  # noqa: PLC0415 - Pillow cannot write 16-bit RGB

    rgb = np.array([[[0, 255, 256], [40_000, 65_535, 513]]], np.uint16)
    _, data = cv2.imencode(".png", rgb[:, :, ::-1])
    assert images.decode(data.tobytes())[0].tolist() == [[0, 0, 1], [156, 255, 2]]


def test_grey_becomes_three_equal_channels() -> None:
    grey = picture()[:, :, 0]
    assert np.array_equal(images.decode(encoded(Image.fromarray(grey))), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("alpha", [0, 90, 255])
def test_alpha_is_dropped_and_not_blended(alpha: int) -> None:
    rgba = np.concatenate([picture(), np.full((6, 9, 1), alpha, np.uint8)], axis=2)
    assert np.array_equal(images.decode(encoded(Image.fromarray(rgba))), picture())


def test_palette_becomes_rgb() -> None:
    few = (picture() // 128) * 255
    palette = Image.fromarray(few).quantize(8)
    assert np.array_equal(images.decode(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert (images.decode(encoded(cmyk, "JPEG")) >= 254).all()


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(orientation: int, turn: Callable[[Any], Any]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert np.array_equal(images.decode(encoded(Image.fromarray(picture()), exif=exif)), turn(picture()))


def test_npy_holds_bgr() -> None:
    sink = io.BytesIO()
    np.save(sink, picture()[:, :, ::-1])
    assert np.array_equal(images.decode(sink.getvalue()), picture())


def npy(array: NDArray[np.generic]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (encoded(Image.fromarray(picture(64, 64)))[:200], "(?i)truncated|broken"),
        (encoded(Image.fromarray(picture(64, 64)), "JPEG")[:500], "(?i)truncated|broken"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "no stated range"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"), "no stated range"),
        (
            encoded(Image.new("RGB", (4, 4)), "TIFF", save_all=True, append_images=[Image.new("RGB", (4, 4))]),
            "2 frames",
        ),
        (npy(np.zeros((4, 4), np.uint8)), "must be uint8"),
        (npy(np.zeros((4, 4, 3), np.float32)), "must be uint8"),
        (npy(np.zeros((4, 4, 3), np.uint8))[:90], "cannot be read"),
    ],
)
def test_what_is_no_photograph_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        images.decode(data)


def test_pickles_in_npy_are_refused() -> None:
    sink = io.BytesIO()
    np.save(sink, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        images.decode(sink.getvalue())


DAMAGEABLE = [
    encoded(Image.fromarray(picture(40, 40))),
    encoded(Image.fromarray(picture(40, 40)), "JPEG"),
    encoded(Image.fromarray(picture(40, 40)), "WEBP"),
    encoded(Image.fromarray(picture(40, 40)), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(picture(40, 40)), "BMP"),
    npy(picture(8, 8)),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(DAMAGEABLE), st.data())
def test_damage_is_refused_or_harmless_but_never_a_crash(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    damaged = damaged[: draw.draw(st.integers(0, len(data)))]
    try:
        decoded = images.decode(bytes(damaged))
    except ValueError as error:
        assert str(error)
    else:
        assert decoded.dtype == np.uint8
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DAMAGEABLE), st.floats(0, 1, exclude_max=True))
def test_a_truncated_image_is_never_read_as_another(data: bytes, share: float) -> None:
    try:
        decoded = images.decode(data[: int(share * len(data))])
    except ValueError:
        return
    assert np.array_equal(decoded, images.decode(data))


def test_an_image_too_large_to_be_read_is_refused_by_its_header() -> None:
    sink = io.BytesIO()
    Image.new("1", (20_000, 13_000)).save(sink, format="PNG")
    with pytest.raises(ValueError, match=r"it has 260\.0 megapixels, but at most 250 are read"):
        images.decode(sink.getvalue())
