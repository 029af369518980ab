"""Decodes photographs to [H, W, 3] uint8 RGB, and encodes them: one set of conversion rules for every job.

Converted: 16-bit channels keep their high byte, grey becomes three equal channels, palettes and CMYK become
RGB, alpha is dropped (not blended), the EXIF orientation is applied. Anything else that is not a whole, single
photograph is rejected with its reason.
"""

import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Callable
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipelines import raw
from pipelines.formats import FORMAT_OF, OPTIONAL, TIFF_STARTS, is_heif, is_raw, lacks, readable
from reddit_core.pixels import Pixels

# A phone's JPEG whose first frame is the photograph, followed by auxiliary pictures.
PHONE_JPEG = "MPO"
EXTENSIONS = (*FORMAT_OF, ".npy")
# Bit of TIFF's NewSubfileType for a page that is another one at a lower resolution.
SUBFILE_TYPE, REDUCED = 254, 1
FINGERPRINT_ROWS = 16
NPY_MAGIC = b"\x93NUMPY"
# Bytes of text and of colour profiles in a PNG, unpacked; cameras and editors put whole histories there.
MOST_PNG_TEXT = 2**26
# Errors of Pillow's decoders for damaged files (found by truncating files and flipping bytes).
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error)
# Of the largest image that is read, unless a setting says otherwise.
MAX_MEGAPIXELS = 250.0

# By default Pillow frees the memory of every image, and paging in fresh memory for the next one costs up to a quarter
# of the time of decoding it. So it keeps this many blocks of at most 16 MB. This setting applies to the whole process.
Image.core.set_blocks_max(4)  # type: ignore[attr-defined]
# Pillow's own limit, of which one can only be warned below 179 megapixels; ours are checked before pixels are decoded.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_PNG_TEXT

Decoded = TypeVar("Decoded")
# Held while Pillow reads files without their end: its switch for that is one of the whole process.
_TRUNCATED = threading.Lock()


def decode(data: bytes) -> NDArray[np.uint8]:
    """An encoded image as [H, W, 3] uint8 RGB, upright.

    Reads the formats of `formats.EXTENSIONS` (a camera's RAW file as `raw.develop` has it), and the .npy arrays
    ([H, W, 3] uint8 in BGR order) in which the sRGB versions of SID, SMID and SDSD are distributed.

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
    if is_raw(data):
        return Image.fromarray(raw.develop_8_bit(data))
    try:
        image = open_image(data)
        if (megapixels := image.width * image.height / 1e6) > MAX_MEGAPIXELS:
            raise ValueError(f"it has {megapixels:.1f} megapixels, but at most {MAX_MEGAPIXELS:g} are read")
        if not is_single(image):
            raise ValueError(f"it holds {getattr(image, 'n_frames', 1)} frames, but a photograph has one")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError:
        raise ValueError(unknown_format(data)) from None
    except DAMAGE as error:
        raise ValueError(why_damaged(error)) from None
    if image.mode in ("I", "F"):
        raise ValueError(f"its {image.mode}-mode pixels (32 bits) have no stated range; save it with 8 or 16 bits")
    return image


def open_image(data: bytes) -> Image.Image:
    """Pillow's view of an encoded image, not decoded yet; raises what Pillow raises."""
    if is_heif(data) and not lacks("HEIF"):
        import pillow_heif  # noqa: PLC0415 - of an extra

        pillow_heif.register_heif_opener()
        return Image.open(io.BytesIO(data), formats=["HEIF"])
    return Image.open(io.BytesIO(data), formats=[name for name in readable() if name not in OPTIONAL])


def unknown_format(data: bytes) -> str:
    """Why Pillow does not know an image, for people."""
    if is_heif(data) and (reason := lacks("HEIF")):
        return f"it is a HEIF photograph: {reason}"
    if not data.startswith(TIFF_STARTS):
        return f"it is not an image in one of {', '.join(readable())}"
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            found = f"{page.samplesperpixel} channels of {page.dtype}"
    except (*DAMAGE, tifffile.TiffFileError, IndexError) as error:
        return f"it is a damaged TIFF ({error})"
    return f"it is a TIFF with {found}, but must be grey or RGB of 8 or 16 bits; save it as that"


def is_single(image: Image.Image) -> bool:
    """Whether a file holds one photograph, besides pictures that belong to it.

    Those are the further ones of a phone's JPEG or HEIF, and pages of a TIFF that say that they are reductions of
    another one (thumbnails). The image is left at its first page.
    """
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format in (PHONE_JPEG, "HEIF"):
        return True
    if image.format != "TIFF":
        return False
    further = []
    for number in range(1, frames):
        image.seek(number)
        further.append(bool(getattr(image, "tag_v2", {}).get(SUBFILE_TYPE, 0) & REDUCED))
    image.seek(0)
    return all(further)


def as_stored(data: bytes) -> bytes:
    """What a dataset keeps of a file: the file itself, or of a camera's RAW file its development as PNG."""
    return encode_png(raw.develop_8_bit(data)) if is_raw(data) else data


def to_8_bit(values: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """Unsigned integers of 8 or 16 bits, of which the high byte is kept."""
    return values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)


def reduced(pixels: Pixels, side: int) -> NDArray[np.uint8]:
    """[H, W, 3] of 8 or 16 bits as 8-bit pixels of the same shape, with at most `side` pixels a side."""
    image = Image.fromarray(to_8_bit(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def why_damaged(error: Exception) -> str:
    """The reason why Pillow cannot decode a file."""
    reason = str(error) or type(error).__name__
    return f"{reason}; --allow-truncated reads what is there" if is_cut_off(error) else reason


def is_cut_off(error: Exception) -> bool:
    """Whether Pillow's message says that a file ends too early."""
    return "truncated" in str(error).lower()


def with_or_without_end(decode: Callable[[], Decoded], *, allow_truncated: bool) -> Decoded:
    """What `decode` makes of a file with Pillow; with `allow_truncated` also of one without its end, as far as it goes.

    What is missing is grey or black.
    """
    try:
        return decode()
    except ValueError as error:
        if not (allow_truncated and is_cut_off(error)):
            raise
    with _TRUNCATED:
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # of this process, all of whose files may be read so
        try:
            return decode()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def repaired(data: bytes) -> bytes:
    """A file as it is; of one without its end a PNG of what is there, so that everybody can decode it."""
    try:
        load(data)
    except ValueError as error:
        if is_cut_off(error):
            return encode_png(to_rgb(with_or_without_end(lambda: load(data), allow_truncated=True)))
    return data


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A loaded image as [H, W, 3] uint8 RGB."""
    if image.mode.startswith("I;16"):
        grey = to_8_bit(np.asarray(image))
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
