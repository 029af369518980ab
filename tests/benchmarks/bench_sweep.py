"""A sweep whose trials read one cache, the teacher's pass over the data included, against as many online distillations.

    python tests/benchmarks/bench_sweep.py [--teacher URL] [--trials 8] [--steps 24]

Both are the same sweep, trial for trial; online, every trial evaluates the teacher itself. Two ratios come out. *By the
clock*: everything, from the first call to the table of trials. *Without start-up*: per trial the time from its first
report to its last, scaled to all of its steps, and of the teacher's pass what a second pass over the same records
with everything warm takes. On a toy network starting Ray's workers takes longer than training, on both sides alike.
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from pipelines import cluster
from pipelines.config import DistillConfig, IngestConfig, PrecomputeConfig, TuneConfig
from pipelines.config_parts import CheckpointConfig, ComputeConfig, OptimConfig, SegmentConfig, TrackingConfig
from pipelines.pairs import ingest
from pipelines.photographs import write_photographs
from pipelines.search import tune
from pipelines.sweep import STEP
from pipelines.trajectories import precompute

TARGET = 1.4
STAGE = 4


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    teacher: str = "weights/demo-teacher.safetensors"
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


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and without start-up."""

    clock: float
    net: float


def training_seconds(folder: Path) -> float:
    """What one trial's steps took, by the time between its first report to Tune and its last."""
    reports = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    first, last = reports[0], reports[-1]
    seconds: float = last["time_total_s"] - first["time_total_s"]
    return seconds / (last[STEP] - first[STEP]) * last[STEP]


def time_sweep(config: TuneConfig) -> Cost:
    started = time.perf_counter()
    tune(config)
    clock = time.perf_counter() - started
    trials = [path.parent for path in Path(config.output, "tune").glob("*/result.json")]
    assert len(trials) == config.trials, f"{len(trials)} of {config.trials} trials left a record"
    return Cost(clock, sum(training_seconds(path) for path in trials) / config.concurrent)


def time_teacher_pass(config: PrecomputeConfig) -> Cost:
    """The pass, and the same again into another place by the same workers."""
    started = time.perf_counter()
    precompute(config)
    clock = time.perf_counter() - started
    again = precompute(replace(config, output=f"{config.output}-again"))
    return Cost(clock, float(again.facts["seconds"]))


def measure(settings: Settings, folder: Path) -> None:
    photographs = str(folder / "photographs")
    splits = write_photographs(photographs)
    pairs, cache = str(folder / "pairs"), str(folder / "cache")
    ingest(IngestConfig(layout="degrade", source=photographs, splits=splits, output=pairs))
    segment, compute = SegmentConfig(crop=settings.crop, crops=settings.crops), ComputeConfig(threads=1)
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
        tracking=TrackingConfig(enabled=False),
    )
    passing = time_teacher_pass(
        PrecomputeConfig(
            pairs=pairs, teacher=settings.teacher, output=cache, stages=(STAGE,), segment=segment, compute=compute
        )
    )
    sweep = TuneConfig(
        distill=base, output=str(folder / "cached"), trials=settings.trials, concurrent=settings.concurrent, asha=False
    )
    cached = time_sweep(sweep)
    online = time_sweep(replace(sweep, output=str(folder / "online"), distill=replace(base, trajectories="online")))
    print(f"teacher's pass {passing.clock:.1f} s by the clock, {passing.net:.1f} s without start-up")
    for name, cost in (("from the cache", cached), ("online", online)):
        print(f"{settings.trials} trials {name}: {cost.clock:.1f} s by the clock, {cost.net:.1f} s without start-up")
    for name, ratio in (
        ("by the clock", online.clock / (passing.clock + cached.clock)),
        ("without start-up", online.net / (passing.net + cached.net)),
    ):
        verdict = "reached" if ratio >= TARGET else "missed"
        print(f"online / (pass + cache), {name}: {ratio:.2f} ({TARGET} {verdict})")


if __name__ == "__main__":
    wanted = tyro.cli(Settings)
    cluster.start_ray(dashboard=True)
    with tempfile.TemporaryDirectory() as scratch:
        measure(wanted, Path(scratch))
