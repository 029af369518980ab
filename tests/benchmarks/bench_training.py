"""`distill` through Ray Data and Ray Train, samples/s, against a bare loop; and two workers against one.

    python tests/benchmarks/bench_training.py [--device auto|cpu|cuda] [--rounds 2] [--steps 120] [--no-two]

All make the same steps (`training.Worker.step`) from the same trajectories, in Ray processes of the same threads and
priority (Ray gives its processes niceness 15). The bare loop takes batches that lie in memory; `distill` gets its own
through Ray Data from a cache on disk, and checkpoints at its end only. Two workers make twice the batch together. Rates
are those after a quarter of the steps. At least 0.95 of the bare loop's rate is wanted, and 0.9 of twice one worker's.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch
import tyro
from making import make_pairs, make_teacher
from measuring import Cost, DeviceName, Size, facts_about, pick_device, size_for
from numpy.typing import NDArray
from rich.console import Console

from pipelines import cluster, storage
from pipelines.config.jobs import DistillConfig, PrecomputeConfig
from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    TrainingComputeConfig,
)
from pipelines.reporting import Report, show
from pipelines.tracking.handle import OFF
from pipelines.training import runs
from pipelines.training.distillation import DistillObjective, make_loop, make_stream
from pipelines.training.loop import Worker
from pipelines.training.objective import Forward, StepContext
from pipelines.trajectories.crops import Batch
from pipelines.trajectories.precompute import precompute
from reddit_core.networks import Network
from reddit_core.precision import Precision

RAY_TARGET, TWO_TARGET = 0.95, 0.9
STAGE = 16
NUM_PAIRS = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    device: DeviceName = "auto"
    precision: Precision = "bf16"
    rounds: int = 2
    """Turns of each; the medians of their ratios count."""
    steps: int = 120
    """Steps of each run, the first quarter of which warms up."""
    two: bool = True
    """Also measure two workers; they need two cores, or two GPUs."""
    batch: int = 0
    """Records to a worker's step; 0 takes 8 on a CPU, 64 on a GPU."""
    crop: int = 0
    """Side of the crops; 0 takes 128."""
    threads: int = 1
    """Torch CPU threads of each worker."""


@dataclass
class TimedObjective(DistillObjective):
    """Notes when every step began, and writes it down beside the student."""

    stamps: list[tuple[float, float]] = field(default_factory=list)

    def terms(self, network: Forward, batch: Batch, context: StepContext) -> dict[str, torch.Tensor]:
        self.stamps.append((time.perf_counter(), time.process_time()))
        return super().terms(network, batch, context)

    def save(self, stage_index: int, network: Network, metrics: Mapping[str, float], *, best: bool = False) -> None:
        super().save(stage_index, network, metrics, best=best)
        storage.write_bytes(storage.join(self.config.output, "stamps.json"), json.dumps(self.stamps).encode())


