"""The GPU against the figures that the authors' released code computed on a CPU in float32 (tests/golden).

float32 means float32 here: TF32, which PyTorch allows for convolutions unless told otherwise, is off.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from reddit_core.diffusion import Estimate, predict
from reddit_core.sampler import ddim_sample
from reddit_core.trajectory import Levels, Segment, teacher_segment
from reddit_core.weights import NetworkFile, decode_network

FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 0.03
"""Of the mean error of bf16, relative to the mean size: bf16 has 8 bits, and some twenty layers follow each other."""
Golden = dict[str, Tensor]


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, deterministic=False, benchmark=False, allow_tf32=False):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def released(golden: Golden, save_pth: Callable[[Golden], bytes], device: torch.device) -> NetworkFile:
    names = [name for name in golden if name.startswith(("denoise_fn.", "betas"))]
    file = decode_network(save_pth({name: golden[name] for name in names}))
    file.network.to(device)
    return file


@pytest.fixture(scope="module")
def on_device(golden: Golden, device: torch.device) -> Golden:
    """The inputs on the device; images as the released code saw them."""
    images = {name: (golden[name].float() / 255 - 0.5) / 0.5 for name in ("low", "normal")}
    others = {name: golden[name] for name in ("noise", "x_T", "unet_level", "levels_tus")}
    return {name: value.to(device) for name, value in {**images, **others}.items()}


def error(value: Tensor, golden: Tensor) -> float:
    """The greatest error at the pixels that the golden file keeps."""
    return float((value[:, :, ::2, ::2].cpu() - golden).abs().max())


@torch.no_grad()
def test_unet(golden: Golden, on_device: Golden, released: NetworkFile) -> None:
    output = released.network(on_device["x_T"], on_device["unet_level"], low=on_device["low"])
    assert error(output, golden["unet_out"]) < FP32_TOLERANCE


@torch.no_grad()
def test_unet_in_bf16(golden: Golden, on_device: Golden, released: NetworkFile, device: torch.device) -> None:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = released.network(on_device["x_T"], on_device["unet_level"], low=on_device["low"])
    expected = golden["unet_out"]
    mean_error = (output.float()[:, :, ::2, ::2].cpu() - expected).abs().mean()
    assert 0 < mean_error / expected.abs().mean() < BF16_TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [8, 4, 2])
def test_sampler(golden: Golden, on_device: Golden, released: NetworkFile, num_steps: int) -> None:
    low, noise = on_device["low"], on_device["x_T"]
    result = ddim_sample(released.network, noise, released.schedule, num_steps, "released", low=low)
    assert error(result, golden[f"ddim_{num_steps}"]) < FP32_TOLERANCE


@torch.no_grad()
def test_every_intermediate_of_a_segment(golden: Golden, on_device: Golden, released: NetworkFile) -> None:
    def denoise(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Estimate:
        return predict(released.network, z, sqrt_alpha_bar, low=low)

    levels = Levels(*on_device["levels_tus"].double().unbind(1))
    segment = teacher_segment(denoise, on_device["normal"], on_device["noise"], levels, low=on_device["low"])
    for name in Segment._fields:
        expected = golden[f"segment/{name}"]
        # relative to each pixel's size or the mean size, whichever is more, as on the CPU
        scale = expected.abs().maximum(expected.abs().mean())
        assert error(getattr(segment, name) / at_every_pixel(scale, segment), expected / scale) < FP32_TOLERANCE, name


def at_every_pixel(kept: Tensor, segment: Segment) -> Tensor:
    """A figure of the kept pixels, repeated over the pixels between them."""
    return kept.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).to(segment.z_s)
