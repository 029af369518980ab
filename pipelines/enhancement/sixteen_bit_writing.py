"""Writes photographs of 16 bits: PNG by OpenCV, TIFF by tifffile."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipelines.enhancement.metadata import DIRECTORIES, PROVENANCE_TAGS, XMP_TAG, load_exif
from pipelines.enhancement.photograph import Photograph
from reddit_core.pixels import Pixels

EXIF_PREFIX = b"Exif\0\0"
BYTE, ASCII, LONG = 1, 2, 4
METRES_PER_INCH = 0.0254
HEADER_END = 33  # of a PNG: its signature and IHDR


def encode_png(original: Photograph, stacked: Pixels) -> bytes:
    if stacked.ndim == 3:
        order = [2, 1, 0, 3] if stacked.shape[2] == 4 else [2, 1, 0]
        # PNG has grey with alpha, but OpenCV writes it as colour; so that is what comes back.
        stacked = stacked[:, :, order] if stacked.shape[2] > 2 else stacked[:, :, [0, 0, 0, 1]]
    blocks = {
        cv2.IMAGE_METADATA_EXIF: original.exif.removeprefix(EXIF_PREFIX),
        cv2.IMAGE_METADATA_ICCP: original.icc,
        cv2.IMAGE_METADATA_XMP: original.xmp and original.xmp + b"\0",  # which OpenCV reads as a C string
    }
    present = {kind: np.frombuffer(block, np.uint8) for kind, block in blocks.items() if block}
    _, encoded = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(stacked), list(present), list(present.values()))
    return _with_dpi(bytes(encoded), original.dpi)


def _with_dpi(png: bytes, dpi: tuple[float, float] | None) -> bytes:
    """A PNG with a pHYs chunk (PNG specification, section 11.3.4.3) behind its header."""
    if dpi is None:
        return png
    across, down = (round(value / METRES_PER_INCH) for value in dpi)
    chunk = b"pHYs" + struct.pack(">IIB", across, down, 1)
    return (
        png[:HEADER_END]
        + struct.pack(">I", len(chunk) - 4)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + png[HEADER_END:]
    )


def encode_tiff(original: Photograph, stacked: Pixels) -> bytes:
    exif = load_exif(original.exif)
    tags = [(tag, ASCII, 0, exif[tag], True) for tag in PROVENANCE_TAGS if tag in exif]
    if original.xmp:
        tags.append((XMP_TAG, BYTE, len(original.xmp), original.xmp, True))
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
        resolution=original.dpi,
        resolutionunit="INCH" if original.dpi else None,
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
