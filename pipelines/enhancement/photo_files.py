"""Reads and writes photographs; a result keeps the original's format, bit depth, alpha, profile and metadata.

8-bit pictures go through Pillow; it cannot hold 16-bit RGB, so those are read by `sixteen_bit.py` and written by
`sixteen_bit_writing.py`. A camera's RAW file is developed to 16 bits, and its result is a TIFF.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipelines import raw
from pipelines.enhancement.metadata import XMP_TAG, dpi_of, exif_of, exif_of_tiff, fit_metadata, load_exif, xmp_of
from pipelines.enhancement.photograph import Photograph, TooLargeError, UnknownFormatError
from pipelines.enhancement.sixteen_bit import is_16_bit, read_16_bit
from pipelines.enhancement.sixteen_bit_writing import encode_png, encode_tiff
from pipelines.formats import is_raw
from pipelines.images import (
    DAMAGE,
    MAX_MEGAPIXELS,
    PHONE_JPEG,
    is_single,
    open_image,
    to_8_bit,
    unknown_format,
    why_damaged,
)
from reddit_core.brightness import GRAY_WEIGHTS
from reddit_core.pixels import Pixels

QUALITY = 95
XMP_TEXT = "XML:com.adobe.xmp"  # the name of a PNG's text


def read_photograph(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Photograph:
    """Decodes a photograph in one of `formats.EXTENSIONS`.

    CMYK becomes RGB without its profile, a palette becomes RGB; the EXIF orientation is applied.

    Raises:
        TooLargeError: if it has more than `max_megapixels`.
        UnknownFormatError: if it is no image of these formats, or a package that reads it is not installed.
        ValueError: with the reason, if this is no single whole photograph.
    """
    with _reasons(data):
        if is_raw(data):
            return _develop(data, max_megapixels)
        with open_image(data) as image:
            return _decode(image, data, max_megapixels)


def megapixels_of(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> float:
    """Size of a photograph by its header, without decoding it; raises as `read_photograph` does for what it can see."""
    with _reasons(data):
        if is_raw(data):
            with raw.open_raw(data) as opened:
                return check_size(*raw.size_of(opened), max_megapixels)
        with open_image(data) as image:
            return check_size(*image.size, max_megapixels)


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Context manager that turns decoders' errors into ValueErrors with a reason."""
    try:
        yield
    except UnidentifiedImageError:
        raise UnknownFormatError(unknown_format(data)) from None
    except (TooLargeError, UnknownFormatError):
        raise
    except DAMAGE as error:
        raise ValueError(why_damaged(error)) from None


def check_size(width: int, height: int, max_megapixels: float) -> float:
    """The megapixels; raises TooLargeError above `max_megapixels`."""
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise TooLargeError(
            f"it has {megapixels:.1f} megapixels, but at most {max_megapixels:g} are enhanced; raise --max-megapixels"
        )
    return megapixels


def _develop(data: bytes, max_megapixels: float) -> Photograph:
    """A RAW file as 16 bits, with the camera's metadata."""
    with raw.open_raw(data) as opened:
        check_size(*raw.size_of(opened), max_megapixels)
        source = raw.with_metadata(data, opened)
        pixels = raw.develop(opened, 16)
    if source.startswith(b"\xff\xd8"):
        with Image.open(io.BytesIO(source)) as preview:
            exif = exif_of(preview)
    else:
        exif = exif_of_tiff(source)
    return Photograph(pixels=pixels, format="TIFF", exif=exif)


def _decode(image: Image.Image, data: bytes, max_megapixels: float) -> Photograph:
    check_size(*image.size, max_megapixels)
    if not is_single(image):
        raise ValueError(f"it holds {getattr(image, 'n_frames', 1)} frames, but a photograph has one")
    if image.mode in ("I", "F"):
        raise ValueError(f"its {image.mode}-mode pixels (32 bits) have no stated range; save it with 8 or 16 bits")
    return _decode_16_bit(image, data) if is_16_bit(image, data) else _decode_8_bit(image, data)


def _decode_8_bit(image: Image.Image, data: bytes) -> Photograph:
    image.load()
    dpi, xmp = dpi_of(image), xmp_of(image)
    ImageOps.exif_transpose(image, in_place=True)
    has_alpha = image.has_transparency_data
    return Photograph(
        pixels=np.array(image if image.mode == "RGB" else image.convert("RGB")),
        alpha=np.array(image.convert("RGBA").getchannel("A")) if has_alpha else None,
        grey=image.mode in ("1", "L", "LA"),
        format="JPEG" if image.format == PHONE_JPEG else str(image.format),
        lossless=_is_lossless(str(image.format), data),
        exif=exif_of(image),
        icc=b"" if image.mode == "CMYK" else image.info.get("icc_profile") or b"",
        xmp=xmp,
        dpi=dpi,
    )


