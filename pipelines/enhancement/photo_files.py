"""Reads and writes photographs; a result keeps the original's format, bit depth, alpha, ICC profile and EXIF.

8-bit pictures go through Pillow; it cannot hold 16-bit RGB, so those go through `sixteen_bit.py`, and are written by
OpenCV (PNG) and tifffile (TIFF).
"""

import io
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import IFD
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipelines.enhancement.sixteen_bit import ORIENTATION, is_16_bit, read_16_bit
from pipelines.images import DAMAGE, FORMATS, PHONE_JPEG
from reddit_core.pixels import Pixels

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_MEGAPIXELS = 50.5  # cameras of nominal 50 have a few more
QUALITY = 95
EXIF_PREFIX = b"Exif\0\0"
# Tags of a TIFF's main directory that are kept: description, maker,
# model, software, date, artist, copyright.
PROVENANCE_TAGS = (270, 271, 272, 305, 306, 315, 33432)
# EXIF directories with the camera settings and the place.
DIRECTORIES = (IFD.Exif, IFD.GPSInfo)
ASCII, LONG = 2, 4
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A decoded picture, upright.

    Attributes:
        pixels: [H, W, 3] RGB, uint8 or uint16.
        alpha: [H, W] of the same type, or None.
        grey: the file has one channel (`pixels` has three equal ones).
        format: Pillow's name of the file's format.
        lossless: the file's pixels are exact (a WebP may be either).
        exif: EXIF block without orientation; empty if there is none.
        icc: ICC profile of the pixels; empty if there is none.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    format: str
    lossless: bool = True
    exif: bytes = b""
    icc: bytes = b""


def read_photograph(data: bytes) -> Photograph:
    """Decodes PNG, JPEG, WebP, BMP or TIFF bytes.

    CMYK becomes RGB without its profile, a palette becomes RGB; the EXIF orientation is applied.

    Raises:
        ValueError: with the reason, if this is no single whole photograph of at most `MAX_MEGAPIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _decode(image, data)
    except UnidentifiedImageError:
        raise ValueError(f"it is not an image in one of {', '.join(FORMATS)}") from None
    except DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _decode(image: Image.Image, data: bytes) -> Photograph:
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise ValueError(f"it has {width * height / 1e6:.1f} megapixels, but at most {MAX_MEGAPIXELS} are enhanced")
    frames = getattr(image, "n_frames", 1)
    if frames != 1 and image.format != PHONE_JPEG:
        raise ValueError(f"it holds {frames} frames, but a photograph has one")
    if image.mode in ("I", "F"):
        raise ValueError(f"its {image.mode}-mode pixels (32 bits) have no stated range; save it with 8 or 16 bits")
    return _decode_16_bit(image, data) if is_16_bit(image, data) else _decode_8_bit(image, data)


def _decode_8_bit(image: Image.Image, data: bytes) -> Photograph:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    rgb = image.convert("RGB")
    has_alpha = image.has_transparency_data
    return Photograph(
        pixels=np.array(rgb),
        alpha=np.array(image.convert("RGBA").getchannel("A")) if has_alpha else None,
        grey=image.mode in ("1", "L", "LA"),
        format="JPEG" if image.format == PHONE_JPEG else str(image.format),
        lossless=_is_lossless(str(image.format), data),
        exif=_exif_of(image),
        icc=b"" if image.mode == "CMYK" else image.info.get("icc_profile") or b"",
    )


def _decode_16_bit(image: Image.Image, data: bytes) -> Photograph:
    colours, alpha = read_16_bit(image, data)
    grey = colours.shape[2] == 1
    return Photograph(
        pixels=np.repeat(colours, 3, axis=2) if grey else np.ascontiguousarray(colours),
        alpha=None if alpha is None else np.ascontiguousarray(alpha),
        grey=grey,
        format=str(image.format),
        exif=_exif_of(image),
        icc=image.info.get("icc_profile") or b"",
    )


def _exif_of(image: Image.Image) -> bytes:
    """The EXIF block without orientation, and for a TIFF without the tags that describe its pixel layout."""
    found = image.getexif()
    exif = _copy_exif(found, PROVENANCE_TAGS if image.format == "TIFF" else tuple(found))
    return exif.tobytes() if len(exif) else b""


def _copy_exif(found: Image.Exif, tags: Iterable[int]) -> Image.Exif:
    """Copies some tags of the main directory, without orientation, and all of `DIRECTORIES`."""
    exif = Image.Exif()
    for tag in tags:
        if tag in found and tag not in (ORIENTATION, *DIRECTORIES):
            exif[tag] = _unread(found[tag])
    for directory in (name for name in DIRECTORIES if name in found):
        values = {tag: _unread(value) for tag, value in found.get_ifd(directory).items()}
        if IFD.Interop in values:  # an offset in the old file
            values[IFD.Interop] = dict(found.get_ifd(IFD.Interop))
        exif[directory] = values
    return exif


def _load_exif(data: bytes) -> Image.Exif:
    found = Image.Exif()
    if data:
        found.load(data)
    return _copy_exif(found, tuple(found))


def _unread(value: Any) -> Any:
    """Text as its original bytes: Pillow decodes them as Latin-1, and would write non-ASCII characters as "?"."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _is_lossless(name: str, data: bytes) -> bool:
    """Whether the pixels are stored exactly; of a WebP the type of its image chunk decides."""
    if name != "WEBP":
        return name not in ("JPEG", PHONE_JPEG)
    position = 12
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        position += 8 + size + size % 2
    return False


