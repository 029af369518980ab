"""Reads pixels of 16-bit PNG and TIFF files, upright, with OpenCV and tifffile; Pillow has no 16-bit RGB."""

import io

import cv2
import numpy as np
import tifffile
from PIL import Image

from reddit_core.pixels import Pixels

ORIENTATION = 0x0112
BITS, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA_SAMPLES = 258, 262, 277, 284, 338  # tags of TIFF 6.0
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
SEPARATE = 2
PREMULTIPLIED = 1
MOST = 2**16 - 1


def is_16_bit(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16  # IHDR's bit depth
    if image.format == "TIFF":
        depths = getattr(image, "tag_v2", {}).get(BITS, (8,))
        return set(np.atleast_1d(depths)) == {16}
    return False


def read_16_bit(image: Image.Image, data: bytes) -> tuple[Pixels, Pixels | None]:
    """Reads [H, W, 1 or 3] grey or RGB, and [H, W] alpha if there is one; uint16.

    Raises:
        ValueError: with the reason, if the pixels are stored in a way that is not supported.
    """
    samples = _read_tiff(image, data) if image.format == "TIFF" else _read_png(image, data)
    if samples.shape[2] not in (1, 3, 4):
        raise ValueError(f"it has {samples.shape[2]} channels of 16 bits, but must be grey or RGB, or RGB with alpha")
    return (samples[:, :, :3], samples[:, :, 3]) if samples.shape[2] == 4 else (samples, None)


def _read_png(image: Image.Image, data: bytes) -> Pixels:
    samples = _turn(_decode(data), image.getexif().get(ORIENTATION, 1))
    transparent = image.info.get("transparency")  # a colour; OpenCV leaves it out
    if transparent is None:
        return samples
    colours = samples[:, :, :3]
    alpha = np.where((colours == np.array(transparent)).all(axis=2), 0, MOST).astype(np.uint16)
    return np.dstack([np.broadcast_to(colours, (*alpha.shape, 3)), alpha])


def _read_tiff(image: Image.Image, data: bytes) -> Pixels:
    tags = getattr(image, "tag_v2", {})
    colours = tags.get(PHOTOMETRIC)
    if colours not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        raise ValueError(f"its colours are of TIFF's kind {colours}, but must be grey or RGB; save it as one of these")
    if tags.get(PLANAR) == SEPARATE and tags.get(SAMPLES, 1) > 1:  # which OpenCV takes for interleaved ones
        samples = _turn(_decode_planes(data), image.getexif().get(ORIENTATION, 1))
    else:
        samples = _decode(data)  # OpenCV applies the orientation of a TIFF itself, and of nothing else
    if colours == WHITE_IS_ZERO:
        samples = MOST - samples
    if samples.shape[2] == 4 and PREMULTIPLIED in tags.get(EXTRA_SAMPLES, ()):
        alpha = samples[:, :, 3:]
        plain = samples[:, :, :3].astype(np.float64) * MOST / np.maximum(alpha, 1)
        samples = np.dstack([np.rint(plain).clip(0, MOST).astype(np.uint16), alpha])
    return samples


def _decode(data: bytes) -> Pixels:
    """[H, W, C] in RGB order, as OpenCV reads it."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ValueError("its 16-bit pixels cannot be read; save it as a plain RGB or grey 16-bit PNG or TIFF")
    samples: Pixels = found.astype(np.uint16, copy=False)
    if samples.ndim == 2:
        return samples[:, :, None]
    return samples[:, :, [2, 1, 0, *range(3, samples.shape[2])]] if samples.shape[2] >= 3 else samples


def _decode_planes(data: bytes) -> Pixels:
    """[H, W, C] of a TIFF with planar (separate) channels."""
    try:
        planes: Pixels = tifffile.imread(io.BytesIO(data), key=0)
    except (ValueError, tifffile.TiffFileError) as error:
        raise ValueError(f"its separate 16-bit planes cannot be read ({error}); interleave them") from None
    return np.moveaxis(planes, 0, -1)


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Applies an EXIF orientation (1 to 8; EXIF 2.3, section 4.6.4) to [H, W] or [H, W, C]."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
