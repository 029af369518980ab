"""What the benchmarks of jobs work on: pairs of random blocks, a teacher that was not trained, and its settings."""

from pathlib import Path

import numpy as np
from measuring import Size, make_unet
from PIL import Image

from pipelines.config.jobs import IngestConfig
from pipelines.pairs.ingest import ingest
from pipelines.weights import save_unet
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import UNetFile

WIDTH, HEIGHT, BLOCK = 600, 400, 8


def make_pairs(folder: Path, num_pairs: int) -> str:
    """Ingested pairs of LOL's size, all for training; their URL."""
    rng, source = np.random.default_rng(0), folder / "source"
    for side in ("low", "high"):
        (source / "our485" / side).mkdir(parents=True)
    for number in range(num_pairs):
        blocks = rng.integers(0, 256, (HEIGHT // BLOCK, WIDTH // BLOCK, 3), dtype=np.uint8)
        normal = blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
        normal += rng.integers(0, 8, normal.shape, dtype=np.uint8)  # noise, so that decoding costs what it usually does
        for side, image in (("high", normal), ("low", normal // 8)):
            Image.fromarray(image).save(source / "our485" / side / f"{number}.png")
    ingest(IngestConfig(source=str(source), output=str(folder / "pairs"), validation_share=0, pairs_per_shard=32))
    return str(folder / "pairs")


def make_teacher(folder: Path, size: Size) -> str:
    """The URL of a teacher of that size."""
    url = str(folder / "teacher.safetensors")
    save_unet(url, UNetFile(unet=make_unet(size.unet), schedule=NoiseSchedule(), facts={"role": "teacher"}))
    return url
