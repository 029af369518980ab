"""Work that waits for the network, in batches of one kind.

Ray Serve's own `serve.batch` closes a batch when a time is over, whether the network is busy or not, and mixes sizes.
Here a batch is what waits at the moment when the network becomes free.
"""

import asyncio
import bisect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")


class Work(Protocol):
    """What can be done in batches: of one kind, whose sizes add up to a limit; what waits since longer goes first."""

    @property
    def kind(self) -> object: ...

    @property
    def size(self) -> int: ...

    @property
    def since(self) -> float: ...


Item = TypeVar("Item", bound=Work)


@dataclass(frozen=True, eq=False)
class Place(Generic[Item, Result]):
    """A place in the queue.

    Attributes:
        taken: set when the item's turn has come.
        result: of the item; cancelled before its turn, the item is not run.
    """

    item: Item
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    result: "asyncio.Future[Result]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batches(Generic[Item, Result]):
    """Runs what is submitted in a thread, the oldest first, together with what waits of the same kind.

    Args:
        run: from items of one kind to their results in the same order; it blocks. What it raises, all of them raise.
        most: items of a batch.
        most_size: sum of a batch's sizes, unless it is one item.
        thread: in which `run` is called.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        most: int,
        most_size: int,
        thread: ThreadPoolExecutor,
    ) -> None:
        self.run, self.most, self.most_size, self.thread = run, most, most_size, thread
        self.waiting: list[Place[Item, Result]] = []
        self.runner: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> Place[Item, Result]:
        """Queues the item."""
        place: Place[Item, Result] = Place(item)
        bisect.insort(self.waiting, place, key=lambda other: other.item.since)
        if self.runner is None or self.runner.done():
            self.runner = asyncio.create_task(self.work_off())
        return place

    async def work_off(self) -> None:
        while batch := self.take():
            for place in batch:
                place.taken.set()
            items = [place.item for place in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, items)
            except Exception as error:  # handed to those who wait for it
                for place in batch:
                    if not place.result.done():
                        place.result.set_exception(error)
            else:
                for place, result in zip(batch, results, strict=True):
                    if not place.result.done():
                        place.result.set_result(result)

    def take(self) -> list[Place[Item, Result]]:
        """Takes the next batch out of the queue; empty if nothing waits."""
        self.waiting = [place for place in self.waiting if not place.result.done()]
        batch: list[Place[Item, Result]] = []
        size = 0
        for place in self.waiting:
            fits = not batch or (place.item.kind == batch[0].item.kind and size + place.item.size <= self.most_size)
            if fits and len(batch) < self.most:
                batch.append(place)
                size += place.item.size
        self.waiting = [place for place in self.waiting if place not in batch]
        return batch
