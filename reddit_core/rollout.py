"""Rollouts: training inputs that the network has made itself, as in sampling.

In ordinary diffusion training the input is the ground truth with noise. In sampling it is the network's own estimate
with noise, whose errors add up from step to step (exposure bias; Ning et al. 2023, *Input Perturbation Reduces Exposure
Bias in Diffusion Models*). After a rollout the network sees its own errors in training and learns to correct them
(scheduled sampling; Bengio et al. 2015, and for diffusion Deng et al. 2023, *Markup-to-Image Diffusion Models with
Scheduled Sampling*).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from reddit_core.diffusion import Estimate, add_noise, ddim_step, eps_from_x_0, interpret
from reddit_core.networks import Prediction
from reddit_core.schedule import NoiseSchedule
from reddit_core.trajectory import Denoiser


def draw_rollout_levels(
    schedule: NoiseSchedule, sqrt_alpha_bar: Float64[Tensor, " b"], num_steps: int, generator: torch.Generator
) -> Float64[Tensor, "steps_and_end b"]:
    """The levels of rollouts that end at given levels, noisiest first.

    Each step comes from a table entry at a share u^2 of the way from its end to the noisiest entry, u uniform in
    [0, 1]: short steps, as samplers of many steps make, are more frequent than long ones, as those of few steps make.

    Args:
        schedule: of the levels.
        sqrt_alpha_bar: where the rollouts end, none exactly clean, on the generator's device.
        num_steps: DDIM steps of a rollout.
        generator: of the draws.
    """
    table = schedule.sqrt_alpha_bar.to(sqrt_alpha_bar.device)
    # The table falls: the first entry that is no cleaner than the level.
    index = torch.searchsorted(-table, -sqrt_alpha_bar).clamp(max=schedule.num_steps)
    levels = [sqrt_alpha_bar]
    for _ in range(num_steps):
        share = torch.rand(index.shape, dtype=torch.float64, generator=generator, device=index.device).square()
        index = index + ((schedule.num_steps - index) * share).round().long()
        levels.append(torch.minimum(table[index], levels[-1]))
    return torch.stack(levels[::-1])


def roll_out(
    denoise: Denoiser,
    x_0: Float[Tensor, "b 3 h w"],
    eps: Float[Tensor, "b 3 h w"],
    levels: Float64[Tensor, "steps_and_end b"],
    *,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Float64[Tensor, "b 3 h w"]:
    """DDIM steps from the ground truth with noise at `levels[0]` to the noisy image at `levels[-1]`.

    Each is a step of the exact sampler, which clips `x_0` to [-1, 1] (`sampler.sample_step`).
    """
    z = add_noise(x_0, eps, levels[0])
    for here, there in pairwise(levels):
        x_0 = denoise(z, here, low=low, gain=gain).x_0.clamp(-1, 1)
        z = ddim_step(x_0, eps_from_x_0(z, x_0, here), there)
    return z


@torch.no_grad()
def training_input(
    forward: Callable[..., Tensor],
    x_0: Float[Tensor, "b 3 h w"],
    eps: Float[Tensor, "b 3 h w"],
    sqrt_alpha_bar: Float64[Tensor, " b"],
    *,
    num_steps: int,
    prediction: Prediction,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Float64[Tensor, "b 3 h w"]:
    """The noisy image that a network is trained on: the end of a rollout of its own.

    Args:
        forward: the network's forward pass, called as `Network.forward`.
        x_0, eps: the ground truth and the noise that the rollout begins with.
        sqrt_alpha_bar: level of the noisy image, not exactly clean.
        num_steps: of the rollout; with 0 the image is `add_noise(x_0, eps, sqrt_alpha_bar)`, and nothing is drawn.
        prediction: what the network predicts.
        schedule, generator: of the rollout's levels.
        low, gain: as for the network.
    """

    if not num_steps:
        return add_noise(x_0, eps, sqrt_alpha_bar)

    def denoise(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Estimate:
        return interpret(forward(z, sqrt_alpha_bar, low=low, gain=gain), z, sqrt_alpha_bar, prediction)

    levels = draw_rollout_levels(schedule, sqrt_alpha_bar, num_steps, generator)
    return roll_out(denoise, x_0, eps, levels, low=low, gain=gain)
