"""Few-step sampling: DDIM on the student's grid from seeded noise, for images of any size."""

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from reddit_core.diffusion import ddim_step, eps_from_x_0, predict, x_0_from_eps
from reddit_core.networks import Network
from reddit_core.schedule import NoiseSchedule

DdimMode = Literal["exact", "released"]


def seeded_noise(shape: tuple[int, ...], seed: int) -> Float[Tensor, "b 3 h w"]:
    """Standard normal noise that depends on shape and seed alone (drawn on the CPU)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample_step(
    network: Network,
    z: Float[Tensor, "b 3 h w"],
    schedule: NoiseSchedule,
    t: int,
    s: int,
    mode: DdimMode = "exact",
    *,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Float64[Tensor, "b 3 h w"]:
    """One step of `ddim_sample` from table index `t` to the cleaner `s`."""
    released = mode == "released"
    level = schedule.sqrt_alpha_bar[t].to(low.device).expand(len(low))
    a_t, a_s = (schedule.sqrt_alpha_bar[k + released].to(low.device).expand(len(low)) for k in (t, s))
    estimate = predict(network, z, level, low=low, gain=gain)
    x_0 = (x_0_from_eps(z, estimate.eps, a_t) if released else estimate.x_0).clamp(-1, 1)
    del estimate  # large
    return ddim_step(x_0, eps_from_x_0(z, x_0, a_t), a_s)


def ddim_sample(
    network: Network,
    noise: Float[Tensor, "b 3 h w"],
    schedule: NoiseSchedule,
    num_steps: int,
    mode: DdimMode = "exact",
    *,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Deterministic DDIM from `noise` to an image in [-1, 1] (Song et al. 2021, eq. 12 with eta = 0).

    `x_0` is clipped to [-1, 1] in each step and `eps` follows from the clipped one. `released` takes
    the coefficients one table entry further than the level that it gives the network, at both ends of a
    step, as the released code does.
    """
    grid = schedule.grid(num_steps)
    z = noise.double()
    del noise
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        z = sample_step(network, z, schedule, t, s, mode, low=low, gain=gain)
    return z.clamp(-1, 1).to(low.dtype)


def pad_to_multiple(image: Float[Tensor, "b c h w"], multiple: int) -> Float[Tensor, "b c h2 w2"]:
    """Extends the bottom and right edges to the next multiple: mirrored if the image is large enough, else repeated."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    mode = "reflect" if bottom < height and right < width else "replicate"
    return functional.pad(image, (0, right, 0, bottom), mode=mode) if bottom or right else image


def enhance(
    network: Network,
    low: Float[Tensor, "b 3 h w"],
    schedule: NoiseSchedule,
    num_steps: int,
    seed: int,
    mode: DdimMode = "exact",
    gain: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Enhances images of any height and width; every image of the batch starts from the same noise.

    Raises:
        ValueError: if `num_steps` does not divide the schedule.
    """
    height, width = low.shape[-2:]
    # No name holds the noise or the image without its padding, so that their memory is free once sampling has begun.
    low = pad_to_multiple(low, network.config.size_multiple)
    with torch.no_grad():
        return ddim_sample(
            network,
            seeded_noise((1, *low.shape[1:]), seed).to(low).expand_as(low),
            schedule,
            num_steps,
            mode,
            low=low,
            gain=gain,
        )[..., :height, :width]