def cost_per_step(stamps: list[tuple[float, float]]) -> Cost:
    """Of the steps after the first quarter."""
    kept = np.asarray(stamps[len(stamps) // 4 :])
    seconds, cpu_seconds = (kept[-1] - kept[0]) / (len(kept) - 1)
    return Cost(float(seconds), float(cpu_seconds))


@ray.remote
def bare_loop(config: DistillConfig, device: str, batches: list[dict[str, NDArray[np.generic]]]) -> Cost:
    """Steps over batches in memory, until there were as many as `distill` makes."""
    torch.set_num_threads(config.compute.threads)
    objective = TimedObjective(config, None, "")
    worker = Worker(replace(make_loop(config, OFF, ""), objective=objective), 0, 1, torch.device(device), None)
    worker.begin_stage(0)
    for step in range(config.optim.steps):
        worker.step(batches[step % len(batches)])
    return cost_per_step(objective.stamps)


def through_ray(config: DistillConfig, output: str) -> Cost:
    """What `distill` does between its checks and its report, with steps that are timed on the first worker."""
    config = replace(config, output=output)
    loop = replace(make_loop(config, OFF, ""), objective=TimedObjective(config, None, ""))
    runs.fit(runs.make_trainer(loop, make_stream(config), output))
    return cost_per_step(json.loads(storage.read_bytes(storage.join(output, "stamps.json"))))


def make_config(settings: Settings, folder: Path, size: Size, *, gpu: bool) -> DistillConfig:
    """The distillation of one worker, whose cache is made here; no record comes twice if they are enough."""
    compute = TrainingComputeConfig(threads=settings.threads, gpu="yes" if gpu else "no")
    segment = SegmentConfig(crop=size.crop, crops=max(1, min(64, settings.steps * size.batch // NUM_PAIRS)))
    pairs, teacher, cache = make_pairs(folder, NUM_PAIRS), make_teacher(folder, size), str(folder / "cache")
    precompute(
        PrecomputeConfig(
            pairs=pairs,
            teacher=teacher,
            output=cache,
            stages=(STAGE,),
            segment=segment,
            batch_size=size.batch,
            precision=settings.precision,
            compute=compute,
        )
    )
    return DistillConfig(
        cache=cache,
        teacher=teacher,
        output=str(folder / "students"),
        stages=(STAGE,),
        segment=segment,
        optim=OptimConfig(steps=settings.steps, batch_size=size.batch, precision=settings.precision),
        compute=compute,
        checkpoint=CheckpointConfig(every=settings.steps, validate_every=0),
        tracking=StudentTrackingConfig(enabled=False),
    )


def measure(settings: Settings, config: DistillConfig, device: torch.device) -> list[dict[str, Cost]]:
    """The cost of a step of each kind, for every round."""
    stream, twice = make_stream(config), replace(config.optim, batch_size=2 * config.optim.batch_size)
    batches = [stream.load(step, step + 1, 0, 1) for step in range(min(8, settings.steps))]
    gpus = int(device.type == "cuda")
    rounds: list[dict[str, Cost]] = []

    def bare() -> Cost:
        task = bare_loop.options(num_cpus=1, num_gpus=gpus).remote(config, device.type, batches)
        return ray.get(task)

    for number in range(settings.rounds):
        kinds: dict[str, Callable[[], Cost]] = {}
        kinds |= {"bare": bare, "ray": partial(through_ray, config, f"{config.output}-{number}")}
        if settings.two:
            two = replace(config, optim=twice, compute=replace(config.compute, workers=2, cpus_per_worker=0.5))
            kinds["two"] = partial(through_ray, two, f"{config.output}-two-{number}")
        rounds.append({})
        for name, kind in kinds.items():
            cost = rounds[-1][name] = kind()
            print(f"{name}: {cost.seconds:.4f} s per step, {cost.cpu_seconds:.4f} s of CPU time", flush=True)
    return rounds


def bench(settings: Settings) -> Report:
    device = pick_device(settings.device, settings.threads)
    size = size_for(device, settings.crop, settings.batch)
    cluster.start_ray()
    with tempfile.TemporaryDirectory() as name:
        config = make_config(settings, Path(name), size, gpu=device.type == "cuda")
        rounds = measure(settings, config, device)
    wanted = [("Ray against the bare loop", "ray", "bare", RAY_TARGET)]
    if settings.two:  # each of the two makes as many samples in a step as the one
        wanted.append(("two workers against twice one", "two", "ray", TWO_TARGET))
    rows = [
        {
            "samples/s of": title,
            "ratio": statistics.median(costs[other].seconds / costs[name].seconds for costs in rounds),
            "by_cpu_time": statistics.median(costs[other].cpu_seconds / costs[name].cpu_seconds for costs in rounds),
            "wanted": target,
        }
        for title, name, other, target in wanted
    ]
    facts = {**facts_about(device, size), "precision": settings.precision, "steps": settings.steps}
    return Report(title="Training through Ray", rows=rows, facts=facts)


if __name__ == "__main__":
    show(bench(tyro.cli(Settings)), Console())
