"""Brightness and contrast as settings: the mean and the standard deviation of luma that a result shall have.

How bright a photographer wants a scene cannot be read from the dark image (docs/method.md, section 12),
so a network is told, by one number per image: the gain on the image's tone curve, `clip(gain * low^CURVE)`, that leads
from the whole low-light image to the brightness. After the last step the result is scaled and shifted until it has
what was asked. Luma is BT.601, in [0, 1].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reddit_core.brightness import GRAY_WEIGHTS, LEAST_LUMA, brightness_scale, gray, moments_scale, scale_and_shift
from reddit_core.pixels import signed_from_unit, unit_from_signed

# Exponent of the tone curve: on LOL, values between 0.6 and 0.8 come nearest to the normal-light images.
CURVE = 0.65
# Luma is averaged over blocks of this many pixels a side before the curve, whose mean noise would bias.
BLOCK = 8
BAND_BLOCKS = 32
LEAST_CONTRAST, MOST_CONTRAST = 0.02, 0.45
# Weight of the squared norm in the fit of contrast: a few pairs lead to a constant, hundreds are hardly shrunk.
RIDGE = 1e-4


class Tone(NamedTuple):
    """What whole images shall look like.

    Attributes:
        gain: [B], factor on the tone curve of the low-light image.
        brightness: [B], mean luma of the result, in (0, 1).
        contrast: [B], standard deviation of its luma; None leaves it to the network.
    """

    gain: Float[Tensor, " b"]
    brightness: Float[Tensor, " b"]
    contrast: Float[Tensor, " b"] | None


def thumbnail(image_unit: Float[Tensor, "b 3 h w"], *, partial: bool = True) -> Float64[Tensor, "b n"]:
    """Luma of images in [0, 1], averaged over blocks of `BLOCK` x `BLOCK` pixels; `partial` ones at the edges too."""
    # A graph that is exported takes whole blocks only, which multiples of the network's size have.
    partial = partial and not torch.compiler.is_exporting()
    return functional.avg_pool2d(gray(image_unit), BLOCK, ceil_mode=partial).flatten(1).double()


def thumbnail_of_pixels(pixels: NDArray[np.unsignedinteger[Any]]) -> Float64[Tensor, "1 n"]:
    """`thumbnail` of [H, W, 3] unsigned integers of full range; sums are exact."""
    height, width = pixels.shape[:2]
    columns = np.arange(0, width, BLOCK)
    per_column = np.minimum(columns + BLOCK, width) - columns
    blocks = []
    for top in range(0, height, BLOCK * BAND_BLOCKS):
        band = pixels[top : top + BLOCK * BAND_BLOCKS]
        rows = np.arange(0, len(band), BLOCK)
        per_row = np.minimum(rows + BLOCK, len(band)) - rows
        sums = np.add.reduceat(np.add.reduceat(band, rows, axis=0, dtype=np.uint64), columns, axis=1)
        blocks.append((sums @ np.array(GRAY_WEIGHTS) / np.outer(per_row, per_column)).ravel())
    return torch.from_numpy(np.concatenate(blocks) / np.iinfo(pixels.dtype).max)[None]


def tone_curve(unit: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """`unit^CURVE` of values in [0, 1]; those below `LEAST_LUMA` count as that, so that a black image has a gain."""
    return unit.clamp(min=LEAST_LUMA) ** CURVE


def curve_mean(luma: Float64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
    """Mean of the tone curve of whole images, from their thumbnails."""
    return tone_curve(luma).mean(dim=1)


def tone_gain(brightness: float | Float[Tensor, " b"], curve: float | Float64[Tensor, " b"]) -> Any:
    """The gain that leads to a brightness: `brightness / mean of the tone curve`, if nothing were clipped."""
    return brightness / curve


def tone_features(luma: Float64[Tensor, "b n"], brightness: Float64[Tensor, " b"]) -> Float64[Tensor, "b 4"]:
    """What contrast is predicted from, of whole images at a brightness (`contrast_features`)."""
    curve = tone_curve(luma)
    gain = tone_gain(brightness, curve.mean(dim=1))
    deviation = (curve * gain[:, None]).clamp(max=1).std(dim=1, correction=0)
    return contrast_features(brightness, deviation, gain)


def contrast_features(
    brightness: Float64[Tensor, " b"], deviation: Float64[Tensor, " b"], gain: Float64[Tensor, " b"]
) -> Float64[Tensor, "b 4"]:
    """1, brightness, deviation of the tone curve after gain and clipping, log gain."""
    return torch.stack([torch.ones_like(gain), brightness, deviation, gain.log()], dim=1)


def fit_contrast(features: NDArray[np.float64], contrasts: NDArray[np.float64]) -> tuple[float, ...]:
    """Weights of `tone_features` that predict contrast: ridge regression over training pairs.

    Args:
        features: [pairs, 4], the `tone_features` of each; at least one row.
        contrasts: [pairs], standard deviation of the luma of each normal-light image.
    """
    inputs = features[:, 1:]
    mean, level = inputs.mean(axis=0), contrasts.mean()
    centred = inputs - mean
    normal = centred.T @ centred + RIDGE * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(normal, centred.T @ (contrasts - level))
    return (float(level - mean @ weights), *map(float, weights))


def predict_contrast(
    luma: Float64[Tensor, "b n"], brightness: Float64[Tensor, " b"], weights: Sequence[float]
) -> Float64[Tensor, " b"]:
    """The contrast that training pairs like these images have at a brightness."""
    fitted = torch.tensor(weights, dtype=torch.float64, device=luma.device)
    return (tone_features(luma, brightness) @ fitted).clamp(LEAST_CONTRAST, MOST_CONTRAST)


def make_tone(
    luma: Float64[Tensor, "b n"],
    brightness: float | Float[Tensor, " _"],
    contrast: float | Float[Tensor, " _"] | None = None,
    weights: Sequence[float] | None = None,
) -> Tone:
    """The tone of whole low-light images.

    Args:
        luma: their thumbnails.
        brightness: mean luma that results shall have, in (0, 1).
        contrast: standard deviation of their luma; None, or a tensor of 0, is the predicted one.
        weights: of `fit_contrast`; without them and without a contrast, it is left to the network.
    """
    asked = torch.as_tensor(brightness, dtype=torch.float64, device=luma.device).expand(luma.shape[0])
    gain = tone_gain(asked, curve_mean(luma)).float()
    predicted = None if weights is None else predict_contrast(luma, asked, weights)
    if contrast is None:
        return Tone(gain, asked, predicted)
    wanted = torch.as_tensor(contrast, dtype=torch.float64, device=luma.device).expand(luma.shape[0])
    return Tone(gain, asked, wanted if predicted is None else torch.where(wanted > 0, wanted, predicted))


def solve_tone(image_unit: Float[Tensor, "b 3 h w"], tone: Tone) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """(scale, offset) per whole image in [0, 1] that lead to the tone's brightness and contrast after clipping."""
    if tone.contrast is None:
        scale = brightness_scale(image_unit, tone.brightness)
        return scale, torch.zeros_like(scale)
    return moments_scale(image_unit, tone.brightness, tone.contrast)


def match_tone(signed: Float[Tensor, "b 3 h w"], tone: Tone | None) -> Float[Tensor, "b 3 h w"]:
    """Whole images in [-1, 1], scaled and shifted until they have the tone's brightness and contrast; None: as is."""
    if tone is None:
        return signed
    image = unit_from_signed(signed).clamp(0, 1)
    return signed_from_unit(scale_and_shift(image, *solve_tone(image, tone)))
