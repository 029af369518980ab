"""What tiles cost, and how far their result is from the untiled one.

    python tests/benchmarks/bench_tiles.py --photographs FILE ... [--scale 3] [--tile 1024]

Photographs in daylight are enlarged, darkened with noise (`reddit_core.degrade`), and enhanced in one piece and in
tiles, by turns. Differences are in levels of 8 bits, of results of 16 bits.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from pipelines.config.use import DEFAULT_STUDENT
from pipelines.reporting import Report, Row, show
from pipelines.weights import load_network
from reddit_core.degrade import DegradeConfig, degrade
from reddit_core.student import Student

LEVELS = 257
"""Values of 16 bits in one of 8."""
NOISY = DegradeConfig(full_well=5000.0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    photographs: list[str] = field(default_factory=list)
    """Files of photographs in daylight."""
    scale: int = 3
    """Their sides are enlarged so many times."""
    weights: str = str(DEFAULT_STUDENT)
    steps: int = 2
    tile: int = 1024
    rounds: int = 2
    """Runs of each; the fastest counts."""
    threads: int = 1


def night(path: str, scale: int) -> NDArray[np.uint16]:
    """A photograph, enlarged and darkened, as values of 16 bits."""
    with Image.open(path) as image:
        enlarged = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    return degrade(np.asarray(enlarged), NOISY, np.random.default_rng(0)).astype(np.uint16) * LEVELS


def compare(student: Student, path: str, settings: Settings) -> Row:
    """One photograph, whole and in tiles."""
    pixels = night(path, settings.scale)
    tiles = {"whole": max(pixels.shape), "tiled": settings.tile}
    seconds: dict[str, list[float]] = {name: [] for name in tiles}
    results = {}
    for _ in range(settings.rounds):
        for name, tile in tiles.items():
            started = time.process_time()
            results[name] = student.enhance(pixels, steps=settings.steps, tile=tile) / LEVELS
            seconds[name].append(time.process_time() - started)
    difference = np.abs(results["tiled"] - results["whole"])
    return {
        "photograph": path.rpartition("/")[2],
        "megapixels": pixels.shape[0] * pixels.shape[1] / 1e6,
        "CPU seconds, whole": min(seconds["whole"]),
        "tiled / whole": min(seconds["tiled"]) / min(seconds["whole"]),
        "mean difference": float(difference.mean()),
        "99.9 %": float(np.quantile(difference, 0.999)),
        "largest": float(difference.max()),
    }


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    student = Student(load_network(settings.weights))
    rows = [compare(student, path, settings) for path in settings.photographs]
    facts = {"tile": settings.tile, "steps": settings.steps, "threads": settings.threads}
    show(Report(title="Tiles against one piece", rows=rows, facts=facts), Console())


if __name__ == "__main__":
    main(tyro.cli(Settings))
