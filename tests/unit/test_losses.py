"""The loss, term by term and sample by sample."""

import pytest
import torch
from torch import Tensor

from reddit_core.diffusion import Estimate, add_noise, per_image, v_from
from reddit_core.losses import (
    LossWeights,
    detail_loss,
    dissimilarity,
    distillation_terms,
    mse_per_sample,
    regression,
    teacher_loss,
    total,
)
from reddit_core.trajectory import Targets


def flat(*values: float) -> Tensor:
    """One image per value, [B, 3, 2, 4], every pixel of which has that value."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 2, 4)


ESTIMATE = Estimate(flat(0.5, 0.0), flat(1.0, 2.0))
TARGETS = Targets(flat(0.0, 0.0), flat(1.1, 0.0))
X_0, EPS = flat(0.2, 0.3).float(), flat(1.0, 1.9).float()


def test_mse_is_per_sample() -> None:
    images = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 2.0]]]])
    assert mse_per_sample(images, torch.zeros_like(images)).tolist() == [5.0, 2.0]


def test_regression_takes_the_greater_of_x_and_eps() -> None:
    result = regression(ESTIMATE, TARGETS.x, TARGETS.eps)
    torch.testing.assert_close(result, torch.tensor([0.25, 4.0]))  # the first is x's, the second eps's


def test_terms_and_total_by_hand() -> None:
    weights = LossWeights(distill=2.0, pixel=0.5, perceptual=3.0)
    terms = distillation_terms(
        ESTIMATE, TARGETS, X_0, EPS, weights, lambda one, other: (one - other).abs().flatten(1).amax(dim=1)
    )
    torch.testing.assert_close(terms["distill"], torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(terms["pixel"], torch.tensor([0.09, 0.09]))
    torch.testing.assert_close(terms["perceptual"], torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(total(terms, weights), torch.tensor([0.5 + 0.045 + 0.9, 8.0 + 0.045 + 0.9]))


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (LossWeights(), {"distill", "pixel"}),
        (LossWeights(pixel=0.0), {"distill"}),
        (LossWeights(distill=0.0), {"pixel"}),
        (LossWeights(perceptual=0.6), {"distill", "pixel", "perceptual"}),
    ],
)
def test_terms_of_weight_0_are_left_out(weights: LossWeights, names: set[str]) -> None:
    terms = distillation_terms(ESTIMATE, TARGETS, X_0, EPS, weights, lambda one, _: one.mean(dim=(1, 2, 3)))
    assert set(terms) == names
    assert total(terms, weights).shape == (2,)


def test_the_perceptual_term_sees_images_in_range() -> None:
    seen = []

    def distance(estimate: Tensor, normal: Tensor) -> Tensor:
        seen.extend([estimate, normal])
        return estimate.new_zeros(len(estimate))

    wild = Estimate(flat(-7.0, 7.0), ESTIMATE.eps)
    distillation_terms(wild, TARGETS, X_0, EPS, LossWeights(perceptual=1.0), distance)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], flat(-1.0, 1.0).float()) and torch.equal(seen[1], X_0)


def test_a_perfect_student_loses_nothing() -> None:
    terms = distillation_terms(Estimate(*TARGETS), TARGETS, X_0, EPS, LossWeights(pixel=0.0))
    assert terms["distill"].tolist() == [0, 0]


def test_gradient_of_one_sample_does_not_reach_another() -> None:
    x_0 = ESTIMATE.x_0.clone().requires_grad_()
    weights = LossWeights()
    terms = distillation_terms(Estimate(x_0, ESTIMATE.eps), TARGETS, X_0, EPS, weights)
    total(terms, weights)[0].backward()
    assert x_0.grad[0].abs().sum() > 0 and x_0.grad[1].abs().sum() == 0


def test_teacher_loss_is_on_its_own_output() -> None:
    a = torch.tensor([0.6, 0.8], dtype=torch.float64)
    v = v_from(X_0, EPS, a)
    torch.testing.assert_close(teacher_loss(EPS + 0.1, X_0, EPS, a, "eps"), torch.tensor([0.01, 0.01]))
    torch.testing.assert_close(teacher_loss(v + 0.2, X_0, EPS, a, "v"), torch.tensor([0.04, 0.04]))


def test_teacher_loss_of_x_is_that_of_v_with_its_weight_limited() -> None:
    """By hand at sigma 0.8 and 0.6; at the clean end it is divided by 0.25."""
    a = torch.tensor([0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(teacher_loss(X_0 + 0.2, X_0, EPS, a, "x"), torch.tensor([0.04 / 0.64, 0.04 / 0.36]))
    z = add_noise(X_0, EPS, a)
    v = (per_image(a) * z - (X_0 + 0.2)) / (1 - per_image(a).square()).sqrt()
    torch.testing.assert_close(teacher_loss(X_0 + 0.2, X_0, EPS, a, "x"), teacher_loss(v, X_0, EPS, a, "v"))
    clean = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(teacher_loss(X_0 + 0.2, X_0, EPS, clean, "x"), torch.tensor([0.16, 0.16]))


@pytest.mark.parametrize("name", ["distill", "pixel", "perceptual"])
def test_a_negative_weight_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"loss weight {name} is -0.5, but must not be negative; 0 leaves"):
        LossWeights(**{name: -0.5})


def test_weights_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="every loss weight is 0, so nothing would be learned; set at least one"):
        LossWeights(distill=0.0, pixel=0.0)


def test_a_perceptual_weight_without_a_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"perceptual is 0.6, but no LPIPS backbone was given; give one with --lpips"):
        distillation_terms(ESTIMATE, TARGETS, X_0, EPS, LossWeights(perceptual=0.6))


def test_dissimilarity_is_one_minus_ssim() -> None:
    image = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(dissimilarity(image, image), torch.zeros(2))
    assert (dissimilarity(image, -image) > 0.5).all()
    assert dissimilarity(image.double(), image).dtype == torch.float32
    estimate, eps = Estimate(x_0=image, eps=image), image
    terms = distillation_terms(estimate, Targets(x=image, eps=eps), image, eps, LossWeights(ssim=0.5))
    assert set(terms) == {"distill", "pixel", "ssim"}


def test_detail_is_counted_wherever_it_lies() -> None:
    generator = torch.Generator().manual_seed(0)
    texture = 0.1 * torch.randn(1, 3, 24, 24, generator=generator)
    elsewhere = 0.1 * torch.randn(1, 3, 24, 24, generator=generator)
    assert detail_loss(texture, texture).item() == pytest.approx(0, abs=1e-6)
    # As much detail in other places is nearly as good, which squared errors would call twice as bad as none.
    assert detail_loss(elsewhere, texture) < 0.05
    none = detail_loss(torch.zeros_like(texture), texture)
    assert none > 0.8 > detail_loss(0.3 * texture, texture) > 0.2
    assert detail_loss(3 * texture, texture).item() == pytest.approx(detail_loss(texture, 3 * texture).item())


def test_detail_has_finite_gradients_where_there_is_none() -> None:
    blank = torch.zeros(1, 3, 8, 8, requires_grad=True)
    detail_loss(blank, torch.zeros(1, 3, 8, 8)).sum().backward()
    assert blank.grad is not None and torch.isfinite(blank.grad).all()
