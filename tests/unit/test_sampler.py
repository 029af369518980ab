"""Few-step sampling of images of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reddit_core.diffusion import add_noise, eps_from_x_0, v_from
from reddit_core.networks import Prediction
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.sampler import DdimMode, ddim_sample, enhance, pad_to_multiple, seeded_noise
from reddit_core.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()


def random_low(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


class KnowingNetwork(UNet):
    """Predicts without error, since it knows the image."""

    def __init__(self, x_0: Tensor, prediction: Prediction) -> None:
        super().__init__(UNetConfig(base_channels=8, channel_mults=(1,), norm_groups=4, prediction=prediction))
        self.double()
        self.x_0 = x_0

    def forward(self, z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Tensor:
        eps = eps_from_x_0(z, self.x_0, sqrt_alpha_bar)
        outputs = {"eps": eps, "v": v_from(self.x_0, eps, sqrt_alpha_bar), "x": self.x_0}
        return outputs[self.config.prediction]


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
def test_a_perfect_network_gives_the_image_in_any_number_of_steps(num_steps: int, prediction: Prediction) -> None:
    x_0 = random_low(4, 6, batch=2).double()
    network, noise = KnowingNetwork(x_0, prediction), seeded_noise((2, 3, 4, 6), 5)
    result = ddim_sample(network, noise, SCHEDULE, num_steps, low=torch.zeros_like(x_0))
    torch.testing.assert_close(result, x_0)


def test_each_step_starts_from_the_clipped_image() -> None:
    x_0, noise, seen = 3 * random_low(4, 6).double(), seeded_noise((1, 3, 4, 6), 5), []
    network = KnowingNetwork(x_0, "v")
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ddim_sample(network, noise, SCHEDULE, 2, low=torch.zeros_like(x_0))
    a_t, a_s = SCHEDULE.sqrt_alpha_bar[[512, 256]].split(1)
    clipped = x_0.clamp(-1, 1)
    torch.testing.assert_close(seen[1], add_noise(clipped, eps_from_x_0(noise, clipped, a_t), a_s))


def test_the_network_is_asked_at_the_grids_levels(tiny_unet: UNet) -> None:
    levels: list[float] = []
    tiny_unet.register_forward_pre_hook(lambda _, args: levels.append(float(args[1][0])))
    enhance(tiny_unet, random_low(8, 8), SCHEDULE, 4, seed=0)
    torch.testing.assert_close(torch.tensor(levels), SCHEDULE.sqrt_alpha_bar[[512, 384, 256, 128]].float())


@pytest.mark.parametrize(("height", "width"), [(13, 21), (1, 1), (2, 7), (16, 16), (31, 4)])
@pytest.mark.parametrize("mode", ["exact", "released"])
def test_any_size(tiny_unet: UNet, height: int, width: int, mode: DdimMode) -> None:
    result = enhance(tiny_unet, random_low(height, width, batch=2), SCHEDULE, 2, seed=0, mode=mode)
    assert result.shape == (2, 3, height, width)
    assert result.isfinite().all() and result.abs().max() <= 1


def test_the_result_follows_from_the_seed(tiny_unet: UNet) -> None:
    low = random_low(13, 10)
    first, again, other = (enhance(tiny_unet, low, SCHEDULE, 2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


def test_an_image_does_not_see_the_rest_of_its_batch(tiny_unet: UNet) -> None:
    low = random_low(9, 14, batch=3)
    together = enhance(tiny_unet, low, SCHEDULE, 2, seed=0)
    alone = torch.cat([enhance(tiny_unet, image[None], SCHEDULE, 2, seed=0) for image in low])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_no_gradient_is_kept(tiny_unet: UNet) -> None:
    assert not enhance(tiny_unet, random_low(4, 4), SCHEDULE, 1, seed=0).requires_grad


def test_steps_that_do_not_divide_the_schedule_are_refused(tiny_unet: UNet) -> None:
    with pytest.raises(ValueError, match="a grid of 3 steps does not divide the schedule's 512 steps; choose"):
        enhance(tiny_unet, random_low(4, 4), SCHEDULE, 3, seed=0)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 16]))
@settings(max_examples=40)
def test_padding_extends_below_and_to_the_right(height: int, width: int, multiple: int) -> None:
    image = random_low(height, width)
    padded = pad_to_multiple(image, multiple)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-1] % multiple == 0
    assert padded.shape[-2] < height + multiple and padded.shape[-1] < width + multiple
    assert torch.equal(padded[..., :height, :width], image)
    assert set(padded.unique().tolist()) <= set(image.unique().tolist())


def test_padding_mirrors_where_it_can() -> None:
    image = random_low(5, 6)
    assert torch.equal(pad_to_multiple(image, 4)[0, :, 5, :6], image[0, :, 3])
    assert torch.equal(pad_to_multiple(image, 4)[0, :, :5, 6], image[0, :, :, 4])
