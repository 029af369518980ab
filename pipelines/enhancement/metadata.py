"""EXIF, XMP and resolution of photographs: what is read of them, and what fits into a file."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from PIL import Image
from PIL.ExifTags import GPSTAGS, IFD, TAGS
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipelines.enhancement.photograph import Photograph
from pipelines.enhancement.sixteen_bit import ORIENTATION

# Tags of a TIFF's main directory that are kept: description, maker,
# model, software, date, artist, copyright.
PROVENANCE_TAGS = (270, 271, 272, 305, 306, 315, 33432)
# EXIF directories with the camera settings and the place.
DIRECTORIES = (IFD.Exif, IFD.GPSInfo)
XMP_TAG = 700
# Most bytes of a block in a JPEG, whose length field has 16 bits and counts itself.
MOST_EXIF, MOST_XMP = 2**16 - 3, 2**16 - 3 - 29
XMP_ORIENTATION = re.compile(rb'\s*tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>')


def exif_of(image: Image.Image) -> bytes:
    """The EXIF block without orientation, and for a TIFF without the tags that describe its pixel layout."""
    return exif_block(image.getexif(), is_tiff=image.format == "TIFF")


def exif_of_tiff(data: bytes) -> bytes:
    """The same of a file that begins as a TIFF does, such as a RAW file; empty if it cannot be read."""
    found = Image.Exif()
    try:
        found.load(data)
        return exif_block(found, is_tiff=True)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError):  # another maker's idea of a directory
        return b""


def exif_block(found: Image.Exif, *, is_tiff: bool) -> bytes:
    exif = copy_exif(found, PROVENANCE_TAGS if is_tiff else tuple(found))
    return exif.tobytes() if len(exif) else b""


def copy_exif(found: Image.Exif, tags: Iterable[int]) -> Image.Exif:
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


def load_exif(data: bytes) -> Image.Exif:
    """A block that `exif_of` made."""
    found = Image.Exif()
    if data:
        found.load(data)
    return copy_exif(found, tuple(found))


def _unread(value: Any) -> Any:
    """Text as its original bytes: Pillow decodes them as Latin-1, and would write non-ASCII characters as "?"."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def xmp_of(image: Image.Image) -> bytes:
    """The XMP packet, without the orientation, which the pixels follow already."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return XMP_ORIENTATION.sub(b"", packet.encode() if isinstance(packet, str) else bytes(packet))


def dpi_of(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch, across and down."""
    try:
        across, down = (float(value) for value in image.info.get("dpi") or ())
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if all(math.isfinite(value) and value > 0 for value in (across, down)) else None


def fit_metadata(photograph: Photograph) -> tuple[Photograph, tuple[str, ...]]:
    """The photograph with what its format has room for, and one line for each thing that it has none for.

    A JPEG's block has at most 64 kB: its EXIF loses the largest values until it fits (makers' notes, as a rule), and an
    XMP packet above that is left out.
    """
    notes: list[str] = []
    if photograph.format == "BMP":
        names = [name for name in ("exif", "icc", "xmp") if getattr(photograph, name)]
        notes += [f"{name.upper()} is left out: a BMP has no room for it" for name in names]
        return replace(photograph, exif=b"", icc=b"", xmp=b""), tuple(notes)
    if photograph.format != "JPEG":
        return photograph, ()
    exif, xmp = photograph.exif, photograph.xmp
    if len(exif) > MOST_EXIF:
        exif, left_out = smaller_exif(exif)
        notes.append(f"EXIF is above a JPEG's 64 kB: {', '.join(left_out)} left out")
    if len(xmp) > MOST_XMP:
        notes.append(f"XMP of {len(xmp) / 1e3:.0f} kB is left out: a JPEG has room for 64 kB")
        xmp = b""
    return replace(photograph, exif=exif, xmp=xmp), tuple(notes)


def smaller_exif(block: bytes) -> tuple[bytes, list[str]]:
    """A block that fits into a JPEG, and the names of the values that had to go, with their sizes."""
    left_out: list[str] = []
    while len(block) > MOST_EXIF:
        exif = Image.Exif()
        exif.load(block)
        values: dict[tuple[int | None, int], Any] = {(None, tag): exif[tag] for tag in exif if tag not in DIRECTORIES}
        for name in DIRECTORIES:
            values |= {(name, tag): value for tag, value in exif.get_ifd(name).items()}
        sizes = {place: size_of(*place, value) for place, value in values.items()}
        directory, largest = max(sizes, key=sizes.__getitem__)
        left_out.append(f"{name_of(directory, largest)} ({sizes[directory, largest] / 1e3:.0f} kB)")
        kept = copy_exif(exif, [tag for tag in exif if (None, tag) != (directory, largest)])
        if directory is not None:
            kept[directory] = {tag: value for tag, value in kept[directory].items() if tag != largest}
        block = kept.tobytes()
    return block, left_out


def size_of(directory: int | None, tag: int, value: Any) -> int:
    """Bytes that a value takes in the file."""
    alone = ImageFileDirectory_v2(group=directory)
    alone[tag] = value
    return len(alone.tobytes())


def name_of(directory: int | None, tag: int) -> str:
    names = GPSTAGS if directory == IFD.GPSInfo else TAGS
    return names.get(tag, f"tag {tag}")
