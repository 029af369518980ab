"""Luma of images, and its mean and standard deviation: measured, and matched to what is asked.

Luma is BT.601, in [0, 1].
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

GRAY_WEIGHTS = (0.299, 0.587, 0.114)
# Luma below which an image counts as black: a quarter of an 8-bit step.
LEAST_LUMA = 1 / 1024
# Rows that are worked on at a time, so that large images need little memory.
BAND_ROWS = 256
SCALE_ITERATIONS = 5
MAX_SCALE = 4.0
MOMENT_ITERATIONS = 6
MAX_CONTRAST_SCALE = 2.0


def gray(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Luma by ITU-R BT.601 weights."""
    red, green, blue = image[:, :1], image[:, 1:2], image[:, 2:]
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def luma_moments_of_pixels(pixels: NDArray[np.unsignedinteger[Any]]) -> tuple[float, float]:
    """Mean and standard deviation of the luma of [H, W, 3] unsigned integers of full range, both in [0, 1]."""
    totals = np.zeros(2)
    for top in range(0, len(pixels), BAND_ROWS):
        luma = pixels[top : top + BAND_ROWS] @ np.array(GRAY_WEIGHTS) / np.iinfo(pixels.dtype).max
        totals += luma.sum(), np.square(luma).sum()
    mean, square = totals / (pixels.shape[0] * pixels.shape[1])
    return float(mean), float(max(square - mean**2, 0.0) ** 0.5)


def total_luma(image_unit: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, " b"]:
    """Sum of the luma of all pixels, per image."""
    return gray(image_unit).sum(dim=(1, 2, 3), dtype=torch.float64)


def brightness_scale(image_unit: Float[Tensor, "b 3 h w"], brightness: Float[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """The factor per image after which, clipped to [0, 1], its mean luma is `brightness`.

    Newton's method on the mean luma of `clip(scale * image)`. That mean rises with the scale and is concave in it, so
    after the first step the iteration approaches the solution from below. The factor is at most `MAX_SCALE`: a black
    image stays black.
    """
    bands = split_rows(image_unit)
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


def moments_scale(
    image_unit: Float[Tensor, "b 3 h w"], brightness: Float[Tensor, " b"], contrast: Float[Tensor, " b"]
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """(scale, offset) per image in [0, 1] after which, clipped, its luma has that mean and standard deviation.

    The scale is in [1 / `MAX_CONTRAST_SCALE`, `MAX_CONTRAST_SCALE`], so a flat image stays flat. The mean has
    precedence: it is met by the offset, whatever the scale.
    """
    bands = split_rows(image_unit)
    mean, deviation = luma_moments(bands)
    scale, offset = torch.ones_like(mean), torch.zeros_like(mean)
    reached, reached_deviation = mean, deviation
    for _ in range(MOMENT_ITERATIONS):
        wanted = scale * contrast / reached_deviation.clamp(min=LEAST_LUMA)
        rescaled = wanted.clamp(1 / MAX_CONTRAST_SCALE, MAX_CONTRAST_SCALE)
        offset = offset + brightness - reached + (scale - rescaled) * mean
        scale = rescaled
        reached, reached_deviation = luma_moments(scale_and_shift(band, scale, offset) for band in bands)
    return scale, offset + brightness - reached


def scale_and_shift(
    image_unit: Float[Tensor, "b 3 h w"], scale: Float64[Tensor, " b"], offset: Float64[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """`clip(scale * image + offset)`, in the dtype of the image."""
    scale, offset = (value[:, None, None, None].to(image_unit.dtype) for value in (scale, offset))
    return torch.addcmul(offset, image_unit, scale).clamp_(0, 1)


def split_rows(image: Float[Tensor, "b 3 h w"]) -> Sequence[Float[Tensor, "b 3 _ w"]]:
    """The image in bands of `BAND_ROWS` rows."""
    # A graph that is exported has no bands: their number would depend on the image.
    return [image] if torch.compiler.is_exporting() else torch.split(image, BAND_ROWS, dim=-2)


def luma_moments(bands: Iterable[Float[Tensor, "b 3 _ w"]]) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Mean and standard deviation of the luma of images that are given in bands."""
    totals, squares, num_pixels = [], [], 0
    for band in bands:
        luma = gray(band)
        totals.append(luma.sum(dim=(1, 2, 3), dtype=torch.float64))
        squares.append(luma.square().sum(dim=(1, 2, 3), dtype=torch.float64))
        num_pixels += band.shape[-2] * band.shape[-1]
    mean = torch.stack(totals).sum(dim=0) / num_pixels
    return mean, (torch.stack(squares).sum(dim=0) / num_pixels - mean.square()).clamp(min=0).sqrt()
