"""The distillation loss, term by term and sample by sample (docs/method.md, section 6; paper eq. 11 to 13)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from kornia.filters import laplacian
from kornia.metrics import ssim as kornia_ssim
from torch import Tensor
from torch.nn import functional

from reddit_core.brightness import gray
from reddit_core.diffusion import Estimate, v_from
from reddit_core.networks import Prediction
from reddit_core.pixels import unit_from_signed
from reddit_core.schedule import sigma_of
from reddit_core.trajectory import Targets

LOSS_WINDOW = 7
# Laplacian energy that counts as none: the grain of a quarter of an 8-bit step.
LEAST_ENERGY = 1e-6

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
"""Maps (estimate, normal), [B, 3, H, W] float32 in [-1, 1], to a distance per sample, [B]."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms beside the distillation term, whose weight is `distill`.

    The authors' published weights are pixel 1.0 and perceptual 0.6.
    """

    distill: float = 1.0
    pixel: float = 1.0
    ssim: float = 0.0
    detail: float = 0.0
    perceptual: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"loss weight {name} is {value}, but must not be negative; 0 leaves the term out")
        if not any(asdict(self).values()):
            raise ValueError("every loss weight is 0, so nothing would be learned; set at least one above 0")


def mse_per_sample(estimate: Float[Tensor, " b *rest"], target: Float[Tensor, " b *rest"]) -> Float[Tensor, " b"]:
    """Mean squared error over all but the first dimension, in the dtype of the inputs; returned as float32."""
    return (estimate - target).square().flatten(1).mean(dim=1).float()


def regression(estimate: Estimate, x: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """`max(mse(x), mse(eps))`: truncated-SNR weighting (Salimans and Ho 2022, section 4)."""
    return torch.maximum(mse_per_sample(estimate.x_0, x), mse_per_sample(estimate.eps, eps))


def dissimilarity(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """`1 - SSIM` of images in [-1, 1] (Wang et al. 2004), in float32, with a window that is quick to train with."""
    images = unit_from_signed(estimate.float()), unit_from_signed(normal.float())
    similarity: Tensor = kornia_ssim(*images, LOSS_WINDOW)
    return 1 - similarity.flatten(1).mean(dim=1)


def detail_loss(estimate: Float[Tensor, "b 3 h w"], normal: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """How far the amount of fine detail is from the ground truth's, 0 to 1, wherever exactly the detail lies.

    `1 - 2 sqrt(E F) / (E + F)` with E and F the local energies of the luma's Laplacian, means over a window of
    `LOSS_WINDOW` pixels: the contrast factor of SSIM (Wang et al. 2004, eq. 9) on the finest scale. Squared errors
    prefer too little detail where its place is uncertain; this does not. Images in [-1, 1]; float32.
    """
    energies = [local_energy(image) + LEAST_ENERGY for image in (estimate, normal)]
    similarity = 2 * (energies[0] * energies[1]).sqrt() / (energies[0] + energies[1])
    return 1 - similarity.flatten(1).mean(dim=1)


def local_energy(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 _ _"]:
    """Mean square of the luma's 3 x 3 Laplacian in every window of `LOSS_WINDOW` pixels; for an image in [-1, 1]."""
    edges = laplacian(gray(unit_from_signed(image.float())), 3)
    return functional.avg_pool2d(edges.square(), LOSS_WINDOW, stride=1)


def distillation_terms(
    estimate: Estimate,
    targets: Targets,
    x_0: Float[Tensor, "b 3 h w"],
    eps: Float[Tensor, "b 3 h w"],
    weights: LossWeights,
    perceptual: PerceptualDistance | None = None,
) -> dict[str, Float[Tensor, " b"]]:
    """The terms of the loss per sample, unweighted, by the names of their weights; those of weight 0 are left out.

    Raises:
        ValueError: if a perceptual weight is given without a backbone.
    """
    terms = {}
    if weights.distill:
        terms["distill"] = regression(estimate, targets.x, targets.eps)
    if weights.pixel:
        terms["pixel"] = regression(estimate, x_0.double(), eps.double())
    if weights.ssim:
        terms["ssim"] = dissimilarity(estimate.x_0, x_0)
    if weights.detail:
        terms["detail"] = detail_loss(estimate.x_0, x_0)
    if weights.perceptual:
        if perceptual is None:
            raise ValueError(
                f"loss weight perceptual is {weights.perceptual}, but no LPIPS backbone was given; "
                "give one with --lpips, or set the weight to 0"
            )
        terms["perceptual"] = perceptual(estimate.x_0.clamp(-1, 1).float(), x_0.float())
    return terms


def total(terms: dict[str, Float[Tensor, " b"]], weights: LossWeights) -> Float[Tensor, " b"]:
    """The weighted sum of the terms, per sample."""
    return torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum(dim=0)


def teacher_loss(
    output: Float[Tensor, "b 3 h w"],
    x_0: Float[Tensor, "b 3 h w"],
    eps: Float[Tensor, "b 3 h w"],
    sqrt_alpha_bar: Float[Tensor, " b"],
    prediction: Prediction,
) -> Float[Tensor, " b"]:
    """Mean squared error of a teacher's own output per sample (Ho et al. 2020, eq. 14).

    For `x` it is divided by `max(sigma, 0.5)^2`: the loss of `v` with its weight limited where there is little noise.
    """
    if prediction == "x":
        return mse_per_sample(output.float(), x_0.float()) / sigma_of(sqrt_alpha_bar).clamp(min=0.5).square().float()
    target = eps if prediction == "eps" else v_from(x_0, eps, sqrt_alpha_bar)
    return mse_per_sample(output.float(), target.float())
