"""What the benchmarks of jobs work on: pairs of photographs or random blocks, and a teacher that was not trained."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measuring import Size, make_network
from numpy.typing import NDArray
from PIL import Image

from pipelines.config.jobs import IngestConfig
from pipelines.pairs.ingest import ingest
from pipelines.weights import save_network
from reddit_core.degrade import DegradeConfig, degrade
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

WIDTH, HEIGHT, BLOCK = 600, 400, 8
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina")


def make_sides(root: Path) -> tuple[Path, Path]:
    """The folders of a LOLv1 dataset for low and for normal images."""
    low, normal = (root / "our485" / side for side in ("low", "high"))
    low.mkdir(parents=True)
    normal.mkdir()
    return low, normal


def photograph_pairs(
    num_pairs: int, size: tuple[int, int], noise: float = 0.0
) -> Iterator[tuple[NDArray[np.uint8], ...]]:
    """(low, normal) images: crops of scikit-image's photographs, darkened, and as they are.

    Args:
        size: their width and height.
        noise: standard deviation, of 255, of what is added to the normal ones; enlarged photographs would else decode
            faster than a camera's.
    """
    import skimage.data  # noqa: PLC0415 - only where photographs are wanted

    rng = np.random.default_rng(0)
    for number in range(num_pairs):
        photograph = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])())
        left, top = rng.integers(0, 100, size=2)
        crop = photograph.crop((left, top, photograph.width, photograph.height)).resize(size)
        normal = np.asarray(crop.convert("RGB"))
        if noise:
            added = noise * rng.standard_normal(normal.shape, dtype=np.float32)
            normal = (normal + added).clip(0, 255).astype(np.uint8)
        yield degrade(normal, DegradeConfig(), rng), normal


def make_pairs(folder: Path, num_pairs: int) -> str:
    """Ingested pairs of LOL's size, all for training; their URL."""
    rng, source = np.random.default_rng(0), folder / "source"
    low_side, normal_side = make_sides(source)
    for number in range(num_pairs):
        blocks = rng.integers(0, 256, (HEIGHT // BLOCK, WIDTH // BLOCK, 3), dtype=np.uint8)
        normal = blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
        normal += rng.integers(0, 8, normal.shape, dtype=np.uint8)  # noise, so that decoding costs what it usually does
        for side, image in ((normal_side, normal), (low_side, normal // 8)):
            Image.fromarray(image).save(side / f"{number}.png")
    ingest(IngestConfig(source=str(source), output=str(folder / "pairs"), validation_share=0, pairs_per_shard=32))
    return str(folder / "pairs")


def make_teacher(folder: Path, size: Size) -> str:
    """The URL of a teacher of that size."""
    url = str(folder / "teacher.safetensors")
    network, schedule = make_network(size.network), NoiseSchedule()
    save_network(url, NetworkFile(network=network, schedule=schedule, brightness=0.5, facts={"role": "teacher"}))
    return url
