"""The seam between the loop and what is trained: what an objective is handed, and a target of another kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config.parts import CheckpointConfig, OptimConfig, TrainingComputeConfig
from pipelines.shards import TARGET_COLUMNS, trajectory_schema
from pipelines.tracking.handle import OFF
from pipelines.training.loop import Loop, Worker, step_seed
from pipelines.training.objective import Forward, StageContext, StepContext
from pipelines.trajectories.crops import Batch
from pipelines.trajectories.teachers import teacher_targets
from reddit_core.diffusion import add_noise
from reddit_core.networks import Network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.pixels import signed_from_pixels

CPU = torch.device("cpu")
UNET = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
STEPS, BATCH_SIZE = 3, 4


@dataclass
class SelfConsistency:
    """A target of another kind: the network's own average at a lower noise level (Song et al. 2023).

    Notes every context, and the average's weights when it was called.
    """

    contexts: list[StepContext] = field(default_factory=list)
    stages_begun: list[StageContext] = field(default_factory=list)
    averages: list[Tensor] = field(default_factory=list)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("first", "second")

    def begin(self, context: StageContext) -> UNet:
        self.stages_begun.append(context)
        return UNet(UNET).to(context.device)

    def terms(self, network: Forward, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        self.contexts.append(context)
        self.averages.append(next(context.averaged.parameters()).clone())
        low, normal = (signed_from_pixels(batch[name], context.device) for name in ("low", "normal"))
        eps = torch.randn(normal.shape, generator=context.generator, device=context.device)
        noisy, cleaner = torch.full((len(low),), 0.5), torch.full((len(low),), 0.6)
        with torch.no_grad():
            target = context.averaged(add_noise(normal, eps, cleaner).float(), cleaner, low=low)
        output = network(add_noise(normal, eps, noisy), noisy, low=low)
        loss = (output - target).square().mean(dim=(1, 2, 3))
        return {"loss": loss, "consistency": loss}

    def validate(self, stage_index: int, network: Network) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        return {}, None

    def save(self, stage_index: int, network: Network, metrics: Mapping[str, float], *, best: bool = False) -> None:
        pass


def images(step: int) -> dict[str, np.ndarray[Any, Any]]:
    normal = np.random.default_rng(step).integers(0, 256, (BATCH_SIZE, 16, 16, 3), dtype=np.uint8)
    return {"low": normal // 8, "normal": normal, "position": step * BATCH_SIZE + np.arange(BATCH_SIZE)}


@pytest.fixture(scope="module")
def objective() -> SelfConsistency:
    """After two stages of three steps, each of two micro-batches."""
    objective = SelfConsistency()
    optim = OptimConfig(steps=STEPS, batch_size=BATCH_SIZE, accumulate=2, warmup_steps=0, learning_rate=1e-2)
    loop = Loop(
        objective=objective, optim=optim, checkpoint=CheckpointConfig(), compute=TrainingComputeConfig(), run=OFF
    )
    worker = Worker(loop, 0, 1, CPU, None)
    for stage_index in range(2):
        worker.begin_stage(stage_index)
        for step in range(STEPS):
            worker.step(images(stage_index * STEPS + step))
    assert worker.state.skipped == 0
    return objective


def test_an_objective_is_told_where_each_step_stands(objective: SelfConsistency) -> None:
    assert [(context.stage_index, context.device) for context in objective.stages_begun] == [(0, CPU), (1, CPU)]
    places = [(context.stage_index, context.step, context.global_step) for context in objective.contexts[::2]]
    assert places == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4), (1, 2, 5)]
    for first, second in zip(objective.contexts[::2], objective.contexts[1::2], strict=True):
        assert first is second, "the micro-batches of a step share a context"
        assert first.generator.initial_seed() == step_seed(0, first.stage_index, first.step, 0)
        assert first.generator.device == CPU


def test_an_objective_sees_the_average_before_its_step(objective: SelfConsistency) -> None:
    averages = objective.averages
    assert torch.equal(averages[0], averages[1]), "it does not move within a step"
    assert not torch.equal(averages[0], averages[2]) and not torch.equal(averages[2], averages[4])
    for context in objective.contexts:
        assert not context.averaged.training
        assert not any(parameter.requires_grad for parameter in context.averaged.parameters())


def test_the_columns_of_a_target_are_those_of_the_schema_and_of_the_teacher(tiny_unet: UNet) -> None:
    assert set(TARGET_COLUMNS) < set(trajectory_schema(16).names)
    rng = np.random.default_rng(0)
    eps = rng.standard_normal((BATCH_SIZE, 3, 16, 16)).astype(np.float32)
    levels = np.tile([0.3, 0.6, 0.8], (BATCH_SIZE, 1))
    records = {**images(0), "eps": eps, "gain": np.full(BATCH_SIZE, 8, np.float32), "levels": levels}
    targets = teacher_targets(tiny_unet, records, "fp32")
    assert tuple(targets) == TARGET_COLUMNS
    assert {(value.dtype, tuple(value.shape)) for value in targets.values()} == {
        (torch.float64, (BATCH_SIZE, 3, 16, 16))
    }
