"""Peak memory of `ingest` and `precompute` at 1, 4 and 16 times as many images, and bytes per trajectory record; and of
`enhance` for one photograph of 3, 12, 50 and 108 megapixels, in tiles of 1024 x 1024, with 8 bits and with 16.

Each job runs as a process of its own with a Ray of its own. Memory is the sum of the proportional set sizes of the job
and all of Ray's processes (so what they share, the object store above all, counts once), read every second.

    python tests/benchmarks/bench_memory.py [--pairs 64] [--jobs ingest precompute enhance] [--megapixels 3 108]
        [--weights URL]
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import tifffile
import torch
import tyro
from making import make_sides, photograph_pairs
from PIL import Image

from pipelines import shards
from pipelines.weights import save_network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

ROOT = Path(__file__).parents[2]
SCALES = (1, 4, 16)
SIZE = (1440, 960)
"""Of the pairs' images: 16 such pairs fill what a worker keeps of decoded ones (`records.DECODED_BYTES`), so that it is
full at the smallest scale too."""
SHARDS = 8
"""Shards at the smallest scale: enough to keep every worker busy there too. They have the same size at all scales."""
FLAT = 1.1
"""What still counts as flat: the peak at the largest scale against the one at the smallest."""
BYTES_TARGET = 1.02
DIFFERENT = 12
INTERVAL_S = 1.0
UNET = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
# Its attention is over 64 x 64 positions of a tile; two levels' would be over 512 x 512, and all there is to measure.
DEEP_UNET = UNetConfig(base_channels=8, channel_mults=(1, 1, 2, 2, 2), num_res_blocks=1, norm_groups=4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    pairs: int = 64
    """Pairs at the smallest scale, each of 1440 x 960 pixels."""
    crop: int = 64
    """Side of the crops of precompute, four to a pair."""
    megapixels: tuple[int, ...] = (3, 12, 50, 108)
    """Sizes of the photographs, 4:3, that enhance is measured with."""
    weights: str = ""
    """URL of the student that enhances them, in one step; empty makes one that is as deep as the released network."""
    jobs: tuple[Literal["ingest", "precompute", "enhance"], ...] = ("ingest", "precompute", "enhance")
    """The jobs that are measured."""


def make_source(root: Path, num_pairs: int) -> Path:
    """A LOLv1 folder of that many pairs; twelve different ones, under many names."""
    sides = make_sides(root)
    for number, images in enumerate(photograph_pairs(min(num_pairs, DIFFERENT), SIZE)):
        for side, image in zip(sides, images, strict=True):
            Image.fromarray(image).save(side / f"{number}.png")
            for copy in range(number + DIFFERENT, num_pairs, DIFFERENT):
                os.link(side / f"{number}.png", side / f"{copy}.png")
    return root


@dataclass(frozen=True, order=True)
class Peak:
    """The most that a job held, in MiB, and in how many processes that was."""

    mib: float = 0.0
    processes: int = 0

    def __str__(self) -> str:
        return f"{self.mib:7.0f} MiB in {self.processes} processes"


def memory_of(process: psutil.Process) -> Peak:
    """What a process and all that it started hold now."""
    sizes = []
    for member in [process, *process.children(recursive=True)]:
        try:
            sizes.append(member.memory_full_info().pss)
        except psutil.Error:  # it has just ended
            continue
    return Peak(sum(sizes) / 2**20, len(sizes))


def run(job: str, *flags: str) -> tuple[Peak, float]:
    """The peak and the seconds of a job."""
    started, peak = time.perf_counter(), Peak()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = psutil.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        try:
            peak = max(peak, memory_of(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(INTERVAL_S)
    if process.wait():
        raise SystemExit(f"{job} ended with status {process.returncode}")
    return peak, time.perf_counter() - started


def measure(settings: Settings, folder: Path, scale: int) -> dict[str, Peak]:
    """The peak of each job at one scale."""
    num_pairs, pairs = settings.pairs * scale, folder / f"pairs{scale}"
    source = make_source(folder / f"source{scale}", num_pairs)
    flags = f"--source {source} --output {pairs} --pairs-per-shard {settings.pairs // SHARDS} --validation-share 0"
    peaks = {}
    peaks["ingest"], seconds = run("ingest", *flags.split())
    print(f"{scale:3}x ingest      {num_pairs:6} pairs    {peaks['ingest']}  {seconds:6.1f} s", flush=True)
    if "precompute" not in settings.jobs:
        return peaks
    cache = folder / f"cache{scale}"
    flags = f"""--pairs {pairs} --teacher {folder}/teacher.safetensors --output {cache} --stages 16
        --segment.crop {settings.crop} --segment.crops 4 --records-per-shard {4 * settings.pairs // SHARDS}"""
    peaks["precompute"], seconds = run("precompute", *flags.split())
    (url,) = cache.glob("16-*")
    manifest = shards.read_manifest(str(url), "trajectories")
    ratio = sum(entry.bytes for entry in manifest.shards) / manifest.num_rows / (24 * settings.crop**2)
    print(
        f"{scale:3}x precompute  {manifest.num_rows:6} records  {peaks['precompute']}  {seconds:6.1f} s; "
        f"bytes per record / 24 p^2: {ratio:.4f} ({BYTES_TARGET} {'kept' if ratio <= BYTES_TARGET else 'missed'})",
        flush=True,
    )
    return peaks


def measure_enhance(settings: Settings, folder: Path) -> None:
    """The peak for one photograph of each size, and what a further megapixel takes."""
    import skimage.data  # noqa: PLC0415 - slow to import

    weights = settings.weights or f"{folder}/deep.safetensors"
    for kind in ("jpg", "tif"):
        first: tuple[Peak, float] | None = None
        for megapixels in settings.megapixels:
            width, height = (round((megapixels * 1e6 * share) ** 0.5 / 16) * 16 for share in (4 / 3, 3 / 4))
            source, result = folder / f"{megapixels}.{kind}", folder / f"{megapixels}-enhanced.{kind}"
            picture = Image.fromarray(skimage.data.chelsea() // 6).resize((width, height))
            if kind == "jpg":
                picture.save(source)
            else:
                tifffile.imwrite(source, np.asarray(picture).astype(np.uint16) * 257, photometric="rgb", metadata=None)
            flags = f"--source {source} --output {result} --weights {weights} --steps 1 --tile 1024 --compute.threads 1"
            peak, seconds = run("enhance", *flags.split())
            size = width * height / 1e6
            first = first or (peak, size)
            more = (peak.mib - first[0].mib) / (size - first[1] or 1)
            print(
                f"enhance {width} x {height} {kind}: {peak}  {seconds:6.1f} s; {more:.1f} MiB a further megapixel",
                flush=True,
            )


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        for weights, config in (("teacher", UNET), ("deep", DEEP_UNET)):
            file = NetworkFile(network=UNet(config), schedule=NoiseSchedule(), facts={"role": "teacher"})
            save_network(f"{folder}/{weights}.safetensors", file)
        if "enhance" in settings.jobs:
            measure_enhance(settings, folder)
        jobs = [job for job in ("ingest", "precompute") if job in settings.jobs]
        peaks = {scale: measure(settings, folder, scale) for scale in SCALES} if jobs else {}
    for job, (small, large) in itertools.product(jobs, [(SCALES[0], scale) for scale in SCALES[1:]]):
        ratio = peaks[large][job].mib / peaks[small][job].mib
        print(f"{job}: peak at {large}x / {small}x: {ratio:.3f} ({'flat' if ratio <= FLAT else 'it grows'})")


if __name__ == "__main__":
    main(tyro.cli(Settings))
