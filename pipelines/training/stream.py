"""Loads the batches of every step with Ray Data, from any step on, and distributes them to the training workers.

Worker r of W takes the r-th part of every batch, so a batch has the same records for any W; if W does not divide
it, the last parts are padded with rows that are not counted (`PADDING`). One task loads one worker's parts of a span
of steps, as one block; Ray Train deals the blocks to the workers in turn. Each row carries its `position`, so that a
worker can check that it received the right rows. With trajectories `stream`, every block passes through an actor of
the `TeacherPool`, which adds the targets.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipelines.training.order import Order
from pipelines.trajectories.crops import Batch

Loader = Callable[[NDArray[np.int64]], Batch]
"""Loads the records given as (shard, row, epoch), [n, 3], in that order."""


# The position of a row that only pads a worker's part.
PADDING = -1
# Less than an actor reserves, so that Ray Data does not fuse loading with the actors.
LOAD_CPUS = 0.5
# Ray Data plans one task for each span of steps at every start (4 kB and 0.3 ms each). So a long run has longer spans:
# at most `ENOUGH_TASKS` tasks, unless a span would then exceed `MOST_SPAN_BYTES`.
ENOUGH_TASKS, MOST_SPAN_BYTES = 4096, 64 * 2**20
THROTTLE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class TeacherPool:
    """Pool of actors that add teacher targets to each loaded block.

    Attributes:
        actor: a class whose instances map a batch to a batch of the same rows in the same order.
        args: its constructor's arguments.
        num_actors: size of the pool.
        num_cpus, num_gpus: resources that each actor reserves.
    """

    actor: type
    args: tuple[Any, ...]
    num_actors: int
    num_cpus: float
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class StageRecords:
    """The records of one stage.

    Attributes:
        order: the order in which they are trained on.
        load: loads them by shard and row.
        source: URL of the cache or the pairs.
        key: hash of everything that determines them, the teacher included.
    """

    order: Order
    load: Loader
    source: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The batches of all stages, one after the other.

    Attributes:
        stages: the records of each stage.
        steps: optimizer steps of each stage.
        batch_size: records of a step, over all workers.
        row_bytes: approximate size of a loaded row.
        accumulate: micro-batches of a worker's part; its number of rows is a multiple of this.
        span_steps: least number of steps that one task loads.
        teachers: actors that add targets to the loaded rows, if any.
        teacher_sha256: of the weights that make the targets; empty where records have none.
    """

    stages: Sequence[StageRecords]
    steps: int
    batch_size: int
    row_bytes: int
    accumulate: int = 1
    span_steps: int = 8
    teachers: TeacherPool | None = None
    teacher_sha256: str = ""

    @property
    def num_steps(self) -> int:
        return self.steps * len(self.stages)

    def spans(self, start_step: int, num_workers: int) -> "Spans":
        """The spans of steps that the tasks load, from a global step on."""
        share = rows_per_worker(self.batch_size, self.accumulate, num_workers)
        few = -(-(self.num_steps - start_step) * num_workers // ENOUGH_TASKS)
        fitting = MOST_SPAN_BYTES // (share * self.row_bytes)
        size = max(self.span_steps, min(few, fitting))
        return Spans(start_step=start_step, num_steps=self.num_steps, stage_steps=self.steps, size=size)

    def load(self, start_step: int, stop_step: int, rank: int, num_workers: int) -> Batch:
        """A worker's rows of the global steps [start_step, stop_step) of one stage, and the `position` of each."""
        steps = range(start_step, stop_step)
        share = rows_per_worker(self.batch_size, self.accumulate, num_workers)
        positions = np.concatenate([worker_positions(self.batch_size, share, step, rank) for step in steps])
        stage_index = start_step // self.steps
        first = (start_step - stage_index * self.steps) * self.batch_size
        stage = self.stages[stage_index]
        records = stage.order.records(first, first + len(steps) * self.batch_size)
        rows = np.where(positions == PADDING, 0, positions - start_step * self.batch_size)
        return {**stage.load(records[rows]), "position": positions}


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The global steps from `start_step` on, cut into spans of `size`; none crosses a stage."""

    start_step: int
    num_steps: int
    stage_steps: int
    size: int

    @property
    def per_stage(self) -> int:
        return -(-self.stage_steps // self.size)

    @property
    def in_first(self) -> int:
        """Number of spans in the rest of the stage that contains `start_step`."""
        return -(-(self.stage_steps - self.start_step % self.stage_steps) // self.size)

    def __len__(self) -> int:
        if self.start_step >= self.num_steps:
            return 0
        later_stages = (self.num_steps - 1) // self.stage_steps - self.start_step // self.stage_steps
        return self.in_first + later_stages * self.per_stage

    def __getitem__(self, index: int) -> tuple[int, int]:
        """(first, last + 1) global steps of a span."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        stage, start = self.start_step // self.stage_steps, self.start_step + index * self.size
        if index >= self.in_first:
            later, within = divmod(index - self.in_first, self.per_stage)
            stage += 1 + later
            start = stage * self.stage_steps + within * self.size
        return start, min(start + self.size, (stage + 1) * self.stage_steps)


class SchedulerThrottle(ExecutionCallback):
    """Sleeps 50 ms (`THROTTLE_S`) in every step of Ray Data's scheduler.

    The scheduler blocks only while tasks run. While there is nothing left to load, or no room for it, and trainers
    still consume what was loaded, it polls without a pause (`process_completed_tasks` in Ray 2.60) and would occupy a
    whole core.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(THROTTLE_S)


def rows_per_worker(batch_size: int, accumulate: int, num_workers: int) -> int:
    """Rows of a batch for each worker, padding included: the same for all, and a multiple of `accumulate`."""
    return -(-batch_size // (num_workers * accumulate)) * accumulate


def worker_positions(batch_size: int, share: int, step: int, rank: int) -> NDArray[np.int64]:
    """The positions of a worker's rows in a global step, [share]; they count the rows of all stages."""
    offsets = rank * share + np.arange(share)
    return np.where(offsets < batch_size, step * batch_size + offsets, PADDING)


def make_dataset(stream: Stream, start_step: int, num_workers: int) -> ray.data.Dataset:
    """A lazy dataset of all batches from `start_step` on; block i is for worker `i % num_workers`."""
    spans = stream.spans(start_step, num_workers)
    num_tasks = len(spans) * num_workers
    if not num_tasks:
        return ray.data.range(0)

    def load(batch: Mapping[str, NDArray[np.int64]]) -> Batch:
        span, rank = divmod(int(batch["id"][0]), num_workers)
        return stream.load(*spans[span], rank, num_workers)

    blocks = ray.data.range(num_tasks, override_num_blocks=num_tasks)
    blocks.context.custom_execution_callback_classes = [SchedulerThrottle]
    # Otherwise Ray Data splits large blocks, and the workers would receive each other's.
    blocks.context.target_max_block_size = None
    if stream.teachers is None:
        return blocks.map_batches(load, batch_size=1)
    pool = stream.teachers
    return blocks.map_batches(load, batch_size=1, num_cpus=LOAD_CPUS).map_batches(
        pool.actor,
        fn_constructor_args=pool.args,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=pool.num_actors),
        num_cpus=None if pool.num_gpus else pool.num_cpus,
        num_gpus=pool.num_gpus or None,
    )
