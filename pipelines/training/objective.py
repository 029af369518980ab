"""What the training loop can learn: the interface of teachers and students, and the place for a new target."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reddit_core.networks.sr3_unet import UNet

Batch = Mapping[str, NDArray[Any]]
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps (z, low, sqrt_alpha_bar) to the network's output."""


class Objective(Protocol):
    """What is learned. Made on the driver, pickled to every worker."""

    @property
    def stages(self) -> Sequence[str]:
        """The stages' names, in order."""

    def begin(self, stage: int, device: torch.device) -> UNet:
        """The network that a stage starts from; called on every worker, also after a restart."""

    def terms(
        self, network: Network, batch: Batch, generator: torch.Generator, device: torch.device
    ) -> dict[str, Tensor]:
        """Loss terms per sample; `loss` is their weighted sum, which is minimized. Draws come from the generator, which
        is on the device."""

    def validate(self, stage: int, unet: UNet) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Validation metrics of the averaged network, and a grid of images to look at."""

    def save(self, stage: int, unet: UNet, metrics: Mapping[str, float], *, best: bool = False) -> None:
        """Writes the averaged network of a finished stage, or the best so far; called on one worker."""
