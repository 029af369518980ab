"""Segments, their refinement, and the student's targets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reddit_core.diffusion import Estimate, add_noise, ddim_step, eps_from_x_0, per_image, predict, solve_x_target
from reddit_core.networks.sr3_unet import UNet
from reddit_core.schedule import LevelDraw, NoiseSchedule
from reddit_core.trajectory import (
    Levels,
    Segment,
    consistency_targets,
    draw_nodes,
    draw_segment_levels,
    refine,
    refined_targets,
    student_steps,
    teacher_segment,
    unrefined_x_target,
)

SCHEDULE = NoiseSchedule()
BATCH = 5
seeds = st.integers(0, 2**32 - 1)
grids = st.sampled_from([2, 4, 8, 16])
draws = st.sampled_from(["interval", "node"])


class Scene:
    """Random images and the levels of one segment each; a few of them end at the clean node."""

    def __init__(self, seed: int, num_nodes: int, draw: LevelDraw) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.low, self.x_0, self.reflectance = (
            torch.rand(BATCH, 3, 4, 6, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(3)
        )
        self.eps = torch.randn(BATCH, 3, 4, 6, generator=generator, dtype=torch.float64)
        self.nodes = draw_nodes(BATCH, num_nodes, generator)
        self.levels = draw_segment_levels(SCHEDULE, self.nodes, num_nodes, draw, generator)

    def perfect_teacher(
        self, z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None
    ) -> Estimate:
        return Estimate(self.x_0, eps_from_x_0(z, self.x_0, sqrt_alpha_bar))

    def imperfect_teacher(
        self, z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None
    ) -> Estimate:
        x_0 = self.x_0 + 0.3 * torch.sin(5 * z) * (1 - per_image(sqrt_alpha_bar)) + 0.1 * low
        return Estimate(x_0, eps_from_x_0(z, x_0, sqrt_alpha_bar))

    def segment(self, teacher) -> Segment:
        return teacher_segment(teacher, self.x_0, self.eps, self.levels, low=self.low)


def test_a_student_has_half_its_teachers_steps_and_an_odd_grid_is_rejected() -> None:
    assert [student_steps(steps) for steps in (16, 8, 4, 2)] == [8, 4, 2, 1]
    for steps in (0, 1, 5):
        with pytest.raises(ValueError, match=f"a teacher grid of {steps} steps cannot be halved; it must be even"):
            student_steps(steps)


@given(seeds, grids)
@settings(max_examples=30)
def test_nodes_are_neighbours_that_end_on_an_even_one(seed: int, num_nodes: int) -> None:
    t, u, s = draw_nodes(64, num_nodes, torch.Generator().manual_seed(seed)).unbind(dim=1)
    assert (t - u == 1).all() and (u - s == 1).all()
    assert (s % 2 == 0).all() and (s >= 0).all() and (t <= num_nodes).all()


def test_every_segment_of_the_grid_is_drawn() -> None:
    nodes = draw_nodes(400, 8, torch.Generator().manual_seed(0))
    assert set(nodes[:, 2].tolist()) == {0, 2, 4, 6}


@pytest.mark.parametrize("num_nodes", [0, 1, 7])
def test_a_grid_that_cannot_be_halved_is_refused(num_nodes: int) -> None:
    with pytest.raises(ValueError, match=rf"grid of {num_nodes} steps cannot be halved; it must be even, such as 16"):
        draw_nodes(1, num_nodes, None)


@given(seeds, grids, draws)
@settings(max_examples=30)
def test_levels_rise_along_the_segment_and_end_exactly_clean_at_node_0(
    seed: int, num_nodes: int, draw: LevelDraw
) -> None:
    scene = Scene(seed, num_nodes, draw)
    a_t, a_u, a_s = scene.levels
    assert (a_t < a_u).all() and (a_u < a_s).all()
    assert torch.equal(a_s == 1, scene.nodes[:, 2] == 0)


@given(seeds, grids, draws)
@settings(max_examples=30)
def test_a_perfect_teachers_unrefined_target_is_the_truth(seed: int, num_nodes: int, draw: LevelDraw) -> None:
    scene = Scene(seed, num_nodes, draw)
    segment = scene.segment(scene.perfect_teacher)
    target = unrefined_x_target(segment, scene.levels)
    targets = refined_targets(segment.z_t, segment.x_u, target, scene.reflectance, scene.levels, 0)
    torch.testing.assert_close(target, scene.x_0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(targets.x, target)
    torch.testing.assert_close(targets.eps, scene.eps, rtol=1e-6, atol=1e-6)


@given(seeds, grids, draws, st.floats(0, 1))
@settings(max_examples=50)
def test_one_student_step_with_the_target_lands_on_the_refined_end(
    seed: int, num_nodes: int, draw: LevelDraw, weight: float
) -> None:
    scene = Scene(seed, num_nodes, draw)
    segment = scene.segment(scene.imperfect_teacher)
    z_s_refined = refine(segment.z_s, segment.x_u, scene.reflectance, scene.levels.a_s, weight)
    target = unrefined_x_target(segment, scene.levels)
    targets = refined_targets(segment.z_t, segment.x_u, target, scene.reflectance, scene.levels, weight)
    landed = ddim_step(targets.x, targets.eps, scene.levels.a_s)
    torch.testing.assert_close(landed, z_s_refined, rtol=1e-7, atol=1e-7)
    solved = solve_x_target(segment.z_t, z_s_refined, scene.levels.a_t, scene.levels.a_s)
    torch.testing.assert_close(targets.x, solved, rtol=1e-7, atol=1e-7)


@given(seeds, grids, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30)
def test_targets_are_linear_in_the_weight(seed: int, num_nodes: int, one: float, other: float, share: float) -> None:
    scene = Scene(seed, num_nodes, "interval")
    segment = scene.segment(scene.imperfect_teacher)
    target = unrefined_x_target(segment, scene.levels)
    at_one, at_other, between = (
        refined_targets(segment.z_t, segment.x_u, target, scene.reflectance, scene.levels, weight)
        for weight in (one, other, one + share * (other - one))
    )
    for name in ("x", "eps"):
        expected = torch.lerp(getattr(at_one, name), getattr(at_other, name), share)
        torch.testing.assert_close(getattr(between, name), expected, rtol=1e-7, atol=1e-7)


@given(seeds, grids)
@settings(max_examples=20)
def test_full_refinement_swaps_the_teachers_image_for_the_reflectance(seed: int, num_nodes: int) -> None:
    scene = Scene(seed, num_nodes, "interval")
    segment = scene.segment(scene.imperfect_teacher)
    refined = refine(segment.z_s, segment.x_u, scene.reflectance, scene.levels.a_s, 1)
    torch.testing.assert_close(refined, add_noise(scene.reflectance, segment.eps_u, scene.levels.a_s))


def test_a_networks_segment_is_two_ddim_steps(tiny_unet: UNet) -> None:
    scene = Scene(0, 8, "interval")
    with torch.no_grad():
        segment = scene.segment(lambda z, level, *, low, gain: predict(tiny_unet, z, level, low=low, gain=gain))
        first = predict(tiny_unet, segment.z_t, scene.levels.a_t, low=scene.low)
        second = predict(tiny_unet, segment.z_u, scene.levels.a_u, low=scene.low)
    assert torch.equal(segment.z_t, add_noise(scene.x_0, scene.eps, scene.levels.a_t))
    assert torch.equal(segment.x_t, first.x_0) and torch.equal(segment.x_u, second.x_0)
    assert torch.equal(segment.z_u, ddim_step(first.x_0, first.eps, scene.levels.a_u))
    assert torch.equal(segment.z_s, ddim_step(second.x_0, second.eps, scene.levels.a_s))


def test_levels_come_from_nodes_in_order() -> None:
    nodes = torch.tensor([[2, 1, 0], [8, 7, 6]])
    levels = draw_segment_levels(SCHEDULE, nodes, 8, "node", None)
    assert isinstance(levels, Levels)
    torch.testing.assert_close(torch.stack(levels, dim=1), SCHEDULE.sqrt_alpha_bar[nodes * 64])


@given(seeds, grids, draws, st.floats(0, 1))
@settings(max_examples=30)
def test_a_consistency_target_is_the_averages_estimate_at_the_refined_end(
    seed: int, num_nodes: int, draw: LevelDraw, weight: float
) -> None:
    scene = Scene(seed, num_nodes, draw)
    segment, levels = scene.segment(scene.imperfect_teacher), scene.levels
    target = unrefined_x_target(segment, levels)
    targets = refined_targets(segment.z_t, segment.x_u, target, scene.reflectance, levels, weight)
    consistent = consistency_targets(scene.imperfect_teacher, targets, segment.z_t, levels, low=scene.low)
    z_s = refine(segment.z_s, segment.x_u, scene.reflectance, levels.a_s, weight)
    expected = scene.imperfect_teacher(z_s, levels.a_s, low=scene.low).x_0
    clean = scene.nodes[:, 2] == 0
    torch.testing.assert_close(consistent.x[~clean], expected[~clean], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(consistent.x[clean], z_s[clean], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(consistent.eps, eps_from_x_0(segment.z_t, consistent.x, levels.a_t))
