"""The teacher of `precompute`: an actor that runs it over whole shards, and never lets it wait for the next one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines import shards
from pipelines.cluster import steady_threads
from pipelines.config.jobs import PrecomputeConfig
from pipelines.trajectories.records import Batch, columns_of, with_noise
from pipelines.trajectories.targets import teacher_targets
from pipelines.weights import load_for_inference

# Shards that an actor has in hand at a time.
CALLS = 2

Item = TypeVar("Item")


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
