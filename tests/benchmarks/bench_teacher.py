"""The teacher's forward as a share of the rate at which the device multiplies matrices in bf16.

    python tests/benchmarks/bench_teacher.py [--device auto|cpu|cuda] [--variants plain bf16 channels_last compile]
        [--batch 0] [--rounds 5] [--profile]

`share` is the network's floating-point operations per second over those of a large square bf16 matrix product on the
same device and threads. On a GPU the batch doubles until the rate grows by less than 3 %, unless one is given. The
variants: float32 as PyTorch comes; bf16 autocast (what our jobs do on a GPU); that with the weights and features in
channels_last (what they do on a CPU); what they do, compiled; that as CUDA graphs (on a GPU).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import tyro
from measuring import (
    Call,
    DeviceName,
    Size,
    facts_about,
    flops_of,
    make_network,
    matmul,
    pick_device,
    seconds_of,
    show_with_profiles,
    size_for,
    take_turns,
    top_operations,
)

from pipelines.reporting import Report
from reddit_core.networks import Network

Variant = Literal["plain", "bf16", "channels_last", "compile", "graphs"]
WORTH_IT = 1.03
MOST_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    device: DeviceName = "auto"
    variants: tuple[Variant, ...] = ()
    """Empty takes all that the device has; compiling takes a minute or more."""
    batch: int = 0
    """Crops to a forward; 0 takes 8 on a CPU and looks for the best on a GPU."""
    crop: int = 0
    """Side of the crops; 0 takes 128."""
    rounds: int = 5
    """Turns of each, of which the median counts."""
    threads: int = 1
    """Torch CPU threads."""
    profile: bool = False
    """Also show which operations the time of a forward goes to, for each variant."""


def forward(network: Network, size: Size, device: torch.device, variant: Variant) -> Call:
    """A call of the network's forward in the way of the variant."""
    channels_last = variant == "channels_last" or (variant == "compile" and device.type == "cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    z, low = (torch.randn(size.batch, 3, size.crop, size.crop).to(device, memory_format=layout) for _ in range(2))
    level = torch.full((size.batch,), 0.5, device=device)
    own: Any = copy.deepcopy(network)  # the stubs of Module.to know no memory_format
    run: Callable[..., torch.Tensor] = own.to(device, memory_format=layout).eval()
    if variant in ("compile", "graphs"):
        run = torch.compile(run, mode="reduce-overhead" if variant == "graphs" else None)

    def call() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=variant != "plain"):
            run(z, level, low=low, gain=level)

    return call


@contextmanager
def without_enough_memory() -> Iterator[None]:
    """Gives back what a batch that did not fit has left."""
    try:
        yield
    finally:
        torch.cuda.empty_cache()


def best_size(network: Network, size: Size, device: torch.device, rounds: int) -> Size:
    """The batch from which twice as many crops are hardly faster, or do not fit."""
    best, best_rate, batch = size, 0.0, 16
    while batch <= MOST_BATCH:
        tried = replace(size, batch=batch)
        try:
            with without_enough_memory():
                call = forward(network, tried, device, "bf16")
                rate = batch / seconds_of(take_turns({"": call}, rounds, device)[""])
        except torch.cuda.OutOfMemoryError:
            break
        print(f"batch {batch}: {rate:.0f} crops/s", flush=True)
        if rate < best_rate * WORTH_IT:
            break
        best, best_rate, batch = tried, rate, 2 * batch
    return best


def bench(settings: Settings) -> tuple[Report, dict[str, str]]:
    """Every variant and the matrix product, turn by turn; and, if wanted, the profile of each variant."""
    device = pick_device(settings.device, settings.threads)
    size = size_for(device, settings.crop, settings.batch)
    network = make_network(size.network)
    if device.type == "cuda" and not settings.batch:
        size = best_size(network, size, device, settings.rounds)
    every: tuple[Variant, ...] = ("plain", "bf16", "channels_last", "compile")
    variants = settings.variants or (*every, *(("graphs",) if device.type == "cuda" else ()))
    product, product_flops = matmul(device)
    calls: dict[str, Call] = {variant: forward(network, size, device, variant) for variant in variants}
    costs = take_turns({"matmul": product, **calls}, settings.rounds, device)
    flops, seconds = flops_of(network, size), {name: seconds_of(values) for name, values in costs.items()}
    peak = product_flops / seconds["matmul"]
    rows = [
        {
            "variant": variant,
            "seconds": seconds[variant],
            "crops_per_second": size.batch / seconds[variant],
            "gflops_per_second": flops / seconds[variant] / 1e9,
            "share": flops / seconds[variant] / peak,
            "against_first": seconds[variants[0]] / seconds[variant],
        }
        for variant in variants
    ]
    facts = {**facts_about(device, size), "matmul_bf16_gflops_per_second": peak / 1e9}
    profiles = {name: top_operations(call, device) for name, call in calls.items()} if settings.profile else {}
    return Report(title="The teacher's forward", rows=rows, facts=facts), profiles


if __name__ == "__main__":
    show_with_profiles(*bench(tyro.cli(Settings)))
