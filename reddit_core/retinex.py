"""Reflectance of a low-light image by the Retinex model `y = r * l + n` (paper section 3.3)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from torch import Tensor

from reddit_core.brightness import gray
from reddit_core.pixels import signed_from_unit, unit_from_signed

ReflectanceRange = Literal["unit", "released"]

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
    """

    range: ReflectanceRange = "unit"
    floor: float = 1 / 255

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise ValueError(f"reflectance floor is {self.floor}, but must be in (0, 1]; 1/255 is usual")


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
    """Reflectance of `low` ([-1, 1]) on the scale of images, [-1, 1] for the `unit` range.

    `r = (y - n) / max(l, floor)`, clamped to [0, 1], then mapped to [-1, 1] (paper eq. 6 and 7).
    """
    if config.range == "released":
        quotient = low / (illumination(low) + RELEASED_OFFSET)
        return quotient - noise_map(quotient)
    low_unit = unit_from_signed(low)
    unit = (low_unit - noise_map(low_unit)) / illumination(low_unit).clamp(min=config.floor)
    return signed_from_unit(unit.clamp(0, 1))
