"""The algebra between `x_0`, `eps`, `z_t` and one DDIM step; float64 around the network's own dtype.

Sums and quotients are taken in place where they are of new tensors: few-step sampling of large photographs is bound by
memory.

Levels are `sqrt_alpha_bar` values of shape [B], written `a_t`; `sigma = sqrt(1 - a^2)`.
"""

from typing import NamedTuple

from jaxtyping import Float, Float64
from torch import Tensor

from reddit_core.networks import Network, Prediction
from reddit_core.schedule import sigma_of


class Estimate(NamedTuple):
    """A network's estimate of a noisy image's clean image and noise, [B, 3, H, W], float64."""

    x_0: Float64[Tensor, "b 3 h w"]
    eps: Float64[Tensor, "b 3 h w"]


def per_image(level: Float[Tensor, " b"]) -> Float64[Tensor, "b 1 1 1"]:
    """A level of each image, shaped so that it multiplies images; float64."""
    return level.double()[:, None, None, None]


def add_noise(
    x_0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], sqrt_alpha_bar: Float[Tensor, " b"]
) -> Float64[Tensor, "b 3 h w"]:
    """`z_t = a_t x_0 + sigma_t eps` (paper eq. 1)."""
    a = per_image(sqrt_alpha_bar)
    return (a * x_0.double()).add_(sigma_of(a) * eps.double())


def x_0_from_eps(
    z: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], sqrt_alpha_bar: Float[Tensor, " b"]
) -> Float64[Tensor, "b 3 h w"]:
    """Inverts `add_noise` for the clean image: `x_0 = (z - sigma eps) / a`."""
    a = per_image(sqrt_alpha_bar)
    return (z.double() - sigma_of(a) * eps.double()) / a


def eps_from_x_0(
    z: Float[Tensor, "b 3 h w"], x_0: Float[Tensor, "b 3 h w"], sqrt_alpha_bar: Float[Tensor, " b"]
) -> Float64[Tensor, "b 3 h w"]:
    """Inverts `add_noise` for the noise: `eps = (z - a x_0) / sigma`; the level must not be exactly clean."""
    a = per_image(sqrt_alpha_bar)
    return (z.double() - a * x_0.double()).div_(sigma_of(a))


def v_from(
    x_0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], sqrt_alpha_bar: Float[Tensor, " b"]
) -> Float64[Tensor, "b 3 h w"]:
    """`v = a eps - sigma x_0` (Salimans and Ho 2022, section 4)."""
    a = per_image(sqrt_alpha_bar)
    return a * eps.double() - sigma_of(a) * x_0.double()


def interpret(
    output: Float[Tensor, "b 3 h w"],
    z: Float[Tensor, "b 3 h w"],
    sqrt_alpha_bar: Float[Tensor, " b"],
    prediction: Prediction,
) -> Estimate:
    """The `x_0` and `eps` that follow from a network's output.

    From `v`: `x_0 = a z - sigma v` and `eps = sigma z + a v` (Salimans and Ho 2022, section 4). From `x`, the
    level must not be exactly clean.
    """
    if prediction == "eps":
        return Estimate(x_0_from_eps(z, output, sqrt_alpha_bar), output.double())
    if prediction == "x":
        return Estimate(output.double(), eps_from_x_0(z, output, sqrt_alpha_bar))
    a = per_image(sqrt_alpha_bar)
    sigma, v, z = sigma_of(a), output.double(), z.double()
    return Estimate(a * z - sigma * v, sigma * z + a * v)


def predict(
    network: Network,
    z: Float[Tensor, "b 3 h w"],
    sqrt_alpha_bar: Float[Tensor, " b"],
    *,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Estimate:
    """Runs the network in its own dtype on a noisy image, and interprets its output in float64."""
    dtype = next(network.parameters()).dtype
    exposure = None if gain is None else gain.to(dtype)
    output = network(z.to(dtype), sqrt_alpha_bar.to(dtype), low=low.to(dtype), gain=exposure)
    return interpret(output, z, sqrt_alpha_bar, network.config.prediction)


def ddim_step(
    x_0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], sqrt_alpha_bar: Float[Tensor, " b"]
) -> Float64[Tensor, "b 3 h w"]:
    """The deterministic step to a cleaner level (Song et al. 2021, eq. 12 with eta = 0)."""
    return add_noise(x_0, eps, sqrt_alpha_bar)


def solve_x_target(
    z_t: Float[Tensor, "b 3 h w"], z_s: Float[Tensor, "b 3 h w"], a_t: Float[Tensor, " b"], a_s: Float[Tensor, " b"]
) -> Float64[Tensor, "b 3 h w"]:
    """The `x_target` for which one DDIM step from `z_t` at `a_t` lands exactly on `z_s` at `a_s`.

    `x_target = (z_s - k z_t) / (a_s - k a_t)` with `k = sigma_s / sigma_t` (Salimans and Ho 2022,
    appendix G; the paper's eq. 9).
    """
    k = sigma_of(per_image(a_s)) / sigma_of(per_image(a_t))
    return (z_s.double() - k * z_t.double()) / (per_image(a_s) - k * per_image(a_t))


def refinement_gain(a_t: Float[Tensor, " b"], a_s: Float[Tensor, " b"]) -> Float64[Tensor, "b 1 1 1"]:
    """`d x_target / d w` per unit of `r - x_u`: `a_s / (a_s - k a_t)`."""
    k = sigma_of(per_image(a_s)) / sigma_of(per_image(a_t))
    return per_image(a_s) / (per_image(a_s) - k * per_image(a_t))
