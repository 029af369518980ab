"""The seam between the training loop and what it trains: the objectives of teachers and students.

A new target is a class with these five members, whatever it learns from: the batch, the trained network, its moving
average, or networks of its own. The loop hands it what a step has besides its batch in one frozen context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.trajectories.crops import Batch
from reddit_core.networks import Network


class Forward(Protocol):
    """A network's forward pass: the network itself, compiled, data-parallel or under autocast."""

    def __call__(self, z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Tensor:
        """The network's output for the noisy images `z`."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """The beginning of a stage.

    Attributes:
        stage_index: position of the stage in `Objective.stages`, from 0.
        device: where the networks and tensors of this worker are.
    """

    stage_index: int
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class StepContext(StageContext):
    """One optimizer step: its place in the run, and everything that it may use besides its batch.

    Attributes:
        step: optimizer steps of this stage before this one.
        global_step: optimizer steps of all stages before this one.
        averaged: the exponential moving average of the trained network before this step, in evaluation mode and without
            gradients; for validation, and for targets that a network takes from its own average.
        generator: on the device; all draws of the step come from it. Seeded by the run's seed, the stage, the step and
            the worker; the micro-batches of a step continue it.
    """

    step: int
    global_step: int
    averaged: Network
    generator: torch.Generator


class Objective(Protocol):
    """The target and loss that a run trains on. Made on the driver, pickled to every worker."""

    @property
    def stages(self) -> Sequence[str]:
        """The stages' names, in order."""

    def begin(self, context: StageContext) -> Network:
        """The network that a stage starts from; called on every worker, also after a restart."""

    def terms(self, network: Forward, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Loss terms per sample, each [B]; `loss` is their weighted sum, which is minimized."""

    def validate(self, stage_index: int, network: Network) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Validation metrics of the averaged network, and a grid of images to look at."""

    def save(self, stage_index: int, network: Network, metrics: Mapping[str, float], *, best: bool = False) -> None:
        """Writes the averaged network of a finished stage, or the best so far; called on one worker."""
