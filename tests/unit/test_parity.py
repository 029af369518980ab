"""Ours against figures that the authors' released code computed on a real crop (tests/golden)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reddit_core.diffusion import Estimate, predict
from reddit_core.retinex import ReflectanceConfig, reflectance
from reddit_core.sampler import ddim_sample
from reddit_core.trajectory import Levels, Segment, refine, refined_targets, teacher_segment, unrefined_x_target
from reddit_core.weights import NetworkFile, decode_network

Golden = dict[str, Tensor]


@pytest.fixture(scope="module")
def released(golden: Golden, save_pth: Callable[[Golden], bytes]) -> NetworkFile:
    """The released network, through the `.pth` reader."""
    return decode_network(
        save_pth({name: golden[name] for name in golden if name.startswith(("denoise_fn.", "betas"))})
    )


@pytest.fixture(scope="module")
def levels(golden: Golden) -> Levels:
    return Levels(*golden["levels_tus"].double().unbind(1))


@pytest.fixture(scope="module")
def segment(golden: Golden, released: NetworkFile, levels: Levels) -> Segment:
    def denoise(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Estimate:
        return predict(released.network, z, sqrt_alpha_bar, low=low)

    with torch.no_grad():
        return teacher_segment(denoise, image(golden, "normal"), golden["noise"], levels, low=image(golden, "low"))


def image(golden: Golden, name: str) -> Tensor:
    return (golden[name].float() / 255 - 0.5) / 0.5


def at_kept_pixels(value: Tensor) -> Tensor:
    """The pixels that the golden file keeps of every output."""
    return value[:, :, ::2, ::2]


def relative_error(value: Tensor, golden: Tensor) -> float:
    """The greatest error of any pixel, relative to its own size or to the mean size, whichever is more."""
    scale = golden.abs().maximum(golden.abs().mean())
    return float(((at_kept_pixels(value) - golden).abs() / scale).max())


def test_schedule_gives_the_released_betas(golden: Golden, released: NetworkFile) -> None:
    table = torch.cumprod(1 - golden["betas"].double(), dim=0)
    torch.testing.assert_close(released.schedule.alpha_bar[1:], table, rtol=1e-5, atol=0)


def test_unet(golden: Golden, released: NetworkFile) -> None:
    with torch.no_grad():
        output = released.network(golden["x_T"], golden["unet_level"], low=image(golden, "low"))
    assert (at_kept_pixels(output) - golden["unet_out"]).abs().max() < 1e-5


@pytest.mark.parametrize("num_steps", [8, 4, 2])
def test_ddim_as_released(golden: Golden, released: NetworkFile, num_steps: int) -> None:
    with torch.no_grad():
        low = image(golden, "low")
        result = ddim_sample(released.network, golden["x_T"], released.schedule, num_steps, "released", low=low)
    assert (at_kept_pixels(result) - golden[f"ddim_{num_steps}"]).abs().max() < 1e-4


def test_exact_ddim_is_another_one(golden: Golden, released: NetworkFile) -> None:
    with torch.no_grad():
        result = ddim_sample(released.network, golden["x_T"], released.schedule, 2, low=image(golden, "low"))
    assert (at_kept_pixels(result) - golden["ddim_2"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", Segment._fields)
def test_every_intermediate_of_a_segment(golden: Golden, segment: Segment, name: str) -> None:
    assert relative_error(getattr(segment, name), golden[f"segment/{name}"]) < 1e-4


def released_reflectance(golden: Golden) -> Tensor:
    return reflectance(image(golden, "low"), ReflectanceConfig(range="released"))


def test_reflectance_as_released(golden: Golden) -> None:
    assert relative_error(released_reflectance(golden), golden["reflectance_released"]) < 1e-5


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.8])
def test_refined_targets(golden: Golden, segment: Segment, levels: Levels, weight: float) -> None:
    r = released_reflectance(golden)
    z_s_refined = refine(segment.z_s, segment.x_u, r, levels.a_s, weight)
    targets = refined_targets(segment.z_t, segment.x_u, unrefined_x_target(segment, levels), r, levels, weight)
    assert relative_error(z_s_refined, golden[f"w{weight}/z_s_refined"]) < 1e-4
    assert relative_error(targets.x, golden[f"w{weight}/x_target"]) < 1e-4
    assert relative_error(targets.eps, golden[f"w{weight}/eps_target"]) < 1e-4
