"""Reflectance, illumination and noise by the Retinex model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from reddit_core.brightness import gray
from reddit_core.retinex import (
    ReflectanceConfig,
    blur,
    illumination,
    match_brightness,
    noise_map,
    refinement_reflectance,
    reflectance,
)

CONFIG = ReflectanceConfig()
Photographs = dict[str, NDArray[np.uint8]]


def as_unit(photographs: Photographs) -> Tensor:
    stacked = torch.from_numpy(np.stack(list(photographs.values())))
    return stacked.permute(0, 3, 1, 2).double() / 255


def flat(*rgb: float) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float64)[None, :, None, None].expand(1, 3, 20, 24)


@pytest.mark.parametrize("exposure", [0.5, 0.1, 0.02])
def test_reflectance_does_not_see_a_global_exposure_change(photographs: Photographs, exposure: float) -> None:
    unit = 0.25 + 0.75 * as_unit(photographs)  # so that at no exposure the floor is reached
    full, dark = (reflectance(image * 2 - 1, CONFIG) for image in (unit, exposure * unit))
    torch.testing.assert_close(dark, full)
    assert full.std() > 0.1


def test_the_floor_keeps_near_black_dark(photographs: Photographs) -> None:
    unit = as_unit(photographs) * 0.1 / 255  # the whole photograph below the floor
    floored = (reflectance(unit * 2 - 1, CONFIG) + 1) / 2
    torch.testing.assert_close(floored, ((unit - noise_map(unit)) * 255).clamp(0, 1))
    assert floored.max() <= 0.1 + 1e-9


@pytest.mark.parametrize("rgb", [(0.2, 0.2, 0.2), (0.4, 0.1, 0.2), (0.9, 0.95, 0.05)])
def test_a_flat_surface_has_its_own_colour(rgb: tuple[float, float, float]) -> None:
    image = flat(*rgb)
    torch.testing.assert_close(reflectance(image * 2 - 1, CONFIG), image / max(rgb) * 2 - 1)
    assert noise_map(image).max() < 1e-12
    assert torch.equal(illumination(image), torch.full_like(image[:, :1], max(rgb)))


def test_black_has_no_reflectance() -> None:
    assert torch.equal(reflectance(flat(-1, -1, -1), CONFIG), flat(-1, -1, -1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=30)
def test_reflectance_stays_in_range_at_any_size(seed: int, height: int, width: int) -> None:
    low = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    result = reflectance(low, CONFIG)
    assert result.shape == low.shape and result.abs().max() <= 1


def test_gray_is_luma() -> None:
    torch.testing.assert_close(gray(flat(1, 0, 0))[0, 0, 0, 0].item(), 0.299)
    torch.testing.assert_close(gray(flat(0, 1, 0))[0, 0, 0, 0].item(), 0.587)
    torch.testing.assert_close(gray(flat(0.3, 0.3, 0.3)), flat(0.3, 0.3, 0.3)[:, :1])


def test_blur_is_the_gaussian_of_15_pixels_and_sigma_3(photographs: Photographs) -> None:
    unit = as_unit(photographs)
    expected = gaussian_filter(unit.numpy(), sigma=3, truncate=7 / 3, mode="mirror", axes=(2, 3))
    torch.testing.assert_close(blur(unit), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_noise_is_what_blurring_removes(photographs: Photographs) -> None:
    unit = as_unit(photographs)
    torch.testing.assert_close(noise_map(unit), (blur(gray(unit)) - gray(unit)).abs())


def test_released_quotient_on_flat_surfaces() -> None:
    released = ReflectanceConfig(range="released")
    for rgb in ((-0.9, -0.95, -0.8), (0.5, 0.1, 0.2)):
        torch.testing.assert_close(reflectance(flat(*rgb), released), flat(*rgb) / (max(rgb) + 0.1))
    near_white = reflectance(flat(-0.9, -0.95, -0.8), released)
    assert near_white.min() > 1  # what is dark comes out bright: the reason for the unit range


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.5])
def test_a_floor_outside_the_range_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=rf"reflectance floor is {floor}, but must be in \(0, 1\]; 1/255 is usual"):
        ReflectanceConfig(floor=floor)


def test_smoothing_removes_noise_that_subtraction_leaves(photographs: Photographs) -> None:
    clean = 0.05 + 0.2 * as_unit(photographs)
    noisy = clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    errors = {}
    for noise in ("subtracted", "smoothed"):
        config = ReflectanceConfig(noise=noise)
        difference = reflectance(noisy * 2 - 1, config) - reflectance(clean * 2 - 1, config)
        errors[noise] = difference.square().mean()
    assert errors["smoothed"] < 0.05 * errors["subtracted"]


def test_reflectance_is_brought_to_the_teachers_brightness(photographs: Photographs) -> None:
    unit = as_unit(photographs)
    low, x_u = unit * 0.1 * 2 - 1, unit * 0.4 * 2 - 1
    own, matched = (refinement_reflectance(low, x_u, ReflectanceConfig(brightness=name)) for name in ("own", "teacher"))
    assert torch.equal(own, reflectance(low, CONFIG))
    luma = [gray((image + 1) / 2).mean(dim=(1, 2, 3)) for image in (matched, x_u)]
    torch.testing.assert_close(luma[0], luma[1])
    assert torch.equal(match_brightness(flat(-1, -1, -1), flat(1, 1, 1)), flat(-1, -1, -1))


def test_the_released_range_refuses_to_smooth() -> None:
    with pytest.raises(ValueError, match=r"noise is smoothed, but the released range subtracts it; use .* unit"):
        ReflectanceConfig(range="released", noise="smoothed")
