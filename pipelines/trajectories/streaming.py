"""The teacher beside the trainers: actors that add its targets to records on their way, without a cache."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.cluster import torch_threads
from pipelines.config.jobs import DistillConfig
from pipelines.trajectories.targets import teacher_targets
from pipelines.weights import load_for_inference

Batch = dict[str, NDArray[Any]]


class StreamingTeacher:
    """Adds `x_u` and `x_target_0`, float32, to the records of `OnlineRecords`, `rows` at a time."""

    def __init__(self, config: DistillConfig, rows: int, device: str) -> None:
        torch.set_num_threads(torch_threads(config.compute))
        self.precision, self.rows = config.optim.precision, rows
        self.unet = load_for_inference(config.teacher, config.norm_groups, device, self.precision).unet

    def __call__(self, batch: Batch) -> Batch:
        targets: dict[str, list[NDArray[np.float32]]] = {"x_u": [], "x_target_0": []}
        for start in range(0, len(batch["seed"]), self.rows):
            part = {name: values[start : start + self.rows] for name, values in batch.items()}
            segment, x_target_0 = teacher_targets(self.unet, part, self.precision)
            targets["x_u"].append(segment.x_u.float().cpu().numpy())
            targets["x_target_0"].append(x_target_0.float().cpu().numpy())
        return {**batch, **{name: np.concatenate(parts) for name, parts in targets.items()}}
