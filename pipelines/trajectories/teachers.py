"""The teacher at work: its targets of a batch of records, and the actors that compute them.

`TeacherActor` runs over whole shards for `precompute`; `StreamingTeacher` beside the trainers, without a cache.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines import shards
from pipelines.cluster import steady_threads, torch_threads
from pipelines.config.jobs import DistillConfig, PrecomputeConfig
from pipelines.config.parts import Precision
from pipelines.trajectories.crops import Batch, to_images
from pipelines.trajectories.records import columns_of, levels_of, with_noise
from pipelines.weights import load_for_inference
from reddit_core.diffusion import Estimate, predict
from reddit_core.networks.sr3_unet import UNet
from reddit_core.trajectory import Segment, teacher_segment, unrefined_x_target

# Shards that an actor has in hand at a time.
CALLS = 2

Item = TypeVar("Item")


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


class TeacherActor:
    """Runs the teacher over whole shards of crops, in fixed batches.

    `CALLS` shards are in hand at a time: one is before the teacher while another is read, or handed on.
    """

    def __init__(self, config: PrecomputeConfig, device: str) -> None:
        threads = steady_threads(config.compute)
        self.config = config
        self.teacher = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self.unet = load_for_inference(config.teacher, config.norm_groups, device, config.precision).unet

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        (task,), (data,) = batch["task"], batch["records"]
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        return {"task": [task], "shard": [bytes(shards.encode_table(self.compute(table)))]}

    def compute(self, table: pa.Table) -> pa.Table:
        size = self.config.batch_size
        batches = (columns_of(table.slice(start, size)) for start in range(0, table.num_rows, size))
        noisy = one_ahead(with_noise, batches)
        noisy = chain([next(noisy)], noisy)  # the first noise is drawn while another shard is before the teacher
        x_u, x_target_0 = (np.concatenate(parts) for parts in zip(*self.evaluate(noisy), strict=True))
        table = table.append_column("x_u", shards.tensor_column(x_u))
        table = table.append_column("x_target_0", shards.tensor_column(x_target_0))
        return table.cast(shards.trajectory_schema(self.config.segment.crop))

    def evaluate(self, batches: Iterable[Batch]) -> list[tuple[NDArray[np.float16], NDArray[np.float16]]]:
        """The targets of each batch, in the teacher's own thread, which takes one shard at a time."""
        return self.teacher.submit(lambda: [self.targets_of(records) for records in batches]).result()

    def targets_of(self, records: Batch) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        segment, x_target_0 = teacher_targets(self.unet, records, self.config.precision)
        return segment.x_u.half().cpu().numpy(), x_target_0.half().cpu().numpy()


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


def one_ahead(function: Callable[[Item], Item], items: Iterable[Item]) -> Iterator[Item]:
    """As `map`, but a thread works on the next item while the caller does on the last."""
    with ThreadPoolExecutor(1) as pool:
        current: Future[Item] | None = None
        for item in items:
            following = pool.submit(function, item)
            if current:
                yield current.result()
            current = following
        if current:
            yield current.result()
