"""Develops cameras' RAW files with LibRaw, at the exposure that they were taken with."""

import io
from typing import Any

import numpy as np

from pipelines.formats import TIFF_STARTS, lacks
from reddit_core.pixels import Pixels

SRGB_CURVE = (2.4, 12.92)
# Variants of TIFF's start that its readers do not know.
VARIANTS = (b"IIRO", b"IIRS", b"IIU\0")


def open_raw(data: bytes) -> Any:
    """LibRaw's view of a file; a context manager.

    Raises:
        ValueError: if the package is missing, or LibRaw cannot read it.
    """
    if reason := lacks("RAW"):
        raise ValueError(f"it is a camera's RAW file: {reason}")
    import rawpy  # noqa: PLC0415 - of an extra

    try:
        return rawpy.imread(io.BytesIO(data))
    except rawpy.LibRawError as error:
        raise ValueError(f"it is a RAW file that LibRaw cannot read ({reason_of(error)})") from None


def size_of(raw: Any) -> tuple[int, int]:
    """Width and height, before it is turned upright."""
    return raw.sizes.width, raw.sizes.height


def develop(raw: Any, bits: int) -> Pixels:
    """[H, W, 3] upright sRGB of 8 or 16 bits.

    White balance is the camera's; the exposure is that of the file, neither stretched nor compensated, so that a dark
    photograph stays as dark as it was taken and the two of a pair keep their ratio. Highlights are clipped at the
    sensor's white.

    Raises:
        ValueError: if the data are damaged.
    """
    import rawpy  # noqa: PLC0415 - of an extra

    try:
        pixels: Pixels = raw.postprocess(
            use_camera_wb=True,
            no_auto_bright=True,
            output_bps=bits,
            output_color=rawpy.ColorSpace.sRGB,
            gamma=SRGB_CURVE,
        )
    except rawpy.LibRawError as error:
        raise ValueError(f"its sensor data cannot be read ({reason_of(error)})") from None
    return np.ascontiguousarray(pixels)


def develop_8_bit(data: bytes) -> Pixels:
    """As `develop` does, from the file."""
    with open_raw(data) as raw:
        return develop(raw, 8)


def with_metadata(data: bytes, raw: Any) -> bytes:
    """What Pillow can read a RAW file's EXIF from: itself if it is a TIFF, else the preview inside; perhaps nothing."""
    if data.startswith(TIFF_STARTS):
        return data
    if data.startswith(VARIANTS):
        return TIFF_STARTS[0] + data[4:]
    if data.startswith(b"MMOR"):
        return TIFF_STARTS[1] + data[4:]
    import rawpy  # noqa: PLC0415 - of an extra

    try:
        preview = raw.extract_thumb()
    except rawpy.LibRawError:
        return b""
    return bytes(preview.data) if preview.format == rawpy.ThumbFormat.JPEG else b""


def reason_of(error: Exception) -> str:
    """LibRaw's message, which may be bytes."""
    text = error.args[0] if error.args else type(error).__name__
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
