"""Decodes photographs to [H, W, 3] uint8 RGB, and encodes them: one set of conversion rules for every job.

Converted: 16-bit channels keep their high byte, grey becomes three equal channels, palettes and CMYK become
RGB, alpha is dropped (not blended), the EXIF orientation is applied. Anything else that is not a whole, single
photograph is rejected with its reason.
"""

import hashlib
import io
import struct
import zlib
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# A phone's JPEG whose first frame is the photograph, followed by auxiliary pictures.
PHONE_JPEG = "MPO"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy")
FINGERPRINT_ROWS = 16
NPY_MAGIC = b"\x93NUMPY"
# Errors of Pillow's decoders for damaged files (found by truncating files and flipping bytes).
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

# By default Pillow frees the memory of every image, and paging in fresh memory for the next one costs up to a quarter
# of the time of decoding it. So it keeps this many blocks of at most 16 MB. This setting applies to the whole process.
Image.core.set_blocks_max(4)  # type: ignore[attr-defined]


def decode(data: bytes) -> NDArray[np.uint8]:
    """An encoded image as [H, W, 3] uint8 RGB, upright.

    Reads PNG, JPEG, WebP, BMP, TIFF, and the .npy arrays ([H, W, 3] uint8 in BGR order) in which the sRGB
    versions of SID, SMID and SDSD are distributed.

    Raises:
        ValueError: with the reason, if the image is damaged, has several frames, or has no stated range.
    """
    return to_rgb(load(data))


def load(data: bytes) -> Image.Image:
    """An encoded image, decoded whole and upright, in its own mode; raises as `decode` does."""
    if data.startswith(NPY_MAGIC):
        return Image.fromarray(_decode_npy(data))
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
        if frames != 1 and image.format != PHONE_JPEG:
            raise ValueError(f"it holds {frames} frames, but a photograph has one")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError:
        raise ValueError(f"it is not an image in one of {', '.join(FORMATS)}") from None
    except DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if image.mode in ("I", "F"):
        raise ValueError(f"its {image.mode}-mode pixels (32 bits) have no stated range; save it with 8 or 16 bits")
    return image


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A loaded image as [H, W, 3] uint8 RGB."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def pixel_hash(image: Image.Image) -> str:
    """Identifies an image whatever its encoding: the SHA-256 of its size and of one row in sixteen.

    That distinguishes photographs as well as all rows would, whose hash would take a tenth of the time of decoding.
    """
    rows = image.resize((image.width, -(-image.height // FINGERPRINT_ROWS)), Image.Resampling.NEAREST)
    return hashlib.sha256(b"%dx%d:" % image.size + to_rgb(rows).tobytes()).hexdigest()


def _decode_npy(data: bytes) -> NDArray[np.uint8]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (*DAMAGE, TokenError) as error:
        raise ValueError(f"its .npy data cannot be read ({error})") from None
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"its array is {array.dtype} {list(array.shape)}, but must be uint8 [H, W, 3]")
    return np.ascontiguousarray(array[:, :, ::-1])


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] uint8 RGB as PNG bytes; the same bytes for the same image and version of zlib."""
    sink = io.BytesIO()
    # Level 1 is four times as fast as the default, and noise does not compress anyway.
    Image.fromarray(image).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()
