"""Image quality: PSNR, SSIM and sharpness, raw or after matching the ground truth's mean brightness.

All take `estimate` and `normal` as [B, 3, H, W] in [0, 1] and return one value per image.
"""

import torch
from jaxtyping import Float
from kornia.filters import laplacian
from kornia.metrics import ssim as kornia_ssim
from torch import Tensor

from reddit_core.brightness import gray

SSIM_WINDOW = 11
# Laplacian energy of the error of rounding to 8 bits: variance in each channel times the squared weights of the luma
# and of the Laplacian. A ground truth with less energy has no detail to compare with.
FLAT = (1 / 255) ** 2 / 12 * (0.299**2 + 0.587**2 + 0.114**2) * (8 + 8**2) / 16**2
# Figures of results that were told the ground truth's brightness.
GIVEN = ("psnr_given", "ssim_given", "sharpness_given")
# Metrics that are NaN for images whose ground truth is flat.
SHARPNESS = ("sharpness", "sharpness_gt_mean", "sharpness_given")


def match_mean(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """GT-mean protocol: scales the estimate to the ground truth's mean luma, then clips to [0, 1].

    This uses the ground truth at test time (Zhang et al. 2019, KinD), so it is only ever reported
    beside the raw figure.
    """
    ratio = gray(normal).mean(dim=(1, 2, 3)) / gray(estimate).mean(dim=(1, 2, 3)).clamp(min=1e-8)
    return (estimate * ratio[:, None, None, None]).clamp(0, 1)


def match_moments(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Gives the estimate the ground truth's mean and deviation of luma, by one scale and one offset; clips to [0, 1].

    What PSNR gains by this is error of two numbers per image, brightness and contrast, and none of detail or colour.
    """
    (mean, deviation), (target_mean, target_deviation) = (
        (luma.mean(dim=(1, 2, 3), keepdim=True), luma.std(dim=(1, 2, 3), keepdim=True, correction=0))
        for luma in (gray(estimate.double()), gray(normal.double()))
    )
    matched = (estimate - mean) * (target_deviation / deviation.clamp(min=1e-8)) + target_mean
    return matched.clamp(0, 1).to(estimate.dtype)


def psnr(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB for data range 1; infinite for equal images."""
    mse = (estimate.double() - normal.double()).square().mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse)).float()


def ssim(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Structural similarity with the 11 x 11 Gaussian window of sigma 1.5 (Wang et al. 2004), mean over RGB.

    Windows that would leave the image are not counted; images smaller than the window raise a ValueError.
    """
    if min(estimate.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, not {tuple(estimate.shape[-2:])}")
    similarity: Tensor = kornia_ssim(estimate.double(), normal.double(), SSIM_WINDOW, padding="valid")
    return similarity.mean(dim=(1, 2, 3)).float()


def sharpness(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Laplacian energy of the luma relative to the ground truth's: 1 is right, below is blur, above is noise.

    NaN where the ground truth is flat.
    """
    energy, reference = (laplacian(gray(image), 3).square().mean(dim=(1, 2, 3)) for image in (estimate, normal))
    return torch.where(reference > FLAT, energy / reference, torch.nan)


def quality(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """Every metric under its report name: raw, `_gt_mean` after `match_mean`, `_moments` after `match_moments`."""
    matched = match_mean(estimate, normal)
    return {
        "psnr": psnr(estimate, normal),
        "psnr_gt_mean": psnr(matched, normal),
        "psnr_moments": psnr(match_moments(estimate, normal), normal),
        "ssim": ssim(estimate, normal),
        "ssim_gt_mean": ssim(matched, normal),
        "sharpness": sharpness(estimate, normal),
        "sharpness_gt_mean": sharpness(matched, normal),
    }


def quality_given(
    estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]
) -> dict[str, Float[Tensor, " b"]]:
    """The metrics, `_given`, of results that were told the ground truth's brightness.

    So they use the ground truth as GT-mean figures do, but as a person uses the setting: before enhancement.
    """
    figures = (metric(estimate, normal) for metric in (psnr, ssim, sharpness))
    return dict(zip(GIVEN, figures, strict=True))
