"""One distillation segment: two teacher steps t -> u -> s, their refinement, and the student's target.

A segment is three neighbouring nodes t > u > s of the teacher's N-step grid with s even; the student,
on N/2 steps, goes from t to s at once (docs/method.md, section 3; Salimans and Ho 2022, algorithm 2).
With the consistency target it learns to give the same clean image at t and at s' (Song et al. 2023).
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from reddit_core.diffusion import (
    Estimate,
    add_noise,
    ddim_step,
    eps_from_x_0,
    per_image,
    refinement_gain,
    solve_x_target,
)
from reddit_core.schedule import LevelDraw, NoiseSchedule


@runtime_checkable
class Denoiser(Protocol):
    """A network with its output interpreted, as `diffusion.predict` does it."""

    def __call__(
        self,
        z: Float[Tensor, "b 3 h w"],
        sqrt_alpha_bar: Float[Tensor, " b"],
        *,
        low: Float[Tensor, "b 3 h w"],
        gain: Float[Tensor, " b"] | None = None,
    ) -> Estimate:
        """Estimates `x_0` and `eps` of the noisy image `z`."""


class Levels(NamedTuple):
    """`sqrt_alpha_bar` at the three nodes of each sample's segment."""

    a_t: Float64[Tensor, " b"]
    a_u: Float64[Tensor, " b"]
    a_s: Float64[Tensor, " b"]


class Segment(NamedTuple):
    """Every intermediate of two teacher steps; images float64, not clipped."""

    z_t: Float64[Tensor, "b 3 h w"]
    x_t: Float64[Tensor, "b 3 h w"]
    z_u: Float64[Tensor, "b 3 h w"]
    eps_u: Float64[Tensor, "b 3 h w"]
    x_u: Float64[Tensor, "b 3 h w"]
    z_s: Float64[Tensor, "b 3 h w"]


class Targets(NamedTuple):
    """The student's regression targets: the pair of `x` and `eps` that one step to `z_s'` needs."""

    x: Float64[Tensor, "b 3 h w"]
    eps: Float64[Tensor, "b 3 h w"]


def student_steps(teacher_steps: int) -> int:
    """Steps of the student that makes two steps of its teacher in one.

    Raises:
        ValueError: if the teacher's grid has an odd number of steps or fewer than two.
    """
    if teacher_steps < 2 or teacher_steps % 2:
        raise ValueError(
            f"a teacher grid of {teacher_steps} steps cannot be halved; it must be even, such as 16, 8, 4, 2"
        )
    return teacher_steps // 2


def draw_nodes(batch: int, num_nodes: int, generator: torch.Generator | None) -> Int[Tensor, "b 3"]:
    """Uniformly drawn segments (t, u, s) of the N-step grid, s even; one for each step of the student."""
    s = 2 * torch.randint(student_steps(num_nodes), (batch,), generator=generator)
    return torch.stack([s + 2, s + 1, s], dim=1)


def draw_segment_levels(
    schedule: NoiseSchedule,
    nodes: Int[Tensor, "b 3"],
    num_nodes: int,
    draw: LevelDraw,
    generator: torch.Generator | None,
) -> Levels:
    """The three levels of each segment, by `NoiseSchedule.draw_levels`."""
    a_t, a_u, a_s = schedule.draw_levels(nodes, num_nodes, draw, generator).unbind(dim=1)
    return Levels(a_t, a_u, a_s)


def teacher_segment(
    denoise: Denoiser,
    x_0: Float[Tensor, "b 3 h w"],
    eps: Float[Tensor, "b 3 h w"],
    levels: Levels,
    *,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Segment:
    """Two DDIM steps of the teacher from the forward process at t (paper eq. 8)."""
    z_t = add_noise(x_0, eps, levels.a_t)
    x_t, eps_t = denoise(z_t, levels.a_t, low=low, gain=gain)
    z_u = ddim_step(x_t, eps_t, levels.a_u)
    x_u, eps_u = denoise(z_u, levels.a_u, low=low, gain=gain)
    z_s = ddim_step(x_u, eps_u, levels.a_s)
    return Segment(z_t, x_t, z_u, eps_u, x_u, z_s)


def refine(
    z_s: Float[Tensor, "b 3 h w"],
    x_u: Float[Tensor, "b 3 h w"],
    reflectance: Float[Tensor, "b 3 h w"],
    a_s: Float[Tensor, " b"],
    weight: float,
) -> Float64[Tensor, "b 3 h w"]:
    """`z_s' = z_s + w a_s (r - x_u)`: the end of the segment pulled to the reflectance (paper eq. 10).

    This is the reference form; training uses the equivalent `refined_targets`.
    """
    return z_s.double() + weight * per_image(a_s) * (reflectance.double() - x_u.double())


def unrefined_x_target(segment: Segment, levels: Levels) -> Float64[Tensor, "b 3 h w"]:
    """`x_target(0)`: the target before any refinement; a cache stores this one."""
    return solve_x_target(segment.z_t, segment.z_s, levels.a_t, levels.a_s)


def refined_targets(
    z_t: Float[Tensor, "b 3 h w"],
    x_u: Float[Tensor, "b 3 h w"],
    x_target_0: Float[Tensor, "b 3 h w"],
    reflectance: Float[Tensor, "b 3 h w"],
    levels: Levels,
    weight: float,
) -> Targets:
    """The targets at refinement weight w, from quantities that do not depend on w.

    `x_target(w) = x_target(0) + w a_s / (a_s - k a_t) (r - x_u)`, and `eps_target` from `z_t`.
    """
    gain = refinement_gain(levels.a_t, levels.a_s)
    x_target = x_target_0.double() + weight * gain * (reflectance.double() - x_u.double())
    return Targets(x_target, eps_from_x_0(z_t, x_target, levels.a_t))


def consistency_targets(
    averaged: Denoiser,
    targets: Targets,
    z_t: Float[Tensor, "b 3 h w"],
    levels: Levels,
    *,
    low: Float[Tensor, "b 3 h w"],
    gain: Float[Tensor, " b"] | None = None,
) -> Targets:
    """The targets of consistency distillation (Song et al. 2023, algorithm 2): the clean image at the segment's end.

    Args:
        averaged: the student's moving average.
        targets: those of the step from `z_t` to `z_s'`, refined or not (`refined_targets`).
        z_t: the noisy images that the student is given.
        levels: of the segment.
        low, gain: as for the network.

    Returns:
        The `x_0` that the average estimates from `z_s'`, and `z_s'` itself where s is the clean end; `eps` from `z_t`.
    """
    z_s = ddim_step(targets.x, targets.eps, levels.a_s)
    estimated = averaged(z_s, levels.a_s, low=low, gain=gain).x_0
    x = torch.where(per_image(levels.a_s) == 1, z_s, estimated)
    return Targets(x, eps_from_x_0(z_t, x, levels.a_t))
