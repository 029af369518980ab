"""Brightness as a setting: the mean luma that a result shall have, and the exposure gain that leads to it.

How bright a photographer wants a scene cannot be read from the dark image (docs/method.md, "Brightness"), so a network
is told: `gain = brightness / mean luma of the whole low-light image`, one number per image. Luma is BT.601, in [0, 1].
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from reddit_core.pixels import signed_from_unit, unit_from_signed

GRAY_WEIGHTS = (0.299, 0.587, 0.114)
# Mean luma below which an image counts as black: a quarter of an 8-bit step. Its gain is that of an image this dark.
LEAST_LUMA = 1 / 1024
# Rows that are worked on at a time, so that large images need little memory.
BAND_ROWS = 256
SCALE_ITERATIONS = 5
MAX_SCALE = 4.0


def gray(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Luma by ITU-R BT.601 weights."""
    red, green, blue = image[:, :1], image[:, 1:2], image[:, 2:]
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def mean_luma_of_pixels(pixels: NDArray[np.unsignedinteger[Any]]) -> float:
    """Mean luma of [H, W, 3] unsigned integers of full range; exact but for one rounding, so the same everywhere."""
    totals = pixels.sum(axis=0, dtype=np.uint64).sum(axis=0)
    num_pixels = pixels.shape[0] * pixels.shape[1]
    luma: float = float(totals @ np.array(GRAY_WEIGHTS)) / (num_pixels * np.iinfo(pixels.dtype).max)
    return luma


def exposure_gain(
    brightness: float | NDArray[np.float64], low_mean: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """`brightness / mean luma of the low image`, both in [0, 1]; a black image counts as one of `LEAST_LUMA`."""
    return np.asarray(brightness / np.maximum(low_mean, LEAST_LUMA), dtype=np.float64)


def total_luma(image_unit: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, " b"]:
    """Sum of the luma of all pixels, per image."""
    return gray(image_unit).sum(dim=(1, 2, 3), dtype=torch.float64)


def gains_of(low: Float[Tensor, "b 3 h w"], brightness: float | Float[Tensor, " _"]) -> Float[Tensor, " b"]:
    """`exposure_gain` of whole low-light images in [-1, 1]."""
    return (brightness / mean_luma(unit_from_signed(low)).clamp(min=LEAST_LUMA)).to(low.dtype)


def mean_luma(image_unit: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, " b"]:
    """Mean luma per image."""
    return total_luma(image_unit) / (image_unit.shape[-2] * image_unit.shape[-1])


def brightness_scale(image_unit: Float[Tensor, "b 3 h w"], brightness: Float[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """The factor per image after which, clipped to [0, 1], its mean luma is `brightness`.

    Newton's method on the mean luma of `clip(scale * image)`. That mean rises with the scale and is concave in it, so
    after the first step the iteration approaches the solution from below. The factor is at most `MAX_SCALE`: a black
    image stays black.
    """
    # A graph that is exported has no bands: their number would depend on the image.
    bands = [image_unit] if torch.compiler.is_exporting() else torch.split(image_unit, BAND_ROWS, dim=-2)
    num_pixels = image_unit.shape[-2] * image_unit.shape[-1]
    scale = torch.ones_like(brightness, dtype=torch.float64)
    for _ in range(SCALE_ITERATIONS):
        reached, slope = torch.zeros_like(scale), torch.zeros_like(scale)
        for band in bands:
            scaled = band * scale[:, None, None, None].to(band.dtype)
            reached += total_luma(scaled.clamp(0, 1)) / num_pixels
            slope += total_luma(band * (scaled < 1)) / num_pixels
        scale = (scale + (brightness - reached) / slope.clamp(min=1e-6)).clamp(0, MAX_SCALE)
    return scale


def match_brightness(image_unit: Float[Tensor, "b 3 h w"], brightness: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1], scaled so that their mean luma after clipping is `brightness`."""
    scale = brightness_scale(image_unit, brightness)[:, None, None, None].to(image_unit.dtype)
    return (image_unit * scale).clamp(0, 1)


def with_brightness(
    signed: Float[Tensor, "b 3 h w"], brightness: float | Float[Tensor, " _"] | None
) -> Float[Tensor, "b 3 h w"]:
    """Images in [-1, 1] with that mean luma ([0, 1]), by `match_brightness`; with None, as they are."""
    if brightness is None:
        return signed
    asked = torch.as_tensor(brightness, dtype=torch.float64, device=signed.device).expand(signed.shape[0])
    return signed_from_unit(match_brightness(unit_from_signed(signed).clamp(0, 1), asked))
