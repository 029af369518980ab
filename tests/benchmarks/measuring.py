"""What the speed benchmarks share: the device and its size of problem, alternating rounds, and profiles."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pipelines.config.presets import PAPER_UNET, WIDE_FILM
from pipelines.reporting import Report, Row, show
from reddit_core.networks import Network, NetworkConfig, build, kind_of
from reddit_core.networks.film_unet import FilmUNetConfig
from reddit_core.networks.sr3_unet import UNetConfig

DeviceName = Literal["auto", "cpu", "cuda"]
NetworkName = Literal["default", "released"]
Call = Callable[[], object]
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Size:
    """The network and the batch of crops that a device is measured with."""

    network: NetworkConfig
    crop: int
    batch: int


@dataclass(frozen=True)
class Cost:
    """What one call took; CPU seconds are this process's own, which others on the machine do not change much."""

    seconds: float
    cpu_seconds: float


SMALL_UNET = UNetConfig(base_channels=32, channel_mults=(1, 2, 2, 2), num_res_blocks=1, norm_groups=8)


def pick_device(name: DeviceName, threads: int) -> torch.device:
    """The device that was asked for, `auto` being a GPU where there is one; `threads` are for the CPU."""
    torch.set_num_threads(threads)
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def size_for(device: torch.device, crop: int = 0, batch: int = 0, network: NetworkName = "default") -> Size:
    """The networks of presets `lol-cpu` and `lol`, or those of the released kind; 0 takes the presets' crops.

    Those of the released kind are the released one on a GPU, and one of 1.4 M parameters on a CPU.
    """
    on_gpu = device.type == "cuda"
    config = released_network(on_gpu=on_gpu) if network == "released" else default_network(on_gpu=on_gpu)
    return Size(config, crop or 128, batch or (32 if on_gpu else 8))


def default_network(*, on_gpu: bool) -> FilmUNetConfig:
    return FilmUNetConfig(**fields_of(WIDE_FILM, "film.")) if on_gpu else FilmUNetConfig()


def released_network(*, on_gpu: bool) -> UNetConfig:
    return UNetConfig(**fields_of(PAPER_UNET, "unet.")) if on_gpu else SMALL_UNET


def fields_of(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those of a part's settings, without its prefix."""
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}


def make_network(config: NetworkConfig) -> Network:
    torch.manual_seed(0)
    return build(config)


def make_records(size: Size, *, targets: bool) -> dict[str, NDArray[np.generic]]:
    """A batch of trajectory records of random crops, as the training loop is handed them."""
    rng, shape = np.random.default_rng(0), (size.batch, 3, size.crop, size.crop)
    image = rng.integers(0, 256, (size.batch, size.crop, size.crop, 3), dtype=np.uint8)
    names = ("eps", "x_u", "x_target_0") if targets else ("eps",)
    floats = {name: rng.standard_normal(shape, dtype=np.float32) for name in names}
    if targets:  # as they come from a cache
        floats |= {name: floats[name].astype(np.float16) for name in ("x_u", "x_target_0")}
    levels = np.sort(rng.uniform(0.1, 0.99, (size.batch, 3)), axis=1)
    seeds = np.arange(size.batch, dtype=np.uint64)
    images: dict[str, NDArray[np.generic]] = {"low": image // 8, "normal": image}
    gain = np.full(size.batch, 8, np.float32)
    columns: dict[str, NDArray[np.generic]] = {"gain": gain, "levels": levels, "seed": seeds, "position": seeds}
    return {**images, **floats, **columns}


def flops_of(network: Network, size: Size, *, training: bool = False) -> int:
    """Floating-point operations of a batch's forward pass, with those of its backward pass for `training`."""
    one = torch.zeros(1, 3, size.crop, size.crop)
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(training):
        result = network(one, torch.ones(1), low=one, gain=torch.ones(1))
        if training:
            result.sum().backward()
    return counter.get_total_flops() * size.batch


def matmul(device: torch.device) -> tuple[Call, int]:
    """A product of two square bf16 matrices, and its floating-point operations."""
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: left @ right, 2 * side**3


def cost_of(call: Call, device: torch.device) -> Cost:
    started, cpu_started = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started)


def take_turns(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, list[Cost]]:
    """The cost of every call in every round; they alternate, so that a machine that slows down does so for all.

    A first round, which warms up, does not count.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            costs[name].append(cost_of(call, device))
    return {name: values[1:] for name, values in costs.items()}


def compare(slow: list[Cost], fast: list[Cost]) -> dict[str, float]:
    """How many times faster, as the median of the rounds' ratios: by the clock, and by CPU time."""
    pairs = list(zip(slow, fast, strict=True))
    return {
        "ratio": statistics.median(a.seconds / b.seconds for a, b in pairs),
        "by_cpu_time": statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs),
    }


def seconds_of(costs: list[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def facts_about(device: torch.device, size: Size) -> Row:
    """What a figure depends on; shown under every table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "network": kind_of(size.network),
        "parameters": sum(parameter.numel() for parameter in build(size.network).parameters()),
        "crop": size.crop,
        "batch": size.batch,
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def top_operations(call: Call, device: torch.device, rows: int = 12) -> str:
    """Where the time of a call goes: the operations that take most of it, as the profiler prints them."""
    call()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        cost_of(call, device)
    order = f"self_{device.type}_time_total"
    table: str = profiler.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=50)
    return table


def show_with_profiles(report: Report, profiles: Mapping[str, str]) -> None:
    """Prints a report, and under it the profile of each call, by name."""
    show(report)
    for name, table in profiles.items():
        print(f"\n{name}\n{table}")
