"""A sweep whose trials read one cache, the teacher's pass over the data included, against as many online distillations.

    python tests/benchmarks/bench_sweep.py [--teacher URL] [--trials 8] [--steps 24] [--no-clock]

Both are the same sweep, trial for trial; online, every trial evaluates the teacher itself. Two ratios come out.
*Without start-up*: the CPU time of a step of either kind and of the teacher's pass, on one thread and taking turns,
times how many there are. *By the clock*: from the first call to the table of trials, with all that Ray starts for a
trial; on a toy network that takes longer than the training, on both sides alike.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from jobs.demo_photographs import write_photographs
from pipelines import cluster
from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig, TuneConfig
from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    TrainingComputeConfig,
)
from pipelines.pairs.ingest import ingest
from pipelines.search.tune import tune
from pipelines.tracking import OFF
from pipelines.training import distillation
from pipelines.training.objective import StageContext, StepContext
from pipelines.training.precision import in_precision
from pipelines.trajectories.precompute import precompute
from pipelines.trajectories.teachers import teacher_targets
from pipelines.weights import load_network

TARGET = 1.4
STAGE = 4


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    teacher: str = "weights/lol-teacher.safetensors"
    """URL of the teacher."""
    trials: int = 8
    """Trials of either sweep."""
    steps: int = 24
    """Optimizer steps of a trial."""
    batch_size: int = 8
    """Records per step."""
    crop: int = 64
    """Side of the crops in pixels."""
    crops: int = 4
    """Crops per pair; with the number of pairs they make the cache, which the teacher passes over once."""
    concurrent: int = 2
    """Trials at a time."""
    rounds: int = 12
    """Turns of which the median CPU time counts."""
    clock: bool = True
    """Also run both sweeps, and take them by the clock."""


def clock_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def make_step(config: DistillConfig) -> Callable[[int], None]:
    """One optimizer step of a trial without Ray: the numbered batch is loaded, and the student is moved."""
    device = torch.device("cpu")
    objective = distillation.make_loop(config, OFF, "").objective
    student = objective.begin(StageContext(stage_index=0, device=device)).train()
    network = in_precision(student, device, "fp32")
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.optim.learning_rate)
    stage, size = distillation.make_stream(config).stages[0], config.optim.batch_size
    generator = torch.Generator()

    def step(number: int) -> None:
        batch = stage.load(stage.order.records(number * size, (number + 1) * size))
        context = StepContext(
            stage_index=0, device=device, step=number, global_step=number, averaged=student, generator=generator
        )
        objective.terms(network, batch, context)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_pass(config: DistillConfig) -> Callable[[int], None]:
    """The teacher's evaluation of one batch, as its pass over the data does it, without Ray."""
    teacher = load_network(config.teacher).network
    stage = distillation.make_stream(replace(config, trajectories="online", cache="")).stages[0]
    size = config.optim.batch_size

    def evaluate(number: int) -> None:
        teacher_targets(teacher, stage.load(stage.order.records(number * size, (number + 1) * size)), "fp32")

    return evaluate


def cpu_seconds(config: DistillConfig, rounds: int) -> tuple[float, float, float]:
    """Median CPU seconds of a batch: a step from the cache, a step online, the teacher's pass; they take turns."""
    torch.set_num_threads(1)
    calls = [make_step(config), make_step(replace(config, trajectories="online", cache="")), make_pass(config)]
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            started = time.process_time()
            call(number)
            taken.append(time.process_time() - started)
    cached, online, passing = (statistics.median(taken[1:]) for taken in times)  # the first is a warm-up
    return cached, online, passing


def measure(settings: Settings, folder: Path) -> None:
    photographs = str(folder / "photographs")
    splits = write_photographs(photographs)
    pairs, cache = str(folder / "pairs"), str(folder / "cache")
    ingest(IngestConfig(layout="degrade", source=photographs, splits=splits, output=pairs))
    segment, compute = SegmentConfig(crop=settings.crop, crops=settings.crops), TrainingComputeConfig(threads=1)
    base = DistillConfig(
        cache=cache,
        teacher=settings.teacher,
        pairs=pairs,
        output=str(folder / "unused"),
        stages=(STAGE,),
        segment=segment,
        optim=OptimConfig(steps=settings.steps, batch_size=settings.batch_size, warmup_steps=4),
        compute=compute,
        checkpoint=CheckpointConfig(
            every=settings.steps, validate_every=settings.steps // 3, validation_images=1, validation_crop=settings.crop
        ),
        tracking=StudentTrackingConfig(enabled=False),
    )
    one_pass = PrecomputeConfig(
        pairs=pairs, teacher=settings.teacher, output=cache, stages=(STAGE,), segment=segment, compute=compute
    )
    passing = clock_of(lambda: precompute(one_pass))
    step_cached, step_online, batch_passed = cpu_seconds(base, settings.rounds)
    records = distillation.make_stream(base).stages[0].order.num_records
    steps = settings.trials * settings.steps
    cost = steps * step_cached + records / settings.batch_size * batch_passed
    print(
        f"CPU seconds: step from the cache {step_cached:.3f}, step online {step_online:.3f}, teacher's pass over as "
        f"many records {batch_passed:.3f}; {records} records, {steps} steps in all"
    )
    show("without start-up, CPU time", steps * step_online / cost)
    if settings.clock:
        sweep = TuneConfig(
            distill=base, output=f"{folder}/cached", trials=settings.trials, concurrent=settings.concurrent, asha=False
        )
        cached = clock_of(lambda: tune(sweep))
        online_trials = replace(base, trajectories="online", cache="")
        online = clock_of(lambda: tune(replace(sweep, output=f"{folder}/online", distill=online_trials)))
        print(
            f"seconds by the clock: pass {passing:.1f}, trials from the cache {cached:.1f}, trials online {online:.1f}"
        )
        show("by the clock, start-up and all", online / (passing + cached))


def show(what: str, ratio: float) -> None:
    print(f"online / (pass + cache), {what}: {ratio:.2f} ({TARGET} {'reached' if ratio >= TARGET else 'missed'})")


if __name__ == "__main__":
    wanted = tyro.cli(Settings)
    cluster.start_ray(dashboard=True)
    with tempfile.TemporaryDirectory() as scratch:
        measure(wanted, Path(scratch))
