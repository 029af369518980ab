"""The alpha_bar table, N-step grids, and draws of noise levels."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reddit_core.schedule import LevelDraw, NoiseSchedule, sigma_of

SCHEDULE = NoiseSchedule()

schedules = st.builds(
    lambda steps, start, rise: NoiseSchedule(num_steps=steps, beta_start=start, beta_end=start + rise),
    st.integers(2, 1000),
    st.floats(1e-5, 1e-2),
    st.floats(1e-5, 2e-2),
)


def drawn(nodes: list[int], num_nodes: int, draw: LevelDraw, seed: int = 0) -> torch.Tensor:
    return SCHEDULE.draw_levels(torch.tensor(nodes), num_nodes, draw, torch.Generator().manual_seed(seed))


@given(schedules)
@settings(max_examples=30)
def test_alpha_bar_falls_strictly_from_one(schedule: NoiseSchedule) -> None:
    assert schedule.alpha_bar[0] == 1
    assert len(schedule.alpha_bar) == schedule.num_steps + 2
    assert (schedule.alpha_bar.diff() < 0).all()
    assert schedule.alpha_bar[-1] > 0


def test_alpha_bar_is_the_product_of_the_first_factors() -> None:
    schedule = NoiseSchedule(num_steps=2, beta_start=0.1, beta_end=0.3)
    expected = torch.tensor([1, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha_bar, expected)
    torch.testing.assert_close(schedule.sqrt_alpha_bar.square(), expected)


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 8, 16, 512])
def test_grid_is_even_from_clean_to_noisy(num_nodes: int) -> None:
    grid = SCHEDULE.grid(num_nodes)
    assert grid[0] == 0 and grid[-1] == 512 and len(grid) == num_nodes + 1
    assert {b - a for a, b in pairwise(grid)} == {512 // num_nodes}


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8, 16]))
@settings(max_examples=30)
def test_interval_levels_lie_between_a_node_and_its_cleaner_neighbour(seed: int, num_nodes: int) -> None:
    levels = drawn(list(range(num_nodes + 1)), num_nodes, "interval", seed)
    node_levels = SCHEDULE.sqrt_alpha_bar[SCHEDULE.grid(num_nodes)]
    assert levels[0] == 1
    assert (levels[1:] >= node_levels[1:]).all() and (levels[1:] <= node_levels[:-1]).all()
    assert (levels.diff() < 0).all()


def test_node_levels_are_the_table() -> None:
    nodes = torch.tensor([[0, 1], [7, 8]])
    levels = SCHEDULE.draw_levels(nodes, 8, "node", None)
    assert torch.equal(levels, SCHEDULE.sqrt_alpha_bar[nodes * 64])


def test_released_levels_wrap_around_at_the_clean_node_only() -> None:
    clean = drawn([0] * 1000, 4, "released")
    noisiest = SCHEDULE.sqrt_alpha_bar[512]
    assert (clean <= 1).all() and (clean >= noisiest).all()
    assert clean.min() < noisiest + 0.05 and clean.max() > 0.95
    others = [1, 2, 3, 4]
    assert torch.equal(drawn(others, 4, "released"), drawn(others, 4, "interval"))


def test_draws_follow_the_generator() -> None:
    nodes = [1, 2, 3, 4]
    assert torch.equal(drawn(nodes, 4, "interval", 3), drawn(nodes, 4, "interval", 3))
    assert not torch.equal(drawn(nodes, 4, "interval", 3), drawn(nodes, 4, "interval", 4))


@given(st.floats(0, 1))
@settings(max_examples=50)
def test_sigma_completes_the_level(level: float) -> None:
    a = torch.tensor(level, dtype=torch.float64)
    torch.testing.assert_close(a.square() + sigma_of(a).square(), torch.ones((), dtype=torch.float64))


def test_sigma_is_exactly_zero_at_the_clean_end() -> None:
    assert sigma_of(torch.tensor([1.0, 1.0 + 1e-7])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule(num_steps=1), r"num_steps is 1, but must be at least 2; the paper uses 512"),
        (lambda: NoiseSchedule(beta_start=0.0), r"betas run from 0.0 to 0.02, .* rise within \(0, 1\); the paper"),
        (lambda: NoiseSchedule(beta_start=0.5, beta_end=0.1), r"betas run from 0.5 to 0.1, but must rise"),
        (lambda: NoiseSchedule(beta_end=1.0), r"betas run from 0.0001 to 1.0, but must rise"),
        (lambda: SCHEDULE.grid(3), r"a grid of 3 steps does not divide the schedule's 512 steps; choose a power"),
        (lambda: SCHEDULE.grid(0), r"a grid of 0 steps does not divide"),
    ],
)
def test_what_cannot_work_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
