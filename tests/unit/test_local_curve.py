"""The light regressor: what it starts from, what it ignores, that it is saved, and tiled like the whole image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from reddit_core.networks import build
from reddit_core.networks.local_curve import LocalCurve, LocalCurveConfig
from reddit_core.pixels import unit_from_signed
from reddit_core.student import Student
from reddit_core.tone import tone_curve
from reddit_core.weights import NetworkFile, decode_network, encode_network

GAIN = torch.tensor([2.0, 3.0])


@pytest.fixture
def network() -> LocalCurve:
    """Its heads, which start at zero, are not zero, so that everything has an effect."""
    torch.manual_seed(0)
    network = LocalCurve(LocalCurveConfig(channels=8, num_res_blocks=1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture
def low() -> Tensor:
    return torch.rand((2, 3, 12, 10), generator=torch.Generator().manual_seed(1)) * 0.2 - 1


def run(network: torch.nn.Module, low: Tensor, *, z: float = 0.0, level: float = 0.1, gain: Tensor = GAIN) -> Tensor:
    output: Tensor = network(torch.full_like(low, z), torch.full((2,), level), low=low, gain=gain)
    return output


@torch.no_grad()
def test_it_is_light_and_begins_with_the_tone_curve(low: Tensor) -> None:
    network = build(LocalCurveConfig())
    assert 50_000 < sum(parameter.numel() for parameter in network.parameters()) < 100_000
    curved = (tone_curve(unit_from_signed(low)) * GAIN[:, None, None, None]).clamp(max=1)
    torch.testing.assert_close(unit_from_signed(run(network, low)), curved)


@torch.no_grad()
def test_it_sees_the_low_image_and_the_gain_and_neither_noise_nor_level(network: LocalCurve, low: Tensor) -> None:
    output = run(network, low)
    assert output.shape == low.shape
    assert torch.equal(run(network, low, z=1.0), output) and torch.equal(run(network, low, level=0.9), output)
    assert not torch.equal(run(network, low + 0.1), output)
    assert not torch.equal(run(network, low, gain=GAIN * 1.5), output)


def test_every_parameter_is_learned(network: LocalCurve, low: Tensor) -> None:
    run(network, low).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_what_it_cannot_use_is_refused(network: LocalCurve, low: Tensor) -> None:
    with pytest.raises(ValueError, match="needs the gain"):
        network(low, torch.ones(2), low=low)
    with pytest.raises(ValueError, match="multiples of 2"):
        run(network, low[..., :9])
    with pytest.raises(ValueError, match="channels is 0, but must be at least 1"):
        LocalCurveConfig(channels=0)


def test_weights_are_saved_and_enhance_whole_photographs_and_tiles_alike(network: LocalCurve) -> None:
    file = NetworkFile(network=network, brightness=0.4, facts={"num_steps": 1})
    student = Student(decode_network(encode_network(file)))
    state = student.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    pixels = np.random.default_rng(0).integers(0, 60, (111, 96, 3), dtype=np.uint8)
    pixels[:, :40] //= 4  # tiles differ in their means
    whole, tiled = student.enhance(pixels), student.enhance(pixels, tile=64, overlap=16)
    assert whole.shape == tiled.shape == pixels.shape
    np.testing.assert_allclose(tiled.astype(int), whole.astype(int), atol=1)
    assert np.array_equal(student.enhance(pixels, seed=5, steps=4), whole), "steps and noise change nothing"
