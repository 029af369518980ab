"""Time and memory of enhancement at 1, 2, 4 and 8 steps, of several networks side by side.

    python tests/benchmarks/bench_enhance.py [--weights URL ...] [--device auto|cpu|cuda] [--side 512] [--repeats 5]
        [--tile 256] [--precision bf16]

`before` is the network of the first LOL students (16-32-64-64-64, `v`, no patches), untrained; it is always among
them. `overhead` is the time of an N-step enhancement of a photograph that fits one tile, over N bare forwards on the
same pixels, minus 1. `tiled` is the same photograph in tiles, over the untiled one; the passes that find the shared
statistics are in it. Memory is the peak of the process during a call, above what it held before. Runs alternate, and
medians are shown, so that a machine that slows down does so for all.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from measuring import DeviceName, pick_device
from rich.console import Console

from pipelines.config.use import DEFAULT_STUDENT
from pipelines.evaluation.judge import MemoryGauge
from pipelines.reporting import Report, Row, show
from pipelines.weights import load_network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.pixels import Pixels, signed_from_pixels
from reddit_core.precision import Precision, autocast
from reddit_core.sampler import seeded_noise
from reddit_core.student import Student
from reddit_core.weights import NetworkFile

STEPS = (1, 2, 4, 8)
BEFORE = UNetConfig(base_channels=16, channel_mults=(1, 2, 4, 4, 4), num_res_blocks=1, norm_groups=8)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    weights: tuple[str, ...] = (str(DEFAULT_STUDENT),)
    """URLs of weights."""
    side: int = 512
    """Side of the photograph in pixels."""
    repeats: int = 5
    """Runs of each, of which the median counts."""
    tile: int = 0
    """Side of the tiles; 0 leaves tiles out."""
    threads: int = 1
    """Torch CPU threads."""
    device: DeviceName = "auto"
    precision: Precision = "fp32"
    """bf16 runs the network under autocast, as `enhance --precision bf16` does."""


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def students(settings: Settings, device: torch.device) -> Iterator[tuple[str, Student]]:
    torch.manual_seed(0)
    files = {"before": NetworkFile(network=UNet(BEFORE)), **{url: load_network(url) for url in settings.weights}}
    for name, file in files.items():
        yield name, Student(file, device=device, precision=settings.precision)


def calls_of(student: Student, pixels: Pixels, tile: int) -> dict[str, Callable[[], object]]:
    """A bare forward, and enhancements whole and in tiles."""
    side = len(pixels)
    low, noise = signed_from_pixels(pixels, student.device), seeded_noise((1, 3, side, side), 0).to(student.device)
    level, gain = torch.full((1,), 0.5, device=student.device), torch.ones(1, device=student.device)

    def enhancement(steps: int, tile: int, overlap: int) -> Callable[[], object]:
        return lambda: student.enhance(pixels, steps=steps, tile=tile, overlap=overlap)

    calls: dict[str, Callable[[], object]] = {"forward": lambda: student.network(noise, level, low=low, gain=gain)}
    for steps in STEPS:
        calls[f"whole {steps}"] = enhancement(steps, side, 0)
        if tile:
            calls[f"tiled {steps}"] = enhancement(steps, tile, min(64, tile // 4))
    return calls


@torch.no_grad()
def bench(settings: Settings) -> Report:
    """Every figure within one run, on the same machine and photograph."""
    device = pick_device(settings.device, settings.threads)
    pixels = np.random.default_rng(0).integers(0, 64, (settings.side, settings.side, 3), dtype=np.uint8)
    calls = {name: calls_of(student, pixels, settings.tile) for name, student in students(settings, device)}
    times: dict[tuple[str, str], list[float]] = {(name, what): [] for name in calls for what in calls[name]}
    with autocast(device, settings.precision):
        for _ in range(settings.repeats + 1):
            for (name, what), seconds in times.items():
                seconds.append(seconds_of(calls[name][what], device))
        memory = {name: peak_mb(calls[name]["whole 2"], device) for name in calls}
    median = {key: float(np.median(values[1:])) for key, values in times.items()}  # the first is a warm-up
    rows = [
        figures(name, steps, median, memory[name], settings.side**2 / 1e6, tiled=bool(settings.tile))
        for name in calls
        for steps in STEPS
    ]
    facts: dict[str, object] = {"side": settings.side, "tile": settings.tile, "threads": settings.threads}
    facts |= {"device": str(device), "precision": settings.precision}
    return Report(title="Enhancement against bare forwards", rows=rows, facts=facts)


def peak_mb(call: Callable[[], object], device: torch.device) -> float | None:
    gauge = MemoryGauge(device)
    call()
    return gauge.peak_mb()


def figures(
    name: str, steps: int, median: dict[tuple[str, str], float], memory: float | None, megapixels: float, *, tiled: bool
) -> Row:
    whole, forward = median[name, f"whole {steps}"], median[name, "forward"]
    return {
        "network": name.rpartition("/")[2],
        "steps": steps,
        "seconds_per_megapixel": whole / megapixels,
        "MB_per_megapixel at 2 steps": None if memory is None else memory / megapixels,
        "times as fast as before": median["before", f"whole {steps}"] / whole,
        "overhead": whole / (steps * forward) - 1,
        "tiled": median[name, f"tiled {steps}"] / whole if tiled else None,
    }


if __name__ == "__main__":
    show(bench(tyro.cli(Settings)), Console())
