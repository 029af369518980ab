"""Image quality: PSNR, SSIM and sharpness, raw or after matching the ground truth's mean brightness.

All take `estimate` and `normal` as [B, 3, H, W] in [0, 1] and return one value per image, NaN where a metric does not
exist. They work on bands of rows, so that a photograph of a camera needs little more memory than its pixels.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from kornia.filters import laplacian
from kornia.metrics import ssim as kornia_ssim
from torch import Tensor
from torch.nn import functional

from reddit_core.brightness import LEAST_LUMA, gray
from reddit_core.pixels import SSIM_WINDOW

BAND_PIXELS = 2**18
# Laplacian energy of the error of rounding to 8 bits: variance in each channel times the squared weights of the luma
# and of the Laplacian. A ground truth with less energy has no detail to compare with.
FLAT = (1 / 255) ** 2 / 12 * (0.299**2 + 0.587**2 + 0.114**2) * (8 + 8**2) / 16**2
# Figures of results that were told the ground truth's brightness.
GIVEN = ("psnr_given", "ssim_given", "sharpness_given")
# Metrics that are NaN for some images, which their means leave out: sharpness where the ground truth is flat, figures
# that match its brightness where it is black, SSIM and LPIPS where an image is too small.
UNDEFINED_FOR_SOME = (
    *("sharpness", "sharpness_gt_mean", "sharpness_given"),
    *("psnr_gt_mean", "psnr_moments"),
    *("ssim", "ssim_gt_mean", "ssim_given", "lpips"),
)


def bands(height: int, width: int, halo: int = 0) -> Iterator[slice]:
    """Bands of rows of about `BAND_PIXELS`, such that every window of 2 * halo + 1 rows lies in exactly one."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height - 2 * halo, rows):
        yield slice(top, top + rows + 2 * halo)


def match_mean(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """GT-mean protocol: scales the estimate to the ground truth's mean luma, then clips to [0, 1].

    This uses the ground truth at test time (Zhang et al. 2019, KinD), so it is only ever reported
    beside the raw figure. NaN where the ground truth is black: any estimate would be scaled to it.
    """
    target = gray(normal).mean(dim=(1, 2, 3))
    ratio = torch.where(target < LEAST_LUMA, torch.nan, target / gray(estimate).mean(dim=(1, 2, 3)).clamp(min=1e-8))
    return (estimate * ratio[:, None, None, None]).clamp(0, 1)


def match_moments(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Gives the estimate the ground truth's mean and deviation of luma, by one scale and one offset; clips to [0, 1].

    What PSNR gains by this is error of two numbers per image, brightness and contrast, and none of detail or colour.
    NaN where the ground truth is black, as in `match_mean`.
    """
    (mean, deviation), (target_mean, target_deviation) = luma_moments(estimate), luma_moments(normal)
    target_mean = torch.where(target_mean < LEAST_LUMA, torch.nan, target_mean)
    scale = target_deviation / deviation.clamp(min=1e-8)
    parts = [(estimate[:, :, rows] - mean) * scale + target_mean for rows in bands(*estimate.shape[-2:])]
    return torch.cat([part.clamp(0, 1).to(estimate.dtype) for part in parts], dim=2)


def luma_moments(image: Float[Tensor, "b 3 h w"]) -> tuple[Float64[Tensor, "b 1 1 1"], Float64[Tensor, "b 1 1 1"]]:
    """Mean and deviation of each image's luma."""
    num_pixels = image.shape[-2] * image.shape[-1]
    lumas = [gray(image[:, :, rows].double()) for rows in bands(*image.shape[-2:])]
    mean = torch.stack([luma.sum(dim=(1, 2, 3), keepdim=True) for luma in lumas]).sum(dim=0) / num_pixels
    squares = torch.stack([(luma - mean).square().sum(dim=(1, 2, 3), keepdim=True) for luma in lumas]).sum(dim=0)
    return mean, (squares / num_pixels).sqrt()


def psnr(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB for data range 1; infinite for equal images."""
    squares = [
        (estimate[:, :, rows].double() - normal[:, :, rows].double()).square().sum(dim=(1, 2, 3))
        for rows in bands(*estimate.shape[-2:])
    ]
    mse = torch.stack(squares).sum(dim=0) / estimate[0].numel()
    return (-10 * torch.log10(mse)).float()


def ssim(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Structural similarity with the 11 x 11 Gaussian window of sigma 1.5 (Wang et al. 2004), mean over RGB.

    Windows that would leave the image are not counted; NaN for images that are smaller than the window.
    """
    height, width = estimate.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        return torch.full_like(estimate[:, 0, 0, 0], torch.nan)
    sums = [
        kornia_ssim(estimate[:, :, rows].double(), normal[:, :, rows].double(), SSIM_WINDOW, padding="valid").sum(
            dim=(1, 2, 3)
        )
        for rows in bands(height, width, SSIM_WINDOW // 2)
    ]
    num_windows = 3 * (height - SSIM_WINDOW + 1) * (width - SSIM_WINDOW + 1)
    return (torch.stack(sums).sum(dim=0) / num_windows).float()


def sharpness(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Laplacian energy of the luma relative to the ground truth's: 1 is right, below is blur, above is noise.

    NaN where the ground truth is flat, or an image has a single row or column.
    """
    if min(estimate.shape[-2:]) == 1:
        return torch.full_like(estimate[:, 0, 0, 0], torch.nan)
    energy, reference = (laplacian_energy(image) for image in (estimate, normal))
    return torch.where(reference > FLAT, energy / reference, torch.nan)


def laplacian_energy(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean square of the luma's 3 x 3 Laplacian; borders are mirrored."""
    luma = functional.pad(gray(image), (1, 1, 1, 1), mode="reflect")
    edges = (laplacian(luma[:, :, rows], 3)[..., 1:-1, 1:-1] for rows in bands(luma.shape[-2], luma.shape[-1], halo=1))
    squares = torch.stack([part.square().sum(dim=(1, 2, 3)) for part in edges])
    return squares.sum(dim=0) / (image.shape[-2] * image.shape[-1])


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
