"""`precompute`, records/s, against a bare loop of the same teacher over records that lie in memory.

    python tests/benchmarks/bench_precompute.py [--device auto|cpu|cuda] [--rounds 3] [--shards 8]

Both run the teacher in a Ray actor with the same threads and priority (Ray gives its processes niceness 15), turn by
turn. The rate of `precompute` is that of its steady state: the records of all shards but the first, over the time from
the first shard's commit to the last's; decoding before and writing after the teacher have the other cores. At least
0.95 is wanted where the network is large enough to be the bottleneck.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import tyro
from making import make_pairs, make_teacher
from measuring import DeviceName, Size, facts_about, pick_device, size_for
from rich.console import Console

from pipelines import cluster, shards
from pipelines.config.jobs import PrecomputeConfig
from pipelines.config.parts import SegmentConfig, TrainingComputeConfig
from pipelines.reporting import Report, show
from pipelines.trajectories.crops import plan_record_shards
from pipelines.trajectories.precompute import precompute
from pipelines.trajectories.records import load_records, with_noise
from pipelines.trajectories.teachers import TeacherActor
from reddit_core.precision import Precision
from reddit_core.schedule import NoiseSchedule

TARGET = 0.95


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    device: DeviceName = "auto"
    precision: Precision = "bf16"
    rounds: int = 3
    """Turns of each; the median of their ratios counts."""
    shards: int = 8
    """Shards of each precompute, the first of which warms up."""
    batch: int = 0
    """Records to a teacher evaluation; 0 takes 8 on a CPU, 64 on a GPU."""
    crop: int = 0
    """Side of the crops; 0 takes 128."""
    batches: int = 6
    """Teacher evaluations to a shard."""
    threads: int = 1
    """Torch CPU threads of the teacher."""


@ray.remote
class BareTeacher:
    """The teacher and one batch of records, in a process such as precompute's actors have."""

    def __init__(self, config: PrecomputeConfig, device: str) -> None:
        self.actor = TeacherActor(config, device)
        shard = plan_record_shards(
            shards.read_manifest(config.pairs, "pairs"), "train", config.segment, config.batch_size
        )[0]
        rows = np.arange(config.batch_size)
        records = load_records(config.pairs, shard, config.segment, NoiseSchedule(), config.stages[0], rows)
        self.batch = with_noise(records)

    def records_per_second(self, batches: int) -> float:
        """Over so many evaluations, after two that warm up."""
        self.actor.evaluate([self.batch] * 2)
        started = time.perf_counter()
        self.actor.evaluate([self.batch] * batches)
        return batches * len(self.batch["seed"]) / (time.perf_counter() - started)


def bare_rate(config: PrecomputeConfig, device: str, batches: int) -> float:
    gpus = 1 if device == "cuda" else 0
    remote: Any = BareTeacher  # with what @ray.remote added
    teacher = remote.options(num_cpus=1, num_gpus=gpus).remote(config, device)
    rate = ray.get(teacher.records_per_second.remote(batches))
    ray.kill(teacher)
    return float(rate)


def precompute_rate(config: PrecomputeConfig) -> float:
    """Records per second between the commits of the first shard and the last."""
    precompute(config)
    commits = sorted(path.stat().st_mtime for path in Path(config.output).glob("*/shards/*.json"))
    return (len(commits) - 1) * config.records_per_shard / (commits[-1] - commits[0])


def make_config(settings: Settings, folder: Path, size: Size, *, gpu: bool) -> PrecomputeConfig:
    per_shard, num_pairs = size.batch * settings.batches, 32
    crops = -(-settings.shards * per_shard // num_pairs)
    return PrecomputeConfig(
        pairs=make_pairs(folder, num_pairs),
        teacher=make_teacher(folder, size),
        output=str(folder / "cache"),
        stages=(16,),
        segment=SegmentConfig(crop=size.crop, crops=crops),
        records_per_shard=per_shard,
        batch_size=size.batch,
        precision=settings.precision,
        compute=TrainingComputeConfig(threads=settings.threads, gpu="yes" if gpu else "no"),
    )


def bench(settings: Settings) -> Report:
    device = pick_device(settings.device, settings.threads)
    size = size_for(device, settings.crop, settings.batch)
    cluster.start_ray()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        config = make_config(settings, Path(name), size, gpu=device.type == "cuda")
        for number in range(settings.rounds):
            bare = bare_rate(config, device.type, settings.batches * settings.shards)
            whole = precompute_rate(replace(config, output=f"{config.output}-{number}"))
            rows.append({"round": number + 1, "bare": bare, "precompute": whole, "ratio": whole / bare})
            print(f"round {number + 1}: bare {bare:.1f}, precompute {whole:.1f} records/s", flush=True)
    facts: dict[str, object] = {"median": statistics.median(row["ratio"] for row in rows), "wanted": TARGET}
    facts |= {
        **facts_about(device, size),
        "precision": settings.precision,
        "records": settings.shards * config.records_per_shard,
    }
    return Report(title="Precompute against the bare teacher, records/s", rows=rows, facts=facts)


if __name__ == "__main__":
    show(bench(tyro.cli(Settings)), Console())
