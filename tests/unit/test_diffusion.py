"""The algebra between x_0, eps, v, z_t and one DDIM step."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reddit_core.diffusion import (
    add_noise,
    ddim_step,
    eps_from_x_0,
    interpret,
    predict,
    refinement_gain,
    solve_x_target,
    v_from,
    x_0_from_eps,
)
from reddit_core.networks.interface import Prediction
from reddit_core.networks.sr3_unet import UNet

# Below 0.05 an image could not be told from noise; above 0.999 eps could not be told from rounding.
noisy_levels = st.floats(0.05, 0.999)
seeds = st.integers(0, 2**32 - 1)


def normal_images(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(count)]


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(seeds, noisy_levels, noisy_levels)
@settings(max_examples=30)
def test_noise_and_image_are_recovered_from_each_other(seed: int, one: float, other: float) -> None:
    x_0, eps = normal_images(seed, 2)
    a = levels(one, other)
    z = add_noise(x_0, eps, a)
    torch.testing.assert_close(x_0_from_eps(z, eps, a), x_0)
    torch.testing.assert_close(eps_from_x_0(z, x_0, a), eps)


def test_add_noise_by_hand() -> None:
    z = add_noise(torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), -2.0), levels(0.6))
    torch.testing.assert_close(z, torch.full((1, 3, 1, 1), 0.6 * 0.5 + 0.8 * -2.0, dtype=torch.float64))


@given(seeds, noisy_levels, noisy_levels)
@settings(max_examples=30)
def test_all_kinds_of_output_mean_the_same(seed: int, one: float, other: float) -> None:
    x_0, eps = normal_images(seed, 2)
    a = levels(one, other)
    z = add_noise(x_0, eps, a)
    outputs: dict[Prediction, torch.Tensor] = {"eps": eps, "v": v_from(x_0, eps, a), "x": x_0}
    for kind, output in outputs.items():
        estimate = interpret(output, z, a, kind)
        torch.testing.assert_close(estimate.x_0, x_0)
        torch.testing.assert_close(estimate.eps, eps)


@given(seeds, noisy_levels)
@settings(max_examples=30)
def test_any_v_or_x_gives_an_estimate_that_makes_up_z(seed: int, level: float) -> None:
    z, output = normal_images(seed, 2)
    a = levels(level, level)
    for kind in ("v", "x"):
        estimate = interpret(output, z, a, kind)
        torch.testing.assert_close(add_noise(estimate.x_0, estimate.eps, a), z)
    assert torch.equal(estimate.x_0, output)


@given(seeds, st.floats(0.05, 0.9), st.floats(0.01, 1))
@settings(max_examples=50)
def test_one_step_with_the_solved_target_lands_where_it_should(seed: int, a_t: float, share: float) -> None:
    """`a_s` lies anywhere from just above `a_t` to exactly clean."""
    z_t, z_s = normal_images(seed, 2)
    a_s = a_t + share * (1 - a_t)
    t, s = levels(a_t, a_t), levels(a_s, a_s)
    x_target = solve_x_target(z_t, z_s, t, s)
    torch.testing.assert_close(ddim_step(x_target, eps_from_x_0(z_t, x_target, t), s), z_s, rtol=1e-9, atol=1e-9)


@given(seeds, st.floats(0.05, 0.9), st.floats(0.01, 1))
@settings(max_examples=30)
def test_refinement_gain_is_how_the_target_follows_the_end(seed: int, a_t: float, share: float) -> None:
    z_t, z_s, pull = normal_images(seed, 3)
    a_s = a_t + share * (1 - a_t)
    t, s = levels(a_t, a_t), levels(a_s, a_s)
    moved = solve_x_target(z_t, z_s + a_s * pull, t, s) - solve_x_target(z_t, z_s, t, s)
    torch.testing.assert_close(moved, refinement_gain(t, s) * pull, rtol=1e-7, atol=1e-7)


def test_a_step_to_the_clean_end_is_the_image_itself() -> None:
    x_0, eps = normal_images(0, 2)
    assert torch.equal(ddim_step(x_0, eps, levels(1, 1)), x_0)


def test_predict_runs_in_the_networks_dtype_and_answers_in_float64(tiny_unet: UNet) -> None:
    low, z = normal_images(0, 2)
    a = levels(0.3, 0.9)
    with torch.no_grad():
        single = predict(tiny_unet, z, a, low=low)
        raw = tiny_unet(z.float(), a.float(), low=low.float())
        double = predict(tiny_unet.double(), z, a, low=low)
    assert torch.equal(single.x_0, interpret(raw, z, a, "v").x_0)
    assert single.x_0.dtype == single.eps.dtype == torch.float64
    torch.testing.assert_close(single.x_0, double.x_0, rtol=1e-4, atol=1e-4)
    assert not torch.equal(single.x_0, double.x_0)
