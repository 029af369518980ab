"""Megapixels per second of enhancement at 1, 2, 4 and 8 steps, against one bare U-Net forward.

    python tests/benchmarks/bench_enhance.py --weights URL [--device auto|cpu|cuda] [--side 512] [--repeats 5]
        [--tile 256] [--precision bf16]

`overhead` is the time of an N-step enhancement of a photograph that fits one tile, over N bare forwards on the
same pixels, minus 1 (at most 5 % is wanted). `tiled` is the same photograph in tiles, over the untiled one; the
passes that find the shared statistics are in it. Runs alternate, and medians are shown, so that a machine
that slows down does so for all.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from measuring import DeviceName, pick_device
from rich.console import Console

from pipelines.reporting import Report, show
from pipelines.weights import load_student
from reddit_core.pixels import signed_from_pixels
from reddit_core.precision import Precision, autocast
from reddit_core.sampler import seeded_noise

STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    weights: str
    """URL of the weights."""
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


@torch.no_grad()
def bench(settings: Settings) -> Report:
    """Every figure within one run, on the same machine, network and photograph."""
    device = pick_device(settings.device, settings.threads)
    student = load_student(settings.weights, device, settings.precision)
    side, whole = settings.side, settings.side
    pixels = np.random.default_rng(0).integers(0, 64, (side, side, 3), dtype=np.uint8)
    low, noise = signed_from_pixels(pixels, device), seeded_noise((1, 3, side, side), 0).to(device)
    level = torch.full((1,), 0.5, device=device)
    calls: dict[str, Callable[[], object]] = {"forward": lambda: student.network(noise, level, low=low)}

    def enhancement(steps: int, tile: int, overlap: int) -> Callable[[], object]:
        return lambda: student.enhance(pixels, steps=steps, tile=tile, overlap=overlap)

    for steps in STEPS:
        calls[f"whole {steps}"] = enhancement(steps, whole, 0)
        if settings.tile:
            calls[f"tiled {steps}"] = enhancement(steps, settings.tile, settings.tile // 4)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with autocast(device, settings.precision):
        for _ in range(settings.repeats + 1):
            for name, call in calls.items():
                times[name].append(seconds_of(call, device))
    median = {name: float(np.median(values[1:])) for name, values in times.items()}  # the first is a warm-up
    megapixels = side * side / 1e6
    rows = [
        {
            "steps": steps,
            "megapixels_per_second": megapixels / median[f"whole {steps}"],
            "seconds_per_megapixel": median[f"whole {steps}"] / megapixels,
            "forwards": steps * median["forward"] / megapixels,
            "overhead": median[f"whole {steps}"] / (steps * median["forward"]) - 1,
            "tiled": median[f"tiled {steps}"] / median[f"whole {steps}"] if settings.tile else None,
        }
        for steps in STEPS
    ]
    facts: dict[str, object] = {"side": side, "tile": settings.tile, "threads": settings.threads}
    facts |= {"device": str(device), "precision": settings.precision}
    return Report(title="Enhancement against bare forwards", rows=rows, facts=facts)


if __name__ == "__main__":
    show(bench(tyro.cli(Settings)), Console())
