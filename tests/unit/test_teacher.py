"""The teacher's objective: what a step of its training evaluates, with and without rollouts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.config.jobs import TeacherConfig
from pipelines.config.parts import CheckpointConfig
from pipelines.training.objective import StageContext, StepContext
from pipelines.training.teacher import TeacherObjective
from pipelines.training.validation import ValidationImages
from pipelines.trajectories.crops import Batch
from reddit_core.networks.film_unet import FilmUNetConfig

CPU = torch.device("cpu")
FILM = FilmUNetConfig(channels=(8, 16), norm_groups=4, embedding_channels=16)


def batch() -> Batch:
    normal = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    return {"low": normal // 8, "normal": normal, "gain": np.full(3, 2, np.float32)}


def loss_of(rollout: int) -> tuple[Tensor, list[tuple[Tensor, bool]]]:
    """The losses of one step, and of each evaluation its level and whether it has gradients."""
    torch.manual_seed(0)
    config = TeacherConfig(pairs="p", output="o", film=FILM, crop=16, rollout=rollout)
    objective = TeacherObjective(config, ValidationImages("p", CheckpointConfig()))
    network = objective.begin(StageContext(stage_index=0, device=CPU))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # its last convolution starts at zero
    evaluations = []

    def forward(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Tensor:
        evaluations.append((sqrt_alpha_bar, torch.is_grad_enabled()))
        return network(z.float(), sqrt_alpha_bar.float(), low=low, gain=gain)

    context = StepContext(
        stage_index=0, device=CPU, step=0, global_step=0, averaged=network, generator=torch.Generator().manual_seed(3)
    )
    return objective.terms(forward, batch(), context)["loss"], evaluations


def test_a_rollout_costs_evaluations_without_gradients_and_ends_where_training_would_begin() -> None:
    plain, (once,) = loss_of(0)
    rolled, evaluations = loss_of(2)
    assert [gradients for _, gradients in evaluations] == [False, False, True]
    levels = torch.stack([level for level, _ in evaluations])
    assert (levels.diff(dim=0) >= 0).all() and torch.equal(levels[-1], once[0])
    assert rolled.requires_grad and torch.isfinite(rolled).all()
    assert not torch.allclose(rolled, plain), "its own errors are in its input"


def test_a_negative_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout is -1, but must not be negative; 0 makes no steps"):
        TeacherConfig(pairs="p", output="o", rollout=-1)
