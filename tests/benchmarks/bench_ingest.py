"""`ingest`, images/s, against decoding alone: same images, same number of processes, turn by turn.

Decoding alone is `images.decode` on bytes that lie in memory, in as many processes as Ray has CPUs. `ingest` reads,
checks, decodes, fingerprints, splits and writes shards; its time is that of the whole call on a running cluster.
On a machine that others use too, the ratio of CPU seconds (Ray's own processes included) is the steadier one.

    python tests/benchmarks/bench_ingest.py [--source URL] [--layout lolv1] [--copies 4] [--rounds 3]
    python tests/benchmarks/bench_ingest.py --size 2048 1536 --suffix png --pairs 24
"""

import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
import tyro
from making import make_sides, photograph_pairs
from PIL import Image

from pipelines import cluster, images, storage
from pipelines.config.jobs import IngestConfig, Layout
from pipelines.pairs.ingest import ingest
from pipelines.pairs.layouts import list_pairs

TARGET = 0.9
NOISE = 2.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    source: str = ""
    """URL of a dataset; empty makes pairs of scikit-image's photographs."""
    pairs: int = 72
    """Pairs that are made."""
    size: tuple[int, int] = (600, 400)
    """Their width and height."""
    suffix: Literal["webp", "png", "jpg"] = "webp"
    """Their format; WebP is lossless."""
    layout: Layout = "lolv1"
    copies: int = 4
    """How often each pair is taken, under names of its own."""
    rounds: int = 3
    """Turns of decoding and ingest; the median of their ratios counts."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one turn took, per image."""

    seconds: float
    cpu_seconds: float


held: list[bytes] = []


def hold(urls: list[str]) -> int:
    """Reads this process's share of the files, before the clock starts."""
    held[:] = [storage.read_bytes(url) for url in urls]
    return images.decode(held[0]).size


def decode_held(copies: int) -> float:
    """Decodes this process's share; the CPU seconds that took."""
    started = time.process_time()
    for _ in range(copies):
        for data in held:
            images.decode(data)
    return time.process_time() - started


def cluster_cpu_seconds(pools: list[ProcessPoolExecutor]) -> float:
    """CPU seconds so far of this process and of all of Ray's, which it started."""
    others = {process.pid for pool in pools for process in (pool._processes or {}).values()}
    mine = psutil.Process()
    total = 0.0
    for process in [mine, *mine.children(recursive=True)]:
        if process.pid not in others:
            times = process.cpu_times()
            total += times.user + times.system
    return total


def make_source(root: Path, settings: Settings) -> str:
    """A LOLv1 folder of pairs of photographs."""
    sides = make_sides(root)
    options: dict[str, Any] = {"webp": {"lossless": True, "method": 0}, "png": {}, "jpg": {"quality": 95}}
    for number, images_of_pair in enumerate(photograph_pairs(settings.pairs, settings.size, NOISE)):
        for side, image in zip(sides, images_of_pair, strict=True):
            Image.fromarray(image).save(side / f"{number}.{settings.suffix}", **options[settings.suffix])
    return str(root)


def write_table(path: Path, settings: Settings, source: str) -> list[str]:
    """A table with every whole pair of the source, several times; returns the URLs of its images."""
    pairs = list_pairs(IngestConfig(output=str(path.parent), source=source, layout=settings.layout)).pairs
    whole = [pair for pair in pairs if not pair.problem]
    rows = [f"{pair.pair_id}-{copy},{pair.low},{pair.normal}" for copy in range(settings.copies) for pair in whole]
    path.write_text("\n".join(["pair_id,low,normal", *rows]))
    return [url for pair in whole for url in (pair.low, pair.normal)]


def measure(settings: Settings, folder: Path, pools: list[ProcessPoolExecutor]) -> list[tuple[Cost, Cost]]:
    """(decoding alone, ingest) of every turn; a first ingest starts Ray's workers and is only shown."""
    table = folder / "pairs.csv"
    urls = write_table(table, settings, settings.source or make_source(folder / "source", settings))
    num_images = len(urls) * settings.copies
    for loading in [pool.submit(hold, urls[part :: len(pools)]) for part, pool in enumerate(pools)]:
        loading.result()

    def decoding() -> Cost:
        started = time.perf_counter()
        cpu_seconds = sum([job.result() for job in [pool.submit(decode_held, settings.copies) for pool in pools]])
        return Cost(seconds=(time.perf_counter() - started) / num_images, cpu_seconds=cpu_seconds / num_images)

    def ingesting(name: str) -> Cost:
        started, cpu_before = time.perf_counter(), cluster_cpu_seconds(pools)
        ingest(IngestConfig(output=str(folder / name), source=str(table), layout="table"))
        seconds, cpu_seconds = time.perf_counter() - started, cluster_cpu_seconds(pools) - cpu_before
        # A virtual machine takes seconds to touch memory for the first time; the next turn gets this turn's back.
        shutil.rmtree(folder / name)
        return Cost(seconds=seconds / num_images, cpu_seconds=cpu_seconds / num_images)

    print(f"{num_images} images, {len(pools)} processes; workers cold: {1 / ingesting('cold').seconds:.1f} images/s")
    turns = []
    for number in range(settings.rounds):
        alone, whole = decoding(), ingesting(f"turn{number}")
        turns.append((alone, whole))
        print(
            f"decoding {1 / alone.seconds:.1f} images/s, ingest {1 / whole.seconds:.1f} images/s; CPU ms per image: "
            f"decoding {1e3 * alone.cpu_seconds:.2f}, ingest {1e3 * whole.cpu_seconds:.2f}"
        )
    return turns


def main(settings: Settings) -> None:
    cluster.start_ray()
    cpus = int(ray.cluster_resources()["CPU"])
    with tempfile.TemporaryDirectory() as folder:
        pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(cpus)]
        turns = measure(settings, Path(folder), pools)
        for pool in pools:
            pool.shutdown()
    clock = statistics.median(alone.seconds / whole.seconds for alone, whole in turns)
    cpu = statistics.median(alone.cpu_seconds / whole.cpu_seconds for alone, whole in turns)
    verdict = "reached" if clock >= TARGET else "missed"
    print(f"ingest / decoding alone: {clock:.3f} by the clock ({TARGET} {verdict}), {cpu:.3f} by CPU time (medians)")


if __name__ == "__main__":
    main(tyro.cli(Settings))
