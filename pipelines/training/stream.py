"""Ray Data from shards to training workers: the batches of every step, from any step on.

Worker r of W takes the r-th part of every batch, so a batch is the same records for any W; where W does not
divide it, the last parts are filled up with rows that count for nothing (`PADDING`). One task
loads one worker's parts of a span of steps, as one block; Ray Train deals the blocks to the workers in
turn. Each row carries its `position`, so that a worker can check that it got what was due. Where actors
beside the trainers have to add something to a block, it passes through one of them on its way.
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


# The position of a row that only fills a worker's part up.
PADDING = -1
# Less than an actor reserves, so that Ray Data does not fuse loading into the actors.
LOAD_CPUS = 0.5
# Ray Data plans one task for each span of steps at every start (4 kB and 0.3 ms each), so a long run has longer spans:
# as few as this, or such that a task loads so many bytes.
ENOUGH_TASKS, MOST_SPAN_BYTES = 4096, 64 * 2**20
THROTTLE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class TeacherPool:
    """Actors that every loaded block passes through.

    Attributes:
        actor: a class whose instances map a batch to a batch of the same rows in the same order.
        args: what it is made with.
        num_actors, num_cpus, num_gpus: how many there are, and what each reserves.
    """

    actor: type
    args: tuple[Any, ...]
    num_actors: int
    num_cpus: float
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class StageRecords:
    """One stage's records: their order, how they are loaded, where they lie, and what they are made of.

    Attributes:
        source: URL of the cache or the pairs.
        key: the same for the same records of the same teacher.
    """

    order: Order
    load: Loader
    source: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The batches of all stages, one after the other, `steps` optimizer steps each.

    Attributes:
        accumulate: micro-batches of a worker's part, which is a multiple of it.
        row_bytes: about how much a loaded row takes.
        span_steps: steps that one task loads at least.
        teachers: actors that add to what was loaded, if any.
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
        """What each task loads, from a global step on."""
        share = rows_per_worker(self.batch_size, self.accumulate, num_workers)
        few = -(-(self.num_steps - start_step) * num_workers // ENOUGH_TASKS)
        fitting = MOST_SPAN_BYTES // (share * self.row_bytes)
        size = max(self.span_steps, min(few, fitting))
        return Spans(start_step=start_step, num_steps=self.num_steps, stage_steps=self.steps, size=size)

    def load(self, start_step: int, stop_step: int, rank: int, num_workers: int) -> Batch:
        """A worker's rows of the global steps [start_step, stop_step), all of one stage, with their positions."""
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
        """Spans of what is left of the stage that `start_step` lies in."""
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
    """Lets Ray Data's scheduler rest between its steps.

    It waits for running tasks only. While trainers still take what was loaded and nothing is left to be loaded, or no
    room for it, it asks again at once (`process_completed_tasks` in Ray 2.60) and would keep a core busy all that time.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(THROTTLE_S)


def rows_per_worker(batch_size: int, accumulate: int, num_workers: int) -> int:
    """The rows that each of so many workers gets of a batch: equally many, and a multiple of the micro-batches."""
    return -(-batch_size // (num_workers * accumulate)) * accumulate


def worker_positions(batch_size: int, share: int, step: int, rank: int) -> NDArray[np.int64]:
    """The positions in the stream of all stages of a worker's rows in a global step, [share]."""
    offsets = rank * share + np.arange(share)
    return np.where(offsets < batch_size, step * batch_size + offsets, PADDING)


def make_dataset(stream: Stream, start_step: int, num_workers: int) -> ray.data.Dataset:
    """A lazy dataset of everything from `start_step` on; block i is for worker `i % num_workers`."""
    spans = stream.spans(start_step, num_workers)
    num_tasks = len(spans) * num_workers
    if not num_tasks:
        return ray.data.range(0)

    def load(batch: Mapping[str, NDArray[np.int64]]) -> Batch:
        span, rank = divmod(int(batch["id"][0]), num_workers)
        return stream.load(*spans[span], rank, num_workers)

    blocks = ray.data.range(num_tasks, override_num_blocks=num_tasks)
    blocks.context.custom_execution_callback_classes = [SchedulerThrottle]
    blocks.context.target_max_block_size = None  # or Ray Data splits large ones, and the workers' turns get confused
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
