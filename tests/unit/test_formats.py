"""Formats of phones and cameras: HEIF, AVIF, RAW, JFIF, thumbnails in a TIFF; metadata beside the pixels."""

import importlib.util
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD

from pipelines import formats, images
from pipelines.enhancement.metadata import fit_metadata
from pipelines.enhancement.photo_files import in_format, megapixels_of, read_photograph, write_photograph
from pipelines.enhancement.photograph import Photograph, TooLargeError, UnknownFormatError
from pipelines.pairs.ray_tasks import Surveyed, pair_row, survey_one

MAKER, ORIENTATION, TAKEN, MAKER_NOTE = 0x010F, 0x0112, 0x9003, 0x927C
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:D tiff:Orientation="6" dc:title="night"/></x:xmpmeta>'
UPRIGHT_XMP = XMP.replace(b' tiff:Orientation="6"', b"")
WHITE_LEVEL = 4095
# The file's own white balance: neutral has half as much red and two thirds as much blue as green.
NEUTRAL = (1, 2, 1, 1, 2, 3)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def exif_block(note: int = 100) -> bytes:
    exif = Image.Exif()
    exif[MAKER] = "Somebody"
    exif[IFD.Exif] = {TAKEN: "2026:11:22 12:00:00", MAKER_NOTE: bytes(note)}
    return exif.tobytes()


def encode(image: NDArray[Any], name: str, **options: Any) -> bytes:
    """A file with XMP, which Pillow's writers take in three ways."""
    if name == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    options |= {"tiffinfo": {700: XMP, MAKER: "Somebody"}} if name == "TIFF" else {"xmp": XMP, "exif": exif_block()}
    if name == "HEIF":
        pillow_heif.register_heif_opener()
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format=name, **options)
    return sink.getvalue()


def dng(cfa: NDArray[np.uint16]) -> bytes:
    """A camera's RAW file: a Bayer pattern RGGB of 12 bits, sRGB primaries, its white balance and maker."""
    identity = tuple(number for value in (1, 0, 0, 0, 1, 0, 0, 0, 1) for number in (value, 1))
    tags = [
        (33421, 3, 2, (2, 2), True),
        (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True),
        (50708, 2, 0, "Camera", True),
        (50714, 3, 1, 0, True),
        (50717, 3, 1, WHITE_LEVEL, True),
        (50721, 10, 9, identity, True),
        (50728, 5, 3, NEUTRAL, True),
        (MAKER, 2, 0, "Somebody", True),
    ]
    sink = io.BytesIO()
    tifffile.imwrite(sink, cfa, photometric=32803, extratags=tags, metadata=None, software=False)
    return sink.getvalue()


def neutral(level: float) -> NDArray[np.uint16]:
    """The sensor's values of a grey surface that reflects `level` of white's light."""
    across, down, across_blue, down_blue = NEUTRAL[0], NEUTRAL[1], NEUTRAL[4], NEUTRAL[5]
    shares = np.array([[across / down, 1.0], [1.0, across_blue / down_blue]])
    return np.rint(np.tile(shares, (32, 48)) * level * WHITE_LEVEL).astype(np.uint16)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_format_exif_and_xmp_are_kept(image: NDArray[np.uint8], name: str) -> None:
    photograph = read_photograph(encode(image, name))
    assert photograph.xmp.split() == UPRIGHT_XMP.split()  # some decoders take the orientation away themselves
    data = write_photograph(photograph, np.full_like(image, 200))
    again = read_photograph(data)
    assert (again.format, again.xmp) == (name, photograph.xmp)
    assert np.abs(again.pixels.astype(int) - 200).max() <= 1
    assert Image.open(io.BytesIO(data)).getexif()[MAKER] == "Somebody"
    assert data == write_photograph(photograph, np.full_like(image, 200))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "BMP", "16-bit PNG", "16-bit TIFF"])
def test_resolution_is_kept(image: NDArray[np.uint8], name: str) -> None:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format=name.removeprefix("16-bit "), dpi=(300, 200))
    photograph = read_photograph(sink.getvalue())
    if name.startswith("16-bit"):
        photograph = replace(photograph, pixels=image.astype(np.uint16) * 257, xmp=UPRIGHT_XMP)
    again = read_photograph(write_photograph(photograph, photograph.pixels))
    assert again.dpi == pytest.approx((300, 200), abs=0.1)
    assert (again.xmp, again.pixels.dtype) == (photograph.xmp, photograph.pixels.dtype)


def test_exif_that_is_too_long_for_a_jpeg_keeps_what_fits_and_says_so(image: NDArray[np.uint8]) -> None:
    photograph = Photograph(pixels=image, format="JPEG", exif=exif_block(note=70_000), xmp=bytes(70_000))
    fitting, notes = fit_metadata(photograph)
    assert notes == (
        "EXIF is above a JPEG's 64 kB: MakerNote (70 kB) left out",
        "XMP of 70 kB is left out: a JPEG has room for 64 kB",
    )
    result = Image.open(io.BytesIO(write_photograph(photograph, image)))
    assert result.getexif()[MAKER] == "Somebody"
    assert dict(result.getexif().get_ifd(IFD.Exif)) == {TAKEN: "2026:11:22 12:00:00"}
    assert fit_metadata(fitting) == (fitting, ())
    kept = fit_metadata(replace(photograph, format="PNG"))
    assert kept == (replace(photograph, format="PNG"), ())


