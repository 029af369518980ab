"""The denoiser's shape, its parts, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reddit_core.diffusion import Estimate, predict
from reddit_core.networks.layers import GroupNorm, SelfAttention
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.sampler import ddim_sample, sample_step
from reddit_core.schedule import NoiseSchedule
from reddit_core.trajectory import Levels, teacher_segment

TINY: dict[str, Any] = {"base_channels": 8, "norm_groups": 4, "num_res_blocks": 1}


def inputs(height: int, width: int, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, low = torch.randn(2, batch, 3, height, width, generator=generator).unbind()
    return {"z": z, "sqrt_alpha_bar": torch.linspace(0.1, 0.9, batch), "low": low}


@pytest.mark.parametrize(
    ("config", "multiple"),
    [
        (UNetConfig(**TINY, channel_mults=(1,)), 1),
        (UNetConfig(**TINY, channel_mults=(1, 2), attention_levels=(0, 1)), 2),
        (UNetConfig(**{**TINY, "num_res_blocks": 2}, channel_mults=(1, 2, 1), attention_levels=(2,), dropout=0.2), 4),
    ],
)
def test_image_in_image_out(config: UNetConfig, multiple: int) -> None:
    unet = UNet(config)
    assert config.size_multiple == multiple
    for height, width in ((multiple, 3 * multiple), (4 * multiple, 2 * multiple)):
        assert unet(**inputs(height, width)).shape == (2, 3, height, width)


def test_every_parameter_is_trained(tiny_unet: UNet) -> None:
    tiny_unet(**inputs(8, 8)).square().mean().backward()
    without = [name for name, value in tiny_unet.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_it_depends_on_all_three_inputs_and_on_nothing_else(tiny_unet: UNet) -> None:
    given = inputs(8, 8)
    with torch.no_grad():
        output = tiny_unet(**given)
        assert torch.equal(output, tiny_unet(**given))
        for name, value in given.items():
            assert (tiny_unet(**{**given, name: value / 2}) - output).abs().max() > 1e-5


def test_a_swap_of_the_noisy_and_the_low_image_cannot_pass(tiny_unet: UNet) -> None:
    z, level, low = inputs(8, 8).values()

    def network(z: torch.Tensor, a: torch.Tensor, *, low: torch.Tensor, gain: torch.Tensor | None = None) -> Estimate:
        return predict(tiny_unet, z, a, low=low, gain=gain)

    swapped: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (tiny_unet, (z, low, level)),
        (predict, (tiny_unet, low, z, level)),
        (sample_step, (tiny_unet, low, z, NoiseSchedule(), 512, 256)),
        (ddim_sample, (tiny_unet, low, z, NoiseSchedule(), 2)),
        (teacher_segment, (network, low, z, z, Levels(level, level, level))),
    ]
    for function, arguments in swapped:
        with pytest.raises(TypeError):
            function(*arguments)


def test_attention_is_softmax_over_all_positions() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 4)
    features = torch.randn(2, 8, 3, 5)
    with torch.no_grad():
        query, key, value = attention.qkv(attention.norm(features)).flatten(2).split(8, dim=1)
        weights = (torch.einsum("bcq,bck->bqk", query, key) / 8**0.5).softmax(dim=-1)
        attended = torch.einsum("bqk,bck->bcq", weights, value).reshape(2, 8, 3, 5)
        torch.testing.assert_close(attention(features), features + attention.out(attended))


def test_group_norm_keeps_bf16_under_autocast_and_computes_in_float32() -> None:
    torch.manual_seed(0)
    norm = GroupNorm(2, 4)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    features = (10 + torch.randn(3, 4, 5, 6)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = norm(features)
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), norm(features.float()), rtol=2**-7, atol=2**-7)
    result.sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32


def test_group_norm_as_scale_and_shift_is_group_norm_and_keeps_the_layout() -> None:
    """What a network that is compiled for a GPU has in its place, forward and backward."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    features = (5 + 3 * torch.randn(2, 12, 6, 8)).contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted, found = norm(features), norm.scaled_and_shifted(features)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(2, 12, 6, 8).contiguous(memory_format=torch.channels_last)
    gradients = [
        torch.autograd.grad((output * weights).sum(), [features, norm.weight, norm.bias]) for output in (wanted, found)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert gradients[1][0].is_contiguous(memory_format=torch.channels_last)


def test_dropout_acts_in_training_only() -> None:
    unet = UNet(UNetConfig(**TINY, channel_mults=(1,), dropout=0.5))
    arguments = inputs(4, 4)
    with torch.no_grad():
        assert not torch.equal(unet(**arguments), unet(**arguments))
        unet.eval()
        assert torch.equal(unet(**arguments), unet(**arguments))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_channels": 9}, r"base_channels is 9, .* even and a multiple of norm_groups \(4\); change one"),
        ({"base_channels": 10}, r"base_channels is 10, but must be even and a multiple of norm_groups \(4\)"),
        ({"channel_mults": ()}, r"channel_mults is \(\), but needs positive whole numbers"),
        ({"channel_mults": (1, 0)}, r"channel_mults is \(1, 0\), but needs positive"),
        ({"attention_levels": (5,)}, r"attention_levels is \(5,\), but there are only the levels 0 to 4"),
    ],
)
def test_shapes_that_cannot_be_are_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{**TINY, **settings})


def test_a_size_that_does_not_halve_is_refused(tiny_unet: UNet) -> None:
    with pytest.raises(ValueError, match=r"9 x 8 pixels, but the network needs multiples of 2; crop to one, or go"):
        tiny_unet(**inputs(9, 8))
