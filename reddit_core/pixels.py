"""Pixels as integers of full range, [..., H, W, 3], and as images, [B, 3, H, W]: `signed` in [-1, 1], `unit` in [0, 1].

Every conversion of the project is here, so that all of it rounds alike.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

SSIM_WINDOW = 11  # pixels a side; smaller images have no SSIM
Pixels = NDArray[np.unsignedinteger[Any]]
"""uint8 or uint16."""


def signed_from_pixels(pixels: Pixels, device: torch.device | str = "cpu") -> Float[Tensor, "b 3 h w"]:
    """[B, H, W, 3] or [H, W, 3] integers as float32 in [-1, 1], with their channels last in memory."""
    half_range = np.iinfo(pixels.dtype).max / 2
    # A copy, since torch must never write to what it is given; through int32, since it cannot convert uint16.
    values = torch.tensor(pixels if pixels.dtype == np.uint8 else pixels.astype(np.int32), device=device)
    images = values.permute(0, 3, 1, 2) if values.ndim == 4 else values.permute(2, 0, 1)[None]
    return images.float() / half_range - 1


def pixels_from_signed(images: Float[Tensor, "b 3 h w"], dtype: DTypeLike = np.uint8) -> Pixels:
    """[-1, 1] as rounded integers of full range, [B, H, W, 3]; what lies outside is clipped.

    Raises:
        ValueError: if a value is not finite.
    """
    if not images.isfinite().all():
        raise ValueError("the network's result holds values that are not finite; use fp32, or other weights")
    half_range = np.iinfo(np.dtype(dtype)).max / 2
    scaled = ((images.double().clamp(-1, 1) + 1) * half_range).round().to(torch.int32)
    result: Pixels = scaled.permute(0, 2, 3, 1).cpu().numpy().astype(dtype)
    return result


def unit_from_signed(images: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """[-1, 1] to [0, 1]."""
    return (images + 1) / 2


def signed_from_unit(images: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """[0, 1] to [-1, 1]."""
    return images * 2 - 1


def unit_from_pixels(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Float[Tensor, "b 3 h w"]:
    """[B, H, W, 3] uint8 as float32 in [0, 1]."""
    return torch.tensor(pixels, device=device).permute(0, 3, 1, 2).float() / 255


def pixels_from_unit(images: Float[Tensor, "b 3 h w"]) -> NDArray[np.uint8]:
    """[0, 1] as rounded uint8, [B, H, W, 3]; what lies outside is clipped."""
    rounded = (images * 255).round().clamp(0, 255).byte()
    result: NDArray[np.uint8] = rounded.permute(0, 2, 3, 1).cpu().numpy()
    return result


def rounded_to_8_bits(images_unit: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """[0, 1] rounded to multiples of 1/255; values that are not finite stay what they are."""
    return (images_unit * 255).round() / 255