def write_photograph(original: Photograph, pixels: Pixels) -> bytes:
    """Encodes new pixels, [H, W, 3] of the original's size and type, in the original's format.

    The same pixels give the same bytes. JPEG and lossy WebP are written at quality 95, with full colour
    resolution.
    """
    planes = [_to_grey(pixels)] if original.grey else [pixels]
    if original.alpha is not None:
        planes.append(original.alpha)
    stacked = np.dstack(planes) if len(planes) > 1 else planes[0]
    if pixels.dtype == np.uint8:
        return _encode_8_bit(original, stacked)
    return (
        _encode_tiff_16_bit(original, stacked) if original.format == "TIFF" else _encode_png_16_bit(original, stacked)
    )


def _to_grey(pixels: Pixels) -> Pixels:
    return np.asarray(np.rint(pixels @ LUMA), dtype=pixels.dtype)


def _encode_8_bit(original: Photograph, stacked: Pixels) -> bytes:
    options: dict[str, Any] = {}
    if original.format in ("JPEG", "WEBP"):
        options["quality"] = QUALITY
    if original.format == "JPEG":
        options["subsampling"] = 0
    if original.format == "WEBP":
        options |= {"lossless": original.lossless, "exact": original.lossless}
    # A TIFF stays uncompressed: Pillow's compressing writer cannot keep the directories that EXIF adds.
    if original.format != "BMP":  # which has no room for either
        options |= {"exif": original.exif or None, "icc_profile": original.icc or None}
    if original.format == "TIFF":  # whose writer would read the block's text anew, and write "?" for what is not ASCII
        options |= {"exif": None, "tiffinfo": dict(_load_exif(original.exif))}
    sink = io.BytesIO()
    kept = {name: value for name, value in options.items() if value is not None}
    Image.fromarray(stacked).save(sink, format=original.format, **kept)
    return sink.getvalue()


def _encode_png_16_bit(original: Photograph, stacked: Pixels) -> bytes:
    if stacked.ndim == 3:
        order = [2, 1, 0, 3] if stacked.shape[2] == 4 else [2, 1, 0]
        # PNG has grey with alpha, but OpenCV writes it as colour; so that is what comes back.
        stacked = stacked[:, :, order] if stacked.shape[2] > 2 else stacked[:, :, [0, 0, 0, 1]]
    blocks = {
        cv2.IMAGE_METADATA_EXIF: original.exif.removeprefix(EXIF_PREFIX),
        cv2.IMAGE_METADATA_ICCP: original.icc,
    }
    present = {kind: np.frombuffer(block, np.uint8) for kind, block in blocks.items() if block}
    _, encoded = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(stacked), list(present), list(present.values()))
    return bytes(encoded)


def _encode_tiff_16_bit(original: Photograph, stacked: Pixels) -> bytes:
    exif = _load_exif(original.exif)
    tags = [(tag, ASCII, 0, exif[tag], True) for tag in PROVENANCE_TAGS if tag in exif]
    sink = io.BytesIO()
    tifffile.imwrite(
        sink,
        stacked,
        photometric="minisblack" if original.grey else "rgb",
        planarconfig="contig" if stacked.ndim == 3 else None,
        extrasamples=None if original.alpha is None else ["unassalpha"],
        compression="zlib",
        predictor=True,
        iccprofile=original.icc or None,
        metadata=None,
        software=False,
        extratags=tags,
    )
    return _add_directories(sink.getvalue(), {tag: exif[tag] for tag in DIRECTORIES if tag in exif})


def _add_directories(tiff: bytes, directories: Mapping[int, Mapping[int, Any]]) -> bytes:
    """Adds EXIF directories, which tifffile cannot write, to a TIFF file; its main directory moves to the end."""
    order = "<" if tiff.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    entries = [tiff[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    file = bytearray(tiff)
    for tag, values in directories.items():
        file += b"\0" * (len(file) % 2)  # directories begin at even bytes
        directory = ImageFileDirectory_v2(tiff[:8], group=tag)
        for name, value in values.items():
            directory[name] = value
        entries.append(struct.pack(f"{order}HHII", tag, LONG, 1, len(file)))
        file += directory.tobytes(len(file))
    file += b"\0" * (len(file) % 2)
    struct.pack_into(f"{order}I", file, 4, len(file))
    entries.sort(key=lambda entry: struct.unpack_from(f"{order}H", entry)[0])
    return bytes(file + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4))
