"""Rollouts: where they begin, and what they lead to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reddit_core.diffusion import Estimate, add_noise, eps_from_x_0
from reddit_core.rollout import draw_rollout_levels, roll_out
from reddit_core.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
BATCH = 6


def draw(seed: int, num_steps: int) -> Tensor:
    """Levels that end next to the clean end, at the noisiest entry, and between."""
    generator = torch.Generator().manual_seed(seed)
    first, last = SCHEDULE.sqrt_alpha_bar[[1, SCHEDULE.num_steps]]
    ends = last + (first - last) * torch.rand(BATCH, dtype=torch.float64, generator=generator)
    ends[0], ends[1] = first, last
    return draw_rollout_levels(SCHEDULE, ends, num_steps, generator)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_levels_rise_to_where_the_rollout_ends(seed: int, num_steps: int) -> None:
    levels = draw(seed, num_steps)
    assert levels.shape == (num_steps + 1, BATCH)
    assert (levels.diff(dim=0) >= 0).all()
    assert levels.min() >= SCHEDULE.sqrt_alpha_bar[SCHEDULE.num_steps]
    assert torch.equal(levels[:, 1], levels[-1, 1].expand(num_steps + 1)), "nothing is noisier"


def test_steps_of_every_length_are_drawn_short_ones_more_often() -> None:
    ends = SCHEDULE.sqrt_alpha_bar[torch.full((4000,), 112)]
    starts = draw_rollout_levels(SCHEDULE, ends, 1, torch.Generator().manual_seed(0))[0]
    lengths = torch.searchsorted(-SCHEDULE.sqrt_alpha_bar, -starts) - 112
    assert lengths.min() == 0 and lengths.max() == 400
    assert (lengths <= 100).float().mean() == pytest.approx(0.5, abs=0.03)  # u^2 <= 1/4


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_a_perfect_networks_rollout_is_the_truth_with_its_noise(seed: int, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(BATCH, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(BATCH, 3, 4, 4, generator=generator, dtype=torch.float64)
    levels = draw(seed, num_steps)

    def denoise(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Estimate:
        return Estimate(x_0, eps_from_x_0(z, x_0, sqrt_alpha_bar))

    torch.testing.assert_close(
        roll_out(denoise, x_0, eps, levels, low=x_0), add_noise(x_0, eps, levels[-1]), rtol=1e-7, atol=1e-7
    )


def test_a_networks_errors_are_in_its_rollout_and_its_estimate_is_clipped() -> None:
    x_0, eps = torch.zeros(1, 3, 4, 4), torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([[0.2], [0.6]], dtype=torch.float64)

    def denoise(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Estimate:
        wrong = torch.full_like(z, 3)
        return Estimate(wrong, eps_from_x_0(z, wrong, sqrt_alpha_bar))

    z = add_noise(x_0, eps, levels[0])
    one = torch.ones_like(z)
    expected = add_noise(one, eps_from_x_0(z, one, levels[0]), levels[1])
    torch.testing.assert_close(roll_out(denoise, x_0, eps, levels, low=x_0), expected)
