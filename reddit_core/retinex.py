"""Reflectance of a low-light image by the Retinex model `y = r * l + n` (paper section 3.3)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from torch import Tensor

from reddit_core.brightness import LEAST_LUMA, gray
from reddit_core.pixels import signed_from_unit, unit_from_signed

ReflectanceRange = Literal["unit", "released"]
ReflectanceNoise = Literal["subtracted", "smoothed"]
ReflectanceBrightness = Literal["own", "teacher"]

NOISE_KERNEL = 15
NOISE_SIGMA = 3.0
RELEASED_OFFSET = 0.1


@dataclass(frozen=True, kw_only=True)
class ReflectanceConfig:
    """How reflectance is computed.

    Attributes:
        range: `unit` works on [0, 1] data, as in the paper; `released` on [-1, 1] data with the
            quotient `y / (max_c y + 0.1)`, as the released code does (near-white in the dark, singular
            near mid-grey, unbounded).
        floor: least illumination that is divided by, in [0, 1] units (only for `unit`); keeps
            near-black pixels from becoming saturated noise.
        noise: `subtracted` takes the noise map off the image, as published; `smoothed` blurs the image before
            it is divided by its illumination (only for `unit`).
        brightness: `own` leaves the reflectance as it is, as published; `teacher` scales it to the mean luma of
            the teacher's clean image, so that refinement pulls at colour and detail only.
    """

    range: ReflectanceRange = "unit"
    floor: float = 1 / 255
    noise: ReflectanceNoise = "subtracted"
    brightness: ReflectanceBrightness = "own"

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise ValueError(f"reflectance floor is {self.floor}, but must be in (0, 1]; 1/255 is usual")
        if self.range == "released" and self.noise == "smoothed":
            raise ValueError(
                "reflectance noise is smoothed, but the released range subtracts it; use --reflectance.range unit"
            )


def blur(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Gaussian 15 x 15, sigma 3, reflected borders; smaller kernels on images under 8 pixels."""
    sizes = [min(NOISE_KERNEL, 2 * side - 1) for side in image.shape[-2:]]
    result: Tensor = gaussian_blur2d(image, (sizes[0], sizes[1]), (NOISE_SIGMA, NOISE_SIGMA), border_type="reflect")
    return result


def illumination(low_unit: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """`l = max_c y`, the brightest channel of each pixel."""
    return low_unit.amax(dim=1, keepdim=True)


def noise_map(low_unit: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """`n = |gray(blur(y)) - gray(y)|`, the estimate of the noise."""
    return (gray(blur(low_unit)) - gray(low_unit)).abs()


def reflectance(low: Float[Tensor, "b 3 h w"], config: ReflectanceConfig) -> Float[Tensor, "b 3 h w"]:
    """Reflectance of `low` ([-1, 1]) on the scale of images, [-1, 1] for the `unit` range, at its own brightness.

    `r = (y - n) / max(l, floor)`, clamped to [0, 1], then mapped to [-1, 1] (paper eq. 6 and 7).
    """
    if config.range == "released":
        quotient = low / (illumination(low) + RELEASED_OFFSET)
        return quotient - noise_map(quotient)
    low_unit = unit_from_signed(low)
    if config.noise == "smoothed":
        signal = low_unit = blur(low_unit)
    else:
        signal = low_unit - noise_map(low_unit)
    unit = signal / illumination(low_unit).clamp(min=config.floor)
    return signed_from_unit(unit.clamp(0, 1))


def match_brightness(
    reflectance: Float[Tensor, "b 3 h w"], image: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Scales the reflectance ([-1, 1]) to the mean luma of an image in [-1, 1], such as the teacher's.

    What is brighter than white afterwards is clipped. A black reflectance stays black.
    """
    unit, image_unit = (unit_from_signed(value).clamp(0, 1) for value in (reflectance, image))
    own, wanted = (gray(value).mean(dim=(1, 2, 3), keepdim=True) for value in (unit, image_unit))
    return signed_from_unit((unit * (wanted / own.clamp(min=LEAST_LUMA))).clamp(0, 1))


def refinement_reflectance(
    low: Float[Tensor, "b 3 h w"], x_u: Float[Tensor, "b 3 h w"], config: ReflectanceConfig
) -> Float[Tensor, "b 3 h w"]:
    """The reflectance of `low` that refinement pulls the teacher's clean image `x_u` to; both in [-1, 1]."""
    own = reflectance(low, config)
    return match_brightness(own, x_u) if config.brightness == "teacher" else own
