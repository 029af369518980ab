"""Image quality against scikit-image, and sharpness where it is known."""

import numpy as np
import pytest
import torch
from kornia.filters import laplacian
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from reddit_core import metrics
from reddit_core.brightness import gray
from reddit_core.metrics import FLAT, UNDEFINED_FOR_SOME, match_mean, match_moments, psnr, quality, sharpness, ssim
from reddit_core.retinex import blur

Photographs = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def normal(photographs: Photographs) -> Tensor:
    return torch.from_numpy(np.stack(list(photographs.values()))).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def estimate(normal: Tensor) -> Tensor:
    noise = 0.1 * torch.randn(normal.shape, generator=torch.Generator().manual_seed(0))
    return (0.7 * normal + noise).clamp(0, 1)


def each(estimate: Tensor, normal: Tensor) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return [(one.double().numpy(), other.double().numpy()) for one, other in zip(estimate, normal, strict=True)]


def test_psnr_is_scikit_images(estimate: Tensor, normal: Tensor) -> None:
    expected = [peak_signal_noise_ratio(other, one, data_range=1) for one, other in each(estimate, normal)]
    np.testing.assert_allclose(psnr(estimate, normal), expected, rtol=1e-6)


def test_ssim_is_scikit_images(estimate: Tensor, normal: Tensor) -> None:
    expected = [
        structural_similarity(
            other,
            one,
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, other in each(estimate, normal)
    ]
    np.testing.assert_allclose(ssim(estimate, normal), expected, rtol=1e-5)


def test_equal_images(normal: Tensor) -> None:
    figures = quality(normal, normal)
    assert (figures["psnr"] == torch.inf).all()
    for name in ("ssim", "ssim_gt_mean", "sharpness"):
        torch.testing.assert_close(figures[name], torch.ones(len(normal)))


def test_psnr_by_hand() -> None:
    zeros = torch.zeros(2, 3, 4, 4)
    offsets = torch.tensor([0.1, 0.5])[:, None, None, None].expand_as(zeros)
    np.testing.assert_allclose(psnr(offsets, zeros), [20, 10 * np.log10(4)], rtol=1e-6)


@pytest.mark.parametrize("gain", [0.0, 0.5, 2.0])
def test_sharpness_grows_with_the_square_of_contrast(normal: Tensor, gain: float) -> None:
    torch.testing.assert_close(
        sharpness(gain * normal + 0.1, normal), torch.full((len(normal),), gain**2), rtol=1e-3, atol=1e-5
    )


def test_sharpness_counts_detail() -> None:
    one, two = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    one[..., 4, 4] = two[..., 4, 4] = two[..., 11, 11] = 1
    torch.testing.assert_close(sharpness(two, one), torch.tensor([2.0]))


def test_a_flat_ground_truth_has_no_sharpness() -> None:
    """Flat is what has less detail than rounding to 8 bits brings."""
    flat, noise = torch.full((1, 3, 256, 256), 0.5), torch.rand(1, 3, 256, 256, generator=torch.manual_seed(0))
    assert sharpness(noise, flat).isnan().all() and sharpness(flat, flat).isnan().all()
    rounding = (noise * 255).round() / 255 - noise
    energy = laplacian(gray(rounding), 3).square().mean()
    torch.testing.assert_close(energy, torch.tensor(FLAT), rtol=0.02, atol=0)


def test_sharpness_tells_blur_from_noise(normal: Tensor) -> None:
    noisy = normal + 0.2 * torch.randn(normal.shape, generator=torch.Generator().manual_seed(0))
    assert (sharpness(blur(normal), normal) < 0.5).all() and (sharpness(noisy, normal) > 1.5).all()


def test_gt_mean_matches_the_mean_luma(normal: Tensor) -> None:
    dim = 0.25 * normal
    torch.testing.assert_close(match_mean(dim, normal), normal)
    brighter = match_mean(0.9 * normal, 0.5 * normal)
    torch.testing.assert_close(gray(brighter).mean(dim=(1, 2, 3)), gray(0.5 * normal).mean(dim=(1, 2, 3)))


def test_gt_mean_clips_and_bears_black() -> None:
    estimate = torch.zeros(1, 3, 12, 12)
    assert torch.equal(match_mean(estimate, estimate + 0.5), estimate)
    estimate[..., 0, 0] = 1
    assert match_mean(estimate, torch.full_like(estimate, 0.5)).max() == 1


def test_matched_moments_undo_one_scale_and_one_offset(normal: Tensor) -> None:
    normal = 0.3 + 0.3 * normal  # away from the ends, where nothing is clipped
    torch.testing.assert_close(match_moments(0.5 * normal + 0.2, normal), normal, rtol=1e-4, atol=1e-4)


def test_matched_moments_bear_flat_images(normal: Tensor) -> None:
    matched = match_moments(torch.full_like(normal, 0.2), normal)
    torch.testing.assert_close(gray(matched).mean(dim=(1, 2, 3)), gray(normal).mean(dim=(1, 2, 3)))


def test_quality_shows_raw_and_gt_mean_side_by_side(estimate: Tensor, normal: Tensor) -> None:
    figures = quality(estimate, normal)
    names = ["psnr", "psnr_gt_mean", "psnr_moments", "ssim", "ssim_gt_mean", "sharpness", "sharpness_gt_mean"]
    assert list(figures) == names
    assert torch.equal(figures["psnr"], psnr(estimate, normal))
    assert torch.equal(figures["psnr_gt_mean"], psnr(match_mean(estimate, normal), normal))
    assert torch.equal(figures["psnr_moments"], psnr(match_moments(estimate, normal), normal))
    dim = quality(0.6 * normal, normal)
    assert (dim["psnr_gt_mean"] > dim["psnr"]).all() and (dim["ssim_gt_mean"] > dim["ssim"]).all()
    ones = torch.ones(len(normal))
    torch.testing.assert_close(dim["sharpness"], 0.36 * ones, rtol=1e-4, atol=0)
    torch.testing.assert_close(dim["sharpness_gt_mean"], ones, rtol=1e-4, atol=0)


def test_images_below_the_window_have_no_ssim_but_every_other_figure() -> None:
    one = torch.rand(2, 3, 10, 30, generator=torch.manual_seed(0))
    figures = quality(0.5 * one, one)
    assert {name for name, values in figures.items() if values.isnan().any()} == {"ssim", "ssim_gt_mean"}
    assert sharpness(one[..., :1, :], one[..., :1, :]).isnan().all()


def test_a_black_ground_truth_has_no_figure_that_matches_its_brightness(normal: Tensor) -> None:
    black = torch.zeros_like(normal)
    figures = quality(torch.cat([normal, normal]), torch.cat([black, normal]))
    matched = {"psnr_gt_mean", "psnr_moments", "ssim_gt_mean", "sharpness", "sharpness_gt_mean"}
    for name, values in figures.items():
        assert values[: len(normal)].isnan().all() == (name in matched), name
        assert not values[len(normal) :].isnan().any()
    assert matched < set(UNDEFINED_FOR_SOME)


def test_figures_do_not_depend_on_the_bands(estimate: Tensor, normal: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quality(estimate, normal)
    for rows in (1, 7):
        monkeypatch.setattr(metrics, "BAND_PIXELS", rows * normal.shape[-1])
        banded = quality(estimate, normal)
        for name, values in whole.items():
            torch.testing.assert_close(banded[name], values, rtol=1e-5, atol=1e-6)
