"""Ray Data from shards to training workers: the batches of every step, from any step on.

Worker r of W takes the r-th part of every batch, so a batch is the same records for any W; where W does not
divide it, the last parts are filled up with rows that count for nothing (`PADDING`). One task
loads one worker's parts of a span of steps, as one block; Ray Train deals the blocks to the workers in
turn. Each row carries its `position`, so that a worker can check that it got what was due. Where actors
beside the trainers have to add something to a block, it passes through one of them on its way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from pipelines.training.order import Order

Batch = dict[str, NDArray[Any]]
Loader = Callable[[NDArray[np.int64]], Batch]
"""Loads the records given as (shard, row, epoch), [n, 3], in that order."""


# The position of a row that only fills a worker's part up.
PADDING = -1
# Less than an actor reserves, so that Ray Data does not fuse loading into the actors.
LOAD_CPUS = 0.5


@dataclass(frozen=True, kw_only=True)
class Beside:
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
class Stage:
    """One stage's records: their order, and how they are loaded."""

    order: Order
    load: Loader


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The batches of all stages, one after the other, `steps` optimizer steps each.

    Attributes:
        accumulate: micro-batches of a worker's part, which is a multiple of it.
        span_steps: steps that one task loads.
        beside: actors that add to what was loaded, if any.
    """

    stages: Sequence[Stage]
    steps: int
    batch_size: int
    accumulate: int = 1
    span_steps: int = 8
    beside: Beside | None = None

    @property
    def num_steps(self) -> int:
        return self.steps * len(self.stages)

    def spans(self, start_step: int) -> list[tuple[int, int]]:
        """(first, last + 1) global steps of each task; none crosses a stage."""
        spans = []
        while start_step < self.num_steps:
            stage_end = (start_step // self.steps + 1) * self.steps
            stop_step = min(start_step + self.span_steps, stage_end)
            spans.append((start_step, stop_step))
            start_step = stop_step
        return spans

    def load(self, start_step: int, stop_step: int, rank: int, num_workers: int) -> Batch:
        """A worker's rows of the global steps [start_step, stop_step), all of one stage, with their positions."""
        steps = range(start_step, stop_step)
        share = share_of(self.batch_size, self.accumulate, num_workers)
        positions = np.concatenate([positions_of(self.batch_size, share, step, rank) for step in steps])
        stage_index = start_step // self.steps
        first = (start_step - stage_index * self.steps) * self.batch_size
        stage = self.stages[stage_index]
        records = stage.order.records(first, first + len(steps) * self.batch_size)
        rows = np.where(positions == PADDING, 0, positions - start_step * self.batch_size)
        return {**stage.load(records[rows]), "position": positions}


def share_of(batch_size: int, accumulate: int, num_workers: int) -> int:
    """The rows that each of so many workers gets of a batch: equally many, and a multiple of the micro-batches."""
    return -(-batch_size // (num_workers * accumulate)) * accumulate


def positions_of(batch_size: int, share: int, step: int, rank: int) -> NDArray[np.int64]:
    """The positions in the stream of all stages of a worker's rows in a global step, [share]."""
    offsets = rank * share + np.arange(share)
    return np.where(offsets < batch_size, step * batch_size + offsets, PADDING)


def make_dataset(stream: Stream, start_step: int, num_workers: int) -> ray.data.Dataset:
    """A lazy dataset of everything from `start_step` on; block i is for worker `i % num_workers`."""
    tasks = [(start, stop, rank) for start, stop in stream.spans(start_step) for rank in range(num_workers)]
    if not tasks:
        return ray.data.range(0)

    def load(batch: Mapping[str, NDArray[np.int64]]) -> Batch:
        start, stop, rank = tasks[int(batch["id"][0])]
        return stream.load(start, stop, rank, num_workers)

    blocks = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    blocks.context.target_max_block_size = None  # or Ray Data splits large ones, and the workers' turns get confused
    if stream.beside is None:
        return blocks.map_batches(load, batch_size=1)
    beside = stream.beside
    return blocks.map_batches(load, batch_size=1, num_cpus=LOAD_CPUS).map_batches(
        beside.actor,
        fn_constructor_args=beside.args,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=beside.num_actors),
        num_cpus=None if beside.num_gpus else beside.num_cpus,
        num_gpus=beside.num_gpus or None,
    )