def test_a_raw_file_is_developed_with_the_cameras_white_balance_at_its_own_exposure() -> None:
    """A surface that reflects a fifth of the light is grey, and as bright as sRGB has a fifth."""
    data = dng(neutral(0.2))
    assert formats.is_raw(data)
    photograph = read_photograph(data)
    assert (photograph.format, photograph.pixels.shape) == ("TIFF", (64, 96, 3))
    assert photograph.pixels.dtype == np.uint16
    inner = photograph.pixels[8:-8, 8:-8].reshape(-1, 3) / 65535
    np.testing.assert_allclose(inner, 1.055 * 0.2 ** (1 / 2.4) - 0.055, atol=0.02)
    dark = read_photograph(dng(neutral(0.02))).pixels[8:-8, 8:-8] / 65535
    assert dark.mean() == pytest.approx(1.055 * 0.02 ** (1 / 2.4) - 0.055, abs=0.02)  # not stretched
    result = Image.open(io.BytesIO(write_photograph(photograph, photograph.pixels)))
    assert (result.format, result.getexif()[MAKER]) == ("TIFF", "Somebody")
    assert megapixels_of(data) == 64 * 96 / 1e6
    with pytest.raises(TooLargeError):
        read_photograph(data, 0.001)


def test_a_dataset_keeps_the_development_of_a_raw_pair() -> None:
    low, normal = dng(neutral(0.02)), dng(neutral(0.2))
    row = pair_row(survey_one(Surveyed(pair_id="a", low="l", normal="n"), normal), low, normal)
    assert row["low"].startswith(b"\x89PNG") and row["normal"].startswith(b"\x89PNG")
    assert np.array_equal(images.decode(row["normal"]), images.decode(normal))
    assert row["low_curve"] < row["normal_luma"]


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"II*\0\x10\0\0\0CR\x02\0", "Canon CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "Canon CR3"),
        (b"FUJIFILMCCD-RAW 0201", "Fujifilm"),
        (b"IIRO\x08\0\0\0", "Olympus"),
        (b"IIU\0\x18\0\0\0", "Panasonic"),
    ],
)
def test_cameras_are_told_by_their_files_first_bytes(start: bytes, name: str) -> None:
    assert formats.is_raw(start + bytes(100))
    with pytest.raises(ValueError, match="RAW file that LibRaw cannot read"):
        read_photograph(start + bytes(100))


def test_a_plain_tiff_is_no_raw_file(image: NDArray[np.uint8]) -> None:
    assert not formats.is_raw(encode(image, "TIFF"))
    assert not formats.is_raw(b"II*\0 and then nothing of a TIFF")
    assert not formats.is_raw(b"II*\0\x08")  # cut off within its header


@pytest.mark.parametrize("deep", [False, True])
def test_a_tiff_with_thumbnails_is_one_photograph(image: NDArray[np.uint8], deep: bool) -> None:
    pixels = image.astype(np.uint16) * 257 if deep else image
    for subfile, single in ((1, True), (0, False)):
        sink = io.BytesIO()
        with tifffile.TiffWriter(sink) as writer:
            writer.write(pixels, photometric="rgb", metadata=None)
            writer.write(pixels[::4, ::4], photometric="rgb", subfiletype=subfile, metadata=None)
        if single:
            np.testing.assert_array_equal(read_photograph(sink.getvalue()).pixels, pixels)
            np.testing.assert_array_equal(images.decode(sink.getvalue()), image)
        else:
            with pytest.raises(ValueError, match="2 frames"):
                read_photograph(sink.getvalue())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/IMG.JFIF", ""),
        ("b.heic", ""),
        ("c.NEF", ""),
        ("d.gif", ".gif is no format that is read"),
        ("readme", "no extension is no format that is read"),
    ],
)
def test_why_a_file_is_not_read(name: str, reason: str) -> None:
    assert formats.not_read(name) == reason


def test_formats_of_extras_that_are_not_installed(image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    heic, raw = encode(image, "HEIF"), dng(neutral(0.2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert formats.not_read("b.heic") == "HEIF needs pillow_heif; install it with pip install 'reddit-on-ray[heif]'"
    assert not {"HEIF", "RAW"} & set(formats.readable())
    with pytest.raises(UnknownFormatError, match=r"it is a HEIF photograph: HEIF needs pillow_heif; install"):
        read_photograph(heic)
    with pytest.raises(ValueError, match=r"it is a HEIF photograph"):
        images.decode(heic)
    with pytest.raises(ValueError, match=r"it is a camera's RAW file: RAW needs rawpy; install it with pip install"):
        read_photograph(raw)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP"])
def test_one_format_becomes_another(image: NDArray[np.uint8], name: str) -> None:
    deep = Photograph(pixels=image.astype(np.uint16) * 257, format="TIFF", alpha=np.full((40, 60), 65535, np.uint16))
    photograph, pixels = in_format(deep, deep.pixels, name)
    again = read_photograph(write_photograph(photograph, pixels))
    assert again.format == name
    assert again.pixels.dtype == (np.uint16 if name in ("PNG", "TIFF") else np.uint8)
    assert np.abs((again.pixels >> 8 if name in ("PNG", "TIFF") else again.pixels).astype(int) - image).max() <= 25