def _decode_16_bit(image: Image.Image, data: bytes) -> Photograph:
    colours, alpha = read_16_bit(image, data)
    grey = colours.shape[2] == 1
    return Photograph(
        pixels=np.repeat(colours, 3, axis=2) if grey else np.ascontiguousarray(colours),
        alpha=None if alpha is None else np.ascontiguousarray(alpha),
        grey=grey,
        format=str(image.format),
        exif=exif_of(image),
        icc=image.info.get("icc_profile") or b"",
        xmp=xmp_of(image),
        dpi=dpi_of(image),
    )


def _is_lossless(name: str, data: bytes) -> bool:
    """Whether the pixels are stored exactly; of a WebP the type of its image chunk decides."""
    if name != "WEBP":
        return name not in ("JPEG", PHONE_JPEG, "AVIF", "HEIF")
    position = 12
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        position += 8 + size + size % 2
    return False


def in_format(photograph: Photograph, pixels: Pixels, name: str) -> tuple[Photograph, Pixels]:
    """A photograph and its new pixels as another format holds them.

    Only PNG and TIFF have 16 bits; for others the high byte is taken. JPEG and BMP have no alpha. A photograph that
    becomes a WebP is stored exactly, unless its own file was lossy.
    """
    if name not in ("PNG", "TIFF") and pixels.dtype == np.uint16:
        pixels = to_8_bit(pixels)
        alpha = None if photograph.alpha is None else to_8_bit(photograph.alpha)
        photograph = replace(photograph, alpha=alpha)
    if name in ("JPEG", "BMP"):
        photograph = replace(photograph, alpha=None)
    return replace(photograph, format=name, lossless=photograph.lossless and name != "JPEG"), pixels


def write_photograph(original: Photograph, pixels: Pixels) -> bytes:
    """Encodes new pixels, [H, W, 3] of the original's size and type, in the original's format.

    The same pixels give the same bytes. JPEG, AVIF, HEIF and lossy WebP are written at quality 95, with full colour
    resolution. Metadata that the format has no room for is left out; `fit_metadata` names it.
    """
    original, _ = fit_metadata(original)
    planes = [_to_grey(pixels)] if original.grey else [pixels]
    if original.alpha is not None:
        planes.append(original.alpha)
    stacked = np.dstack(planes) if len(planes) > 1 else planes[0]
    if pixels.dtype == np.uint8:
        return _encode_8_bit(original, stacked)
    return encode_tiff(original, stacked) if original.format == "TIFF" else encode_png(original, stacked)


def _to_grey(pixels: Pixels) -> Pixels:
    return np.asarray(np.rint(pixels @ np.array(GRAY_WEIGHTS)), dtype=pixels.dtype)


def _encode_8_bit(original: Photograph, stacked: Pixels) -> bytes:
    kept = {"exif": original.exif, "icc_profile": original.icc, "xmp": original.xmp, "dpi": original.dpi}
    options: dict[str, Any] = {name: value for name, value in kept.items() if value}
    options |= _options_of(original)
    # A TIFF stays uncompressed: Pillow's compressing writer cannot keep the directories that EXIF adds.
    if original.format == "TIFF":  # whose writer would read the block's text anew, and write "?" for what is not ASCII
        options.pop("exif", None)
        options["tiffinfo"] = {**load_exif(original.exif), **({XMP_TAG: original.xmp} if original.xmp else {})}
    if original.format == "PNG" and original.xmp:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt(XMP_TEXT, original.xmp.decode(errors="replace"))
    sink = io.BytesIO()
    Image.fromarray(stacked).save(sink, format=original.format, **options)
    return sink.getvalue()


def _options_of(original: Photograph) -> dict[str, Any]:
    """How a format is written."""
    match original.format:
        case "JPEG":
            return {"quality": QUALITY, "subsampling": 0}
        case "WEBP":
            return {"quality": QUALITY, "lossless": original.lossless, "exact": original.lossless}
        case "AVIF":
            return {"quality": QUALITY, "subsampling": "4:4:4"}
        case "HEIF":
            return {"quality": QUALITY, "chroma": 444}
    return {}
