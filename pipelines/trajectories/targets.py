"""The teacher's targets of a batch of records: the same code wherever the teacher runs."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from pipelines.config.parts import Precision
from pipelines.trajectories.records import levels_of, to_images
from reddit_core.diffusion import Estimate, predict
from reddit_core.trajectory import Segment, teacher_segment, unrefined_x_target
from reddit_core.unet import UNet


def teacher_targets(
    unet: UNet, records: Mapping[str, NDArray[Any]], precision: Precision
) -> tuple[Segment, torch.Tensor]:
    """The teacher's segment of a batch of records and its `x_target(0)`, float64 on the network's device.

    This is the one place where a teacher makes targets, for `cache`, `online` and `stream` alike; `records` have their
    noise (`with_noise`).
    """
    device = next(unet.parameters()).device
    low, normal = to_images(records["low"], device), to_images(records["normal"], device)
    eps = torch.tensor(records["eps"], device=device)
    levels = levels_of(records, device)

    def denoise(low: torch.Tensor, z: torch.Tensor, level: torch.Tensor) -> Estimate:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return predict(unet, low, z, level)

    with torch.inference_mode():
        segment = teacher_segment(denoise, low, normal, eps, levels)
        return segment, unrefined_x_target(segment, levels)
