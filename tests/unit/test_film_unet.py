"""The default network: its inputs, its prediction, and that a student reaches the brightness that is asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reddit_core.brightness import luma_moments_of_pixels
from reddit_core.diffusion import predict
from reddit_core.networks import build
from reddit_core.networks.film_unet import FilmUNet, FilmUNetConfig, curved_image, logarithm
from reddit_core.networks.sr3_unet import UNetConfig
from reddit_core.student import Student
from reddit_core.weights import NetworkFile, decode_network, encode_network

SMALL = {"channels": (8, 16), "norm_groups": 4, "embedding_channels": 16}


def make_network(seed: int = 0, **settings: Any) -> FilmUNet:
    """A small network whose zero-initialised convolutions are not zero, so that everything has an effect."""
    torch.manual_seed(seed)
    network = FilmUNet(FilmUNetConfig(**{**SMALL, **settings}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def random_images(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, size, size)
    return torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) * 0.2 - 1


def make_student(**settings: Any) -> Student:
    file = NetworkFile(network=make_network(**settings), brightness=0.45, facts={"num_steps": 2})
    return Student(decode_network(encode_network(file)))


def dark_pixels(height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, np.iinfo(dtype).max // 8, (height // 8 + 1, width // 8 + 1, 3))
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(dtype)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@torch.no_grad()
def test_the_output_has_the_size_of_the_input(patch_size: int) -> None:
    network = make_network(patch_size=patch_size)
    z, low = random_images(size=network.config.size_multiple * 3)
    assert network(z, torch.tensor([0.3, 0.9]), low=low, gain=torch.tensor([4.0, 9.0])).shape == z.shape


@torch.no_grad()
def test_every_input_has_an_effect() -> None:
    network = make_network()
    z, low = random_images()
    level, gain = torch.tensor([0.3, 0.3]), torch.tensor([4.0, 4.0])
    output = network(z, level, low=low, gain=gain)
    assert not torch.equal(output, network(z + 0.1, level, low=low, gain=gain))
    assert not torch.equal(output, network(z, level + 0.1, low=low, gain=gain))
    assert not torch.equal(output, network(z, level, low=low + 0.1, gain=gain))
    assert not torch.equal(output, network(z, level, low=low, gain=gain * 1.5))


def test_forms_of_the_low_image_lie_within_bounds() -> None:
    low = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    for form in (logarithm(low), curved_image(low, torch.tensor([1.5]), 0.77)):
        assert -1 <= form.min() < form.max() <= 1 + 1e-6


def test_a_missing_gain_and_a_wrong_size_are_rejected() -> None:
    network = make_network()
    z, low = random_images()
    with pytest.raises(ValueError, match="needs the gain"):
        network(z, torch.ones(2), low=low)
    with pytest.raises(ValueError, match="multiples of 8"):
        network(z[..., :15], torch.ones(2), low=low[..., :15], gain=torch.ones(2))


@torch.no_grad()
def test_x_prediction_is_the_estimate_of_x_0() -> None:
    network = make_network()
    z, low = random_images()
    level, gain = torch.tensor([0.3, 0.9], dtype=torch.float64), torch.tensor([4.0, 9.0])
    estimate = predict(network, z, level, low=low, gain=gain)
    torch.testing.assert_close(estimate.x_0.float(), network(z, level.float(), low=low, gain=gain))
    a, sigma = level[:, None, None, None], (1 - level**2).sqrt()[:, None, None, None]
    torch.testing.assert_close(a * estimate.x_0 + sigma * estimate.eps, z.double())


def test_weights_say_kind_and_brightness() -> None:
    file = NetworkFile(network=make_network(patch_size=2, dropout=0.1), brightness=0.47)
    found = decode_network(encode_network(file))
    assert found.network.config == file.network.config
    assert found.brightness == 0.47
    for name, value in file.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("brightness", [None, 0.25, 0.4])
def test_a_result_has_the_brightness_that_was_asked_for(brightness: float | None, dtype: type) -> None:
    student = make_student()
    result = student.enhance(dark_pixels(37, 50, dtype), brightness=brightness)
    assert luma_moments_of_pixels(result)[0] == pytest.approx(brightness or 0.45, abs=0.01)


def test_brightness_is_monotone_pixel_means_and_all() -> None:
    student, pixels = make_student(), dark_pixels(32, 32)
    means = [luma_moments_of_pixels(student.enhance(pixels, brightness=value))[0] for value in (0.2, 0.3, 0.4, 0.5)]
    assert means == sorted(means)
    assert means[-1] - means[0] > 0.2


def test_tiles_and_the_whole_image_have_the_same_gain_and_brightness() -> None:
    student, pixels = make_student(), dark_pixels(96, 96)
    whole = student.enhance(pixels, brightness=0.4).astype(int)
    tiled = student.enhance(pixels, brightness=0.4, tile=64, overlap=16).astype(int)
    assert luma_moments_of_pixels(tiled.astype(np.uint8))[0] == pytest.approx(0.4, abs=0.01)
    assert np.abs(whole - tiled).mean() < 2


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_photographs_are_enhanced(value: int) -> None:
    student = make_student()
    result = student.enhance(np.full((20, 24, 3), value, dtype=np.uint8))
    assert result.shape == (20, 24, 3)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_brightness_out_of_range_is_rejected(value: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        make_student().enhance(dark_pixels(16, 16), brightness=value)


def test_weights_without_a_brightness_need_one_to_be_asked_for() -> None:
    student = Student(NetworkFile(network=make_network(), facts={"num_steps": 2}))
    with pytest.raises(ValueError, match="do not say which brightness"):
        student.enhance(dark_pixels(16, 16))
    assert student.enhance(dark_pixels(16, 16), brightness=0.3).shape == (16, 16, 3)


def test_a_network_that_is_not_told_the_gain_keeps_its_brightness() -> None:
    torch.manual_seed(0)
    config = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
    student, pixels = Student(NetworkFile(network=build(config), facts={"num_steps": 2})), dark_pixels(16, 16)
    own = student.enhance(pixels)
    assert np.array_equal(own, student.enhance(pixels))
    assert luma_moments_of_pixels(student.enhance(pixels, brightness=0.3))[0] == pytest.approx(0.3, abs=0.01)
