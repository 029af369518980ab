"""The teacher's objective: what a step of its training evaluates, with and without rollouts."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.config.parts import CheckpointConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.training.objective import StageContext, StepContext
from pipelines.training.teacher import TeacherObjective
from pipelines.training.validation import ValidationImages
from pipelines.trajectories.crops import Batch
from reddit_core.networks.film_unet import FilmUNetConfig
from reddit_core.schedule import NoiseSchedule

CPU = torch.device("cpu")
FILM = FilmUNetConfig(channels=(8, 16), norm_groups=4, embedding_channels=16)


class Evaluation(NamedTuple):
    """Of a network: the noisy images, their levels, and whether it has gradients."""

    z: Tensor
    level: Tensor
    gradients: bool


def batch() -> Batch:
    normal = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    return {"low": normal // 8, "normal": normal, "gain": np.full(3, 2, np.float32)}


def loss_of(**settings: Any) -> tuple[Tensor, list[Evaluation]]:
    """The losses of one step, and the evaluations of the network that it makes."""
    torch.manual_seed(0)
    config = TeacherConfig(pairs="p", output="o", film=FILM, crop=16, **settings)
    objective = TeacherObjective(config, ValidationImages("p", CheckpointConfig()))
    network = objective.begin(StageContext(stage_index=0, device=CPU))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # its last convolution starts at zero
    evaluations = []

    def forward(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Tensor:
        evaluations.append(Evaluation(z, sqrt_alpha_bar, torch.is_grad_enabled()))
        return network(z.float(), sqrt_alpha_bar.float(), low=low, gain=gain)

    context = StepContext(
        stage_index=0, device=CPU, step=0, global_step=0, averaged=network, generator=torch.Generator().manual_seed(3)
    )
    return objective.terms(forward, batch(), context)["loss"], evaluations


def test_a_rollout_costs_evaluations_without_gradients_and_ends_where_training_would_begin() -> None:
    plain, (once,) = loss_of()
    rolled, evaluations = loss_of(rollout=2)
    assert [evaluation.gradients for evaluation in evaluations] == [False, False, True]
    levels = torch.stack([evaluation.level for evaluation in evaluations])
    assert (levels.diff(dim=0) >= 0).all() and torch.equal(levels[-1], once.level)
    assert rolled.requires_grad and torch.isfinite(rolled).all()
    assert not torch.allclose(rolled, plain), "its own errors are in its input"


def test_at_the_noisiest_level_inputs_are_pure_noise_as_at_the_first_step_of_sampling() -> None:
    loss, (once,) = loss_of(levels="noisiest", validation_steps=1)
    schedule = NoiseSchedule()
    assert torch.equal(once.level, schedule.sqrt_alpha_bar[schedule.grid(1)[-1]].expand(3))
    expected = torch.randn((3, 3, 16, 16), generator=torch.Generator().manual_seed(3))
    assert torch.equal(once.z, expected), "nothing of the ground truth is in them"
    assert loss.requires_grad and torch.isfinite(loss).all()


def test_what_one_step_from_noise_has_no_use_for_is_refused() -> None:
    def regressor(**settings: Any) -> TeacherConfig:
        return TeacherConfig(pairs="p", output="o", levels="noisiest", **settings)

    with pytest.raises(ValueError, match="rollout is 2, but levels noisiest has no noisier level"):
        regressor(validation_steps=1, rollout=2)
    with pytest.raises(ValueError, match=r"validation_steps is 16, but .*; add --validation-steps 1"):
        regressor()
    with pytest.raises(ValueError, match="levels is noisiest, but the network predicts v"):
        regressor(validation_steps=1, network="sr3-unet")


def test_a_negative_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout is -1, but must not be negative; 0 makes no steps"):
        TeacherConfig(pairs="p", output="o", rollout=-1)
