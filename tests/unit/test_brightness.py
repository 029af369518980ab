"""Brightness as a setting: moments of whole images, gains, and the last scale."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reddit_core.brightness import (
    MAX_SCALE,
    brightness_scale,
    luma_moments,
    luma_moments_of_pixels,
    scale_and_shift,
)


def mean_luma(images: torch.Tensor) -> torch.Tensor:
    return luma_moments([images])[0]


def match_brightness(images: torch.Tensor, brightness: torch.Tensor) -> torch.Tensor:
    scale = brightness_scale(images, brightness)
    return scale_and_shift(images, scale, torch.zeros_like(scale))


def random_pixels(shape: tuple[int, int], dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (*shape, 3), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mean_luma_is_that_of_the_whole_image(dtype: type) -> None:
    pixels = random_pixels((700, 31), dtype)
    luma = pixels / np.iinfo(dtype).max @ [0.299, 0.587, 0.114]
    assert luma_moments_of_pixels(pixels)[0] == pytest.approx(luma.mean(), abs=1e-12)
    for value in (0, np.iinfo(dtype).max):
        flat: NDArray[Any] = np.full((9, 7, 3), value, dtype=dtype)
        assert luma_moments_of_pixels(flat)[0] == pytest.approx(value / np.iinfo(dtype).max)


def test_mean_luma_of_pixels_and_of_images_agree() -> None:
    pixels = random_pixels((40, 30), np.uint8)
    unit = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    assert mean_luma(unit).item() == pytest.approx(luma_moments_of_pixels(pixels)[0], abs=1e-6)


@pytest.mark.parametrize("brightness", [0.2, 0.45, 0.6])
def test_matched_brightness_is_met_in_spite_of_clipping(brightness: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 40, 30, generator=generator) ** 2
    matched = match_brightness(images, torch.full((2,), brightness))
    assert matched.min() >= 0
    assert matched.max() <= 1
    assert mean_luma(matched).tolist() == pytest.approx([brightness] * 2, abs=0.01)


def test_a_higher_brightness_gives_a_brighter_image() -> None:
    images = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    means = mean_luma(match_brightness(images, torch.tensor([0.1, 0.3, 0.5, 0.7]))).tolist()
    assert means == sorted(means)
    assert means[0] < means[-1]


def test_black_and_white_images_stay_finite() -> None:
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    matched = match_brightness(images, torch.tensor([0.5, 0.5]))
    assert matched[0].abs().max() == 0
    assert mean_luma(matched)[1].item() == pytest.approx(0.5)
    dark = match_brightness(torch.full((1, 3, 8, 8), 0.01), torch.tensor([0.9]))
    assert mean_luma(dark).item() == pytest.approx(0.01 * MAX_SCALE)
