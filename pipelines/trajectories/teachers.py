"""The teacher's targets for a batch of records, and the actors that compute them.

`TeacherActor` processes whole shards for `precompute`; `StreamingTeacher` serves running trainers, without a cache.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import shards
from pipelines.config.jobs import DistillConfig, PrecomputeConfig
from pipelines.shards import TARGET_COLUMNS
from pipelines.threads import steady_threads, torch_threads
from pipelines.trajectories.crops import Batch
from pipelines.trajectories.records import to_batch, to_levels, with_noise
from pipelines.weights import load_for_inference
from reddit_core.diffusion import Estimate, predict
from reddit_core.networks import Network
from reddit_core.pixels import signed_from_pixels
from reddit_core.precision import Precision, autocast
from reddit_core.trajectory import Levels, Segment, teacher_segment, unrefined_x_target

# Shards that an actor processes at a time.
CALLS = 2

Item = TypeVar("Item")


def target_columns(segment: Segment, levels: Levels) -> dict[str, Tensor]:
    """A teacher's segments as the `TARGET_COLUMNS` of their records, each float64 [n, 3, h, w]."""
    return dict(zip(TARGET_COLUMNS, (segment.x_u, unrefined_x_target(segment, levels)), strict=True))


def teacher_targets(
    network: Network, records: Mapping[str, NDArray[Any]], precision: Precision, eps: Tensor | None = None
) -> dict[str, Tensor]:
    """The `TARGET_COLUMNS` of a batch of records, float64 on the network's device.

    Trajectories `cache`, `online` and `stream` all get their targets here. `records` have their noise (`with_noise`);
    `eps` is another one in its place.
    """
    device = next(network.parameters()).device
    low, normal = signed_from_pixels(records["low"], device), signed_from_pixels(records["normal"], device)
    gain, levels = torch.tensor(records["gain"], device=device), to_levels(records, device)
    if eps is None:
        eps = torch.tensor(records["eps"], device=device)

    def denoise(z: Tensor, sqrt_alpha_bar: Tensor, *, low: Tensor, gain: Tensor | None = None) -> Estimate:
        with autocast(device, precision):
            return predict(network, z, sqrt_alpha_bar, low=low, gain=gain)

    with torch.inference_mode():
        return target_columns(teacher_segment(denoise, normal, eps, levels, low=low, gain=gain), levels)


class TeacherActor:
    """Runs the teacher over whole shards of records, in fixed batches.

    It processes `CALLS` shards at a time: the teacher runs on one while another is decoded or encoded.
    """

    def __init__(self, config: PrecomputeConfig, device: str) -> None:
        threads = steady_threads(config.compute)
        self.config = config
        self.teacher = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self.network = load_for_inference(config.teacher, device, config.precision).network

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        (task,), (data,) = batch["task"], batch["records"]
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        return {"task": [task], "shard": [bytes(shards.encode_table(self.compute(table)))]}

    def compute(self, table: pa.Table) -> pa.Table:
        """A shard with its `TARGET_COLUMNS`, float16, from its records without them."""
        size = self.config.batch_size
        batches = (to_batch(table.slice(start, size)) for start in range(0, table.num_rows, size))
        noisy = one_ahead(with_noise, batches)
        noisy = chain([next(noisy)], noisy)  # draws the first noise while the teacher runs on another shard
        for name, values in concatenated(self.evaluate(noisy)).items():
            table = table.append_column(name, shards.tensor_column(values))
        return table.cast(shards.trajectory_schema(self.config.segment.crop))

    def evaluate(self, batches: Iterable[Batch]) -> list[Batch]:
        """The `TARGET_COLUMNS` of each batch, float16; computed in one thread, which takes one shard at a time."""
        return self.teacher.submit(lambda: [self.evaluate_batch(records) for records in batches]).result()

    def evaluate_batch(self, records: Batch) -> Batch:
        targets = teacher_targets(self.network, records, self.config.precision)
        return {name: values.half().cpu().numpy() for name, values in targets.items()}


class StreamingTeacher:
    """Adds `TARGET_COLUMNS`, float32, to the records of `OnlineRecords`, `rows` at a time."""

    def __init__(self, config: DistillConfig, rows: int, device: str) -> None:
        torch.set_num_threads(torch_threads(config.compute))
        self.precision, self.rows = config.optim.precision, rows
        self.network = load_for_inference(config.teacher, device, self.precision).network

    def __call__(self, batch: Batch) -> Batch:
        parts = []
        for start in range(0, len(batch["seed"]), self.rows):
            part = {name: values[start : start + self.rows] for name, values in batch.items()}
            targets = teacher_targets(self.network, part, self.precision)
            parts.append({name: values.float().cpu().numpy() for name, values in targets.items()})
        return {**batch, **concatenated(parts)}


def concatenated(parts: Sequence[Batch]) -> Batch:
    """Batches with the same columns, joined in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def one_ahead(function: Callable[[Item], Item], items: Iterable[Item]) -> Iterator[Item]:
    """As `map`, but a thread computes the next item while the caller uses the last one."""
    with ThreadPoolExecutor(1) as pool:
        current: Future[Item] | None = None
        for item in items:
            following = pool.submit(function, item)
            if current:
                yield current.result()
            current = following
        if current:
            yield current.result()
