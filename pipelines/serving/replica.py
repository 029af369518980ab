"""A replica of the student: reads, enhances and encodes photographs that are sent to it, all in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from ray.serve import metrics

from pipelines.config.serving import ServeConfig
from pipelines.enhancement.metadata import fit_metadata
from pipelines.enhancement.photo_files import in_format, read_photograph, write_photograph
from pipelines.enhancement.photograph import Photograph, TooLargeError, UnknownFormatError
from pipelines.images import encode_png, reduced
from pipelines.serving.batches import Batches
from pipelines.serving.loopback import listen_on_loopback
from pipelines.serving.messages import Answer, Query
from pipelines.threads import torch_threads
from pipelines.weights import load_student
from reddit_core.pixels import Pixels

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True)
class Work:
    """What the network is asked for, and since when (seconds of the epoch)."""

    pixels: Pixels
    query: Query
    since: float

    @property
    def kind(self) -> object:
        """Photographs of one kind may share a batch."""
        return self.pixels.shape, self.pixels.dtype.str, self.query.brightness, self.query.steps, self.query.seed

    @property
    def size(self) -> int:
        """Pixels."""
        height, width = self.pixels.shape[:2]
        return int(height * width)


class StudentReplica:
    """Several requests at once read and encode in threads, but only one batch uses the network.

    Its methods are generators. While they work, they yield whether the request is worked on (True), or only waits for
    the network (False), and at the end the `Answer`.
    """

    def __init__(self, config: ServeConfig, device: str) -> None:
        listen_on_loopback()
        self.config = config
        # All of PyTorch runs in this thread. OpenMP keeps its threads for each one that uses it, and once they are more
        # than there are CPUs it puts them to sleep between two operations: a network then takes a tenth longer.
        thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch_threads(config.compute),))
        load = partial(load_student, config.weights, device, config.precision, steps=config.steps)
        self.student = thread.submit(load).result()
        self.batches = Batches(self.run, config.batch, self.student.tiling(config.tile)[1] ** 2, thread)
        self.megapixels = metrics.Counter(
            "reddit_enhanced_megapixels", description="Megapixels of enhanced photographs."
        )
        self.seconds = metrics.Histogram(
            "reddit_network_seconds",
            description="Seconds of the network for each photograph.",
            boundaries=list(SECONDS),
        )

    async def enhance(self, data: bytes, query: Query, since: float) -> AsyncIterator[bool | Answer]:
        """An enhanced photograph as a file, or why there is none; what waits since longer is worked on first."""
        async for said in reject(self._enhance(data, query, since)):
            yield said

    async def _enhance(self, data: bytes, query: Query, since: float) -> AsyncIterator[bool | Answer]:
        yield True
        photograph = await self.read(data)
        yield False
        place = self.batches.submit(Work(photograph.pixels, query, since))
        try:
            await place.taken.wait()
            yield True
            pixels, seconds = await place.result
        finally:
            place.result.cancel()
        self.megapixels.inc(pixels.shape[0] * pixels.shape[1] / 1e6)
        self.seconds.observe(seconds)
        yield await asyncio.to_thread(encode, photograph, pixels, query, seconds)

    async def preview(self, data: bytes, side: int) -> AsyncIterator[bool | Answer]:
        """A photograph as it is, upright, as a PNG of 8 bits and at most `side` pixels a side."""
        async for said in reject(self._preview(data, side)):
            yield said

    async def _preview(self, data: bytes, side: int) -> AsyncIterator[bool | Answer]:
        yield True
        photograph = await self.read(data)
        yield Answer(data=await asyncio.to_thread(preview_png, photograph.pixels, side), media_type="image/png")

    async def read(self, data: bytes) -> Photograph:
        return await asyncio.to_thread(read_photograph, data, self.config.max_megapixels)

    def run(self, works: Sequence[Work]) -> list[tuple[Pixels, float]]:
        """The results of photographs of one kind, and the network's seconds for each."""
        query, started = works[0].query, time.perf_counter()
        tone = self.config.asked_tone | ({"brightness": query.brightness} if query.brightness else {})
        if len(works) == 1:
            results = [
                self.student.enhance(
                    works[0].pixels,
                    seed=query.seed,
                    steps=query.steps,
                    **tone,
                    tile=self.config.tile,
                    overlap=self.config.overlap,
                )
            ]
        else:
            photographs = [work.pixels for work in works]
            results = self.student.enhance_batch(photographs, seed=query.seed, steps=query.steps, **tone)
        seconds = (time.perf_counter() - started) / len(works)
        return [(pixels, seconds) for pixels in results]


async def reject(said: AsyncIterator[bool | Answer]) -> AsyncIterator[bool | Answer]:
    """The same; what is wrong with the request becomes an answer too, since exceptions carry tracebacks."""
    try:
        async for item in said:
            yield item
    except TooLargeError as error:
        yield Answer(status=413, reason=str(error))
    except UnknownFormatError as error:
        yield Answer(status=415, reason=str(error))
    except ValueError as error:
        yield Answer(status=422, reason=str(error))


def encode(photograph: Photograph, pixels: Pixels, query: Query, seconds: float) -> Answer:
    """The file, in the photograph's own format or the one that is asked for."""
    if query.format != "auto":
        photograph, pixels = in_format(photograph, pixels, query.format.upper())
    photograph, notes = fit_metadata(photograph)
    data, media_type = write_photograph(photograph, pixels), f"image/{photograph.format.lower()}"
    return Answer(data=data, media_type=media_type, seconds=seconds, notes=notes)


def preview_png(pixels: Pixels, side: int) -> bytes:
    return encode_png(reduced(pixels, side))
