"""`ingest`, images/s, against decoding alone: same images, same number of processes, turn by turn.

Decoding alone is `images.decode` on bytes that lie in memory, in as many processes as Ray has CPUs. `ingest` reads,
checks, decodes, fingerprints, splits and writes shards; its time is that of the whole call on a running cluster.

    python tests/benchmarks/bench_ingest.py [--source URL] [--layout lolv1] [--copies 4] [--rounds 3]
"""

import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import ray
import tyro
from PIL import Image

from pipelines import cluster, images, storage
from pipelines.config import IngestConfig, Layout
from pipelines.layouts import list_pairs
from pipelines.pairs import ingest
from reddit_core.degrade import DegradeConfig, degrade

TARGET = 0.9
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    source: str = ""
    """URL of a dataset; empty makes 600 x 400 WebP pairs of scikit-image's photographs."""
    layout: Layout = "lolv1"
    copies: int = 4
    """How often each pair is taken, under names of its own."""
    rounds: int = 3
    """Turns of decoding and ingest; the median of their ratios counts."""


held: list[bytes] = []


def hold(urls: list[str]) -> int:
    """Reads this process's share of the files, before the clock starts."""
    held[:] = [storage.read_bytes(url) for url in urls]
    return images.decode(held[0]).size


def decode_held(copies: int) -> int:
    return sum(images.decode(data).size for _ in range(copies) for data in held)


def make_source(root: Path) -> str:
    """A LOLv1 folder of 72 lossless WebP pairs: crops of photographs, and their darkened versions."""
    import skimage.data  # noqa: PLC0415 - only when no source is given

    rng = np.random.default_rng(0)
    for side in ("low", "high"):
        (root / "our485" / side).mkdir(parents=True)
    for number in range(72):
        photograph = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])())
        left, top = rng.integers(0, 100, size=2)
        crop = photograph.crop((left, top, photograph.width, photograph.height)).resize((600, 400))
        normal = np.asarray(crop.convert("RGB"))
        for side, image in (("high", normal), ("low", degrade(normal, DegradeConfig(), rng))):
            Image.fromarray(image).save(root / "our485" / side / f"{number}.webp", lossless=True, method=0)
    return str(root)


def main(settings: Settings) -> None:
    cluster.start_ray()
    cpus = int(ray.cluster_resources()["CPU"])
    with tempfile.TemporaryDirectory() as folder:
        source = settings.source or make_source(Path(folder) / "source")
        pairs = list_pairs(IngestConfig(output=folder, source=source, layout=settings.layout))
        urls = [url for pair in pairs if not pair.problem for url in (pair.low, pair.normal)]
        table = Path(folder) / "pairs.csv"
        rows = [f"{p.pair_id}-{c},{p.low},{p.normal}" for c in range(settings.copies) for p in pairs if not p.problem]
        table.write_text("\n".join(["pair_id,low,normal", *rows]))
        num_images = len(urls) * settings.copies
        pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(cpus)]
        for loading in [pool.submit(hold, urls[part::cpus]) for part, pool in enumerate(pools)]:
            loading.result()

        def decoding() -> float:
            started = time.perf_counter()
            for job in [pool.submit(decode_held, settings.copies) for pool in pools]:
                job.result()
            return num_images / (time.perf_counter() - started)

        def ingesting(name: str) -> float:
            output = str(Path(folder) / name)
            started = time.perf_counter()
            ingest(IngestConfig(output=output, source=str(table), layout="table"))
            return num_images / (time.perf_counter() - started)

        print(f"{num_images} images, {cpus} processes; first ingest, workers cold: {ingesting('cold'):.1f} images/s")
        ratios = []
        for turn in range(settings.rounds):
            alone, whole = decoding(), ingesting(f"turn{turn}")
            ratios.append(whole / alone)
            print(f"decoding {alone:.1f} images/s, ingest {whole:.1f} images/s, ratio {ratios[-1]:.3f}")
        for pool in pools:
            pool.shutdown()
    verdict = "reached" if statistics.median(ratios) >= TARGET else "missed"
    print(f"ingest / decoding alone: median {statistics.median(ratios):.3f} of {settings.rounds} ({TARGET} {verdict})")


if __name__ == "__main__":
    main(tyro.cli(Settings))
