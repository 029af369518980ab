"""A photograph in memory, with what its file says about it."""

from dataclasses import dataclass

from reddit_core.pixels import Pixels


class TooLargeError(ValueError):
    """A photograph has more pixels than are enhanced."""


class UnknownFormatError(ValueError):
    """Bytes that are no image in a format that is read."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A decoded picture, upright.

    Attributes:
        pixels: [H, W, 3] RGB, uint8 or uint16.
        alpha: [H, W] of the same type, or None.
        grey: the file has one channel (`pixels` has three equal ones).
        format: Pillow's name of the format that it is written in.
        lossless: the file's pixels are exact (a WebP may be either).
        exif: EXIF block without orientation; empty if there is none.
        icc: ICC profile of the pixels; empty if there is none.
        xmp: XMP packet without orientation; empty if there is none.
        dpi: dots per inch across and down; None if the file does not say.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    format: str
    lossless: bool = True
    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
